"""Which clips a training takes: the rows of a data set, those held out of it, few of each class, and their classes."""

import csv
import io
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processing import MoTEVideoProcessor
from .processing.augmentation import train_transform
from .processing.builders import BUILDERS, load_videos, video_builder
from .processing.clips import VideoClips, list_clips
from .processing.video_size import measure_video
from .processing.video_source import VideoDecodeError


def load_train_and_validation(
    data: str,
    *,
    name: str | None = None,
    data_dir: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    validation_data: str | None = None,
    hold_out_share: float = 0.2,
    seed: int = 0,
) -> tuple[Any, Any, str]:
    """Rows of undecoded clips to train on and to validate on; prepared rows are shared by all runs of one machine.

    Args:
        data: benchmark, CSV list or folder, see [`load_videos`][modeling_mote.processing.builders.load_videos].
        name: configuration of a benchmark.
        data_dir: folder of the videos.
        train_split: to train on.
        validation_split: to validate on; "none" for none. By default `validation` if the data has it, else a share of
            the training clips is held out.
        validation_data: CSV list or folder to validate on, rather than a split of `data`.
        hold_out_share: see [`hold_out`].
        seed: of the clips that are held out.

    Returns:
        rows to train on; rows to validate on, or None; and what the latter are, in words.

    Raises:
        FileNotFoundError, ValueError: as `load_videos`, and if the split to validate on is that to train on, or has
            a class that the other has not.
    """
    rows, validation, words = _load_both(
        data, name, data_dir, train_split, validation_split, validation_data, hold_out_share, seed
    )
    if validation is not None:
        class_indices(validation, training_classes(rows))
    return rows, validation, words


def _load_both(
    data: str,
    name: str | None,
    data_dir: str | None,
    train_split: str,
    validation_split: str | None,
    validation_data: str | None,
    hold_out_share: float,
    seed: int,
) -> tuple[Any, Any, str]:
    def load(source: str, split: str, configuration: str | None = None) -> Any:
        takes_folder = data_dir is not None and not (source != data and Path(source).is_dir())
        folder: dict[str, Any] = {"data_dir": data_dir} if takes_folder else {}
        return load_videos(source, split, name=configuration, **folder)

    rows = load(data, train_split, name)
    if validation_split == "none":
        return rows, None, ""
    if validation_data is not None:
        return rows, load(validation_data, validation_split or "validation"), f"of {Path(validation_data).name}"
    if validation_split is None and not _has_split(data, "validation", name, data_dir):
        rows, held_out = hold_out(rows, hold_out_share, seed)
        return rows, held_out, f"held out of {Path(data).name} at random" if held_out is not None else ""
    split = validation_split or "validation"
    validation = load(data, split, name)
    if list_clips(rows) == list_clips(validation):
        raise ValueError(
            f"{data} has no split {split}, so it would be validated on the training clips: give others as "
            "validation_data, or leave validation_split out to hold some out."
        )
    return rows, validation, f"of the split {split}"


def _has_split(data: str, split: str, name: str | None, data_dir: str | None) -> bool:
    """Whether there is such a split; a benchmark that has none says which it has."""
    if data in BUILDERS:
        return True
    config: Any = video_builder(
        data, name, **({} if data_dir is None or Path(data).is_dir() else {"data_dir": data_dir})
    ).config
    return split in config.split_names()


def hold_out(rows: Any, share: float = 0.2, seed: int = 0) -> tuple[Any, Any]:
    """Divide rows at random into some to train on and some to validate on.

    Of every class with two files or more a share of its files goes, one at least; the parts of one file stay together.

    Args:
        rows: of a data set, with `label`.
        share: of each class, from 0 to 1.
        seed: of the choice.

    Returns:
        rows to train on, and rows that were held out; None for the latter if every class has one file only.
    """
    files: dict[Any, list[int]] = defaultdict(list)
    clips = list_clips(rows)
    for index, (path, *_) in enumerate(clips):
        files[index if path is None else path].append(index)
    by_class: dict[int, list[Any]] = defaultdict(list)
    for file, indices in files.items():
        by_class[clips[indices[0]][1]].append(file)
    draw, held = random.Random(seed), set()
    for _, members in sorted(by_class.items()):
        if len(members) > 1 and share > 0:
            held.update(draw.sample(members, min(len(members) - 1, max(1, round(share * len(members))))))
    # A file may hold parts of several classes: none of them may be left without a clip to train on.
    trained = {clips[index][1] for file, indices in files.items() if file not in held for index in indices}
    held = {file for file in held if all(clips[index][1] in trained for index in files[file])}
    if not held:
        return rows, None
    out = {index for file in held for index in files[file]}
    return rows.select([index for index in range(len(clips)) if index not in out]), rows.select(sorted(out))


def few_shot(rows: Any, shots: int, seed: int = 0) -> tuple[Any, str]:
    """Choose K clips of each class, and repeat them to the length of the full list, as the few-shot protocol does.

    Args:
        rows: of a data set, with `label`.
        shots: K.
        seed: of the choice.

    Returns:
        the rows, and the list of those chosen as a CSV text of `path,label,start,end`.

    Raises:
        ValueError: if a class has fewer clips.
    """
    names, by_class = rows.features["label"].names, defaultdict(list)
    for index, label in enumerate(rows["label"]):
        by_class[label].append(index)
    for label, clips in sorted(by_class.items()):
        if len(clips) < shots:
            raise ValueError(f"shots is {shots}, but class {names[label]!r} has only {len(clips)} training clips.")
    draw = random.Random(seed)
    chosen = sorted(index for _, clips in sorted(by_class.items()) for index in draw.sample(clips, shots))
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["path", "label", "start", "end"])
    for path, label, start, end in list_clips(rows.select(chosen)):
        writer.writerow([path, names[label], start, end])
    return rows.select([chosen[index % len(chosen)] for index in range(len(rows))]), table.getvalue()


def training_classes(rows: Any) -> list[str]:
    """Names of the classes with training clips, in the data set's order (MovingShapes names its unseen ones too)."""
    return [rows.features["label"].names[label] for label in sorted(set(rows["label"]))]


def class_indices(rows: Any, classes: Sequence[str]) -> dict[int, int]:
    """Data set's label → index among the training classes.

    Raises:
        ValueError: if there is a clip of another class.
    """
    names = rows.features["label"].names
    labels = sorted(set(rows["label"]))
    strange = [names[label] for label in labels if names[label] not in classes]
    if strange:
        raise ValueError(f"The validation clips are of class {strange[0]!r} too, which has no training clip.")
    return {label: classes.index(names[label]) for label in labels}


def training_pixels(
    rows: Any,
    classes: Sequence[str],
    video_processor: MoTEVideoProcessor,
    num_frames: int,
    sampling: str = "val",
    augment: bool = False,
    flip: float = 0.5,
    seed: int = 0,
) -> VideoClips:
    """The clips of a split as pixels, with labels among the training classes.

    Args:
        rows: of a data set.
        classes: names of the training classes.
        video_processor: reads and resizes.
        num_frames: frames per clip.
        sampling: "train" for a random frame of each segment, "val" for its first.
        augment: random crop, flip and greyscale, one draw per clip, see
            [`train_transform`][modeling_mote.processing.train_transform].
        flip: probability of the flip.
        seed: of frames and augmentation.

    Raises:
        ValueError: as [`class_indices`].
    """
    side = video_processor.crop_size["height"]
    return VideoClips(
        rows,
        video_processor,
        num_frames,
        sampling,
        transform=train_transform(side, flip=flip) if augment else None,
        labels=class_indices(rows, classes),
        seed=seed,
    )


def clip_seconds(rows: Any, most: int = 25) -> float | None:
    """How long clips are, in the middle: as long should the windows of a longer video be.

    Args:
        rows: of a data set, `video` not decoded, and maybe `start` and `end` in seconds.
        most: clips that are looked at, evenly spread.

    Returns:
        Seconds, to a tenth; None if none of the clips can be read.
    """
    lengths = []
    for index in range(0, len(rows), max(1, len(rows) // most)):
        row = rows[index]
        try:
            end = row.get("end") or measure_video(row["video"].get("bytes") or row["video"]["path"]).seconds
        except VideoDecodeError:  # training says which
            continue
        lengths.append(end - (row.get("start") or 0.0))
    return max(0.1, round(statistics.median(lengths), 1)) if lengths else None


__all__ = [
    "class_indices",
    "clip_seconds",
    "few_shot",
    "hold_out",
    "load_train_and_validation",
    "training_classes",
    "training_pixels",
]
