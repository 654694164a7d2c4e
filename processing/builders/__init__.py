"""Video data sets as `datasets` builders, and one function that picks the right one.

>>> test = load_videos("ucf101", "test", name="split1", data_dir="/data/ucf101")
>>> train = load_videos("my_clips.csv", "train")
>>> train = load_videos("my_clips", streaming=True)["train"]  # one folder per class
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets

from .clip_list import Clip, ClipListBuilder, ClipListConfig, list_sha256
from .hmdb51 import HMDB51
from .kinetics import Kinetics
from .moving_shapes import MovingShapes, MovingShapesConfig
from .ucf101 import UCF101
from .video_folder import VideoFolder
from .video_list import VideoList

BUILDERS: dict[str, type[datasets.GeneratorBasedBuilder]] = {
    "kinetics": Kinetics,
    "ucf101": UCF101,
    "hmdb51": HMDB51,
    "moving_shapes": MovingShapes,
}

_told: set[str] = set()  # what this process has warned of

__all__ = [
    "BUILDERS",
    "HMDB51",
    "UCF101",
    "Clip",
    "ClipListBuilder",
    "ClipListConfig",
    "Kinetics",
    "MovingShapes",
    "MovingShapesConfig",
    "VideoFolder",
    "VideoList",
    "list_sha256",
    "load_videos",
    "video_builder",
]


def video_builder(
    source: str | Path | Mapping[str, str], name: str | None = None, cache_dir: str | None = None, **config: Any
) -> datasets.GeneratorBasedBuilder:
    """Return the builder for a benchmark, a CSV list or a folder of videos.

    Args:
        source: Name of a benchmark, one of `BUILDERS`; a CSV file `path,label[,start,end]`, or {split: CSV file}; or a
            folder that holds one folder per class.
        name: Configuration of a benchmark, for example `split1` or `kinetics600_split2`; its first one by default.
        cache_dir: Where prepared rows are kept; that of `datasets` by default.
        **config: Fields of the builder's configuration: `data_dir`, `splits`, `label_file`, `list_dir`, ...

    Returns:
        The builder. That of a list has read and checked it: `builder.config.clips`.

    Raises:
        FileNotFoundError: if the source, a list, or every clip of a split is missing.
        ValueError: if the lists are not what they should be, or there is no such option; one sentence says where.
    """
    given: dict[str, Any] = {"cache_dir": cache_dir}
    builder: type[datasets.GeneratorBasedBuilder]
    path = Path() if isinstance(source, Mapping) else Path(source).expanduser()
    if isinstance(source, Mapping):
        builder, kind = VideoList, "A list of videos"
        given["files"] = {split: str(file) for split, file in source.items()}
    elif source in BUILDERS:
        builder, kind = BUILDERS[str(source)], str(source)
        names = [each.name for each in builder.BUILDER_CONFIGS]
        if name is not None and name not in names:
            raise ValueError(f"{source} has no configuration {name!r}; choose one of {', '.join(names)}.")
        given["config_name"] = name
    elif path.is_dir():
        builder, kind = VideoFolder, "A folder of videos"
        given["data_dir"] = str(path)
    elif path.suffix.lower() == ".csv":
        builder, kind = VideoList, "A list of videos"
        given["files"] = {(config.get("splits") or ("train",))[0]: str(path)}
    else:
        raise FileNotFoundError(
            f"{source} is no folder, no CSV file and no known data set; known are {', '.join(BUILDERS)}."
        )
    known = {each.name for each in fields(builder.BUILDER_CONFIG_CLASS) if each.init} - given.keys()
    for option in config:
        if option not in known:
            raise ValueError(f"{kind} takes no {option}.")
    return builder(**given, **config)


def load_videos(
    source: str | Path | Mapping[str, str],
    split: str | None = None,
    *,
    name: str | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    cache_dir: str | None = None,
    **config: Any,
) -> datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict:
    """Load the clips of a benchmark, a CSV list or a folder of videos, undecoded.

    What was left out of a folder, and names that became words, are told by one warning each, once in a process;
    `video_builder(...).config` holds them in full: `notes`, `renamed`, `left_out`, `empty_folders`.

    Args:
        source: See `video_builder`.
        split: Split, or slice of one such as `"test[:10%]"`; all splits by default. A lone CSV file, or a folder
            without folders of splits, is the split asked for, by default `train`.
        name: Configuration of a benchmark.
        streaming: Give an iterable data set and write nothing.
        num_proc: Processes that prepare the rows.
        cache_dir: Where prepared rows are kept; that of `datasets` by default.
        **config: Fields of the builder's configuration.

    Returns:
        Rows of `video`, `label`, `path` and, where the list has them, `start` and `end` (see `ClipListBuilder`); a
        dictionary of data sets without `split`.

    Raises:
        FileNotFoundError: if the source, a list, or every clip of a split is missing.
        ValueError: if the lists are not what they should be, or there is no such split.
    """
    wanted = tuple(re.findall(r"(?:^|\+)\s*(\w+)", str(split))) if split else ()
    if wanted and source != "moving_shapes":  # which has no lists
        config.setdefault("splits", wanted)  # the lists of other splits need not be there
    builder = video_builder(source, name, cache_dir, **config)
    for note in getattr(builder.config, "notes", []):  # moving_shapes has none
        if note not in _told:
            _told.add(note)
            warnings.warn(note, stacklevel=2)
    if streaming:
        return builder.as_streaming_dataset(split)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset(split)
