"""Scores of many videos: whole or window by window, and kept in a file from which an interrupted run goes on.

>>> classify = load_pipeline("org/mote-vitb16")
>>> for index, result in score_videos(classify, ["archery", "yoga"], ["a.mp4", "b.mp4"]):
...     print(result["scores"][0])
"""

import csv
import io
import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .feature_cache import fingerprint, reading_version
from .processing import (
    ExampleSet,
    ZeroShotVideoClassificationPipeline,
    classify_windows,
    merge_windows,
    plot_timeline,
    smooth_windows,
)
from .processing.answers import AnswerOptions
from .processing.builders.video_folder import VideoFolderConfig
from .processing.files import only_writer, whole_file, write_whole
from .processing.reading import PixelReader, ProcessDied, Reading, describe_death, describe_error, read_in_processes
from .processing.sources import Videos, is_url

COLUMNS = ("video", "start", "end", "label", "score", "similarity", "error", "warning")
LONG_SECONDS = 10.0  # a clip of Kinetics: of a longer video, a few frames are a sample that is worth a word
KEPT_THUMBNAILS = 64  # of a video at least; a timeline shows a few
SAVE_EVERY = 30.0  # seconds between writings of the output

Result = dict[str, Any]
Labels = Sequence[str] | Mapping[str, Sequence[str]]  # names, or {name: the texts that describe it}


class TrainingClassesPipeline(ZeroShotVideoClassificationPipeline):
    """The pipeline over the classes that the model was trained on, by their features as they were in the training."""

    def class_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Those of the checkpoint, [n, d], whatever prompts they were made with."""
        return self.model.seen_classes.weight


def over_training_classes(classify: ZeroShotVideoClassificationPipeline) -> tuple[TrainingClassesPipeline, list[str]]:
    """A pipeline over the training classes of the model of another one, and their names.

    Raises:
        ValueError: If the model has none.
    """
    config = classify.model.config
    if not config.training_classes_set:
        raise ValueError("The model has no training classes: name labels.")
    labels = [config.id2label[index] for index in range(config.num_labels)]
    model, spread = classify.model, getattr(classify.model, "hf_device_map", None) is not None
    # Unless it is told where the model is, a pipeline moves it to an accelerator.
    device = None if spread else classify.device
    parts = {"processor": classify.processor, "tokenizer": classify.tokenizer, "device": device}
    return TrainingClassesPipeline(model=model, **parts), labels


# ------------------------------------------------------------------------------------------------------------- scoring


def score_videos(
    classify: ZeroShotVideoClassificationPipeline,
    labels: Labels,
    files: Sequence[str],
    *,
    top_k: int | None = 5,
    answering: Mapping[str, Any] | None = None,
    examples: ExampleSet | None = None,
    batch_size: int = 8,
    num_workers: int = 2,
) -> Iterator[tuple[int, Result]]:
    """Score whole videos, each by the frames that the processor samples.

    Args:
        classify: The pipeline.
        labels: The candidate labels, as the pipeline takes them.
        files: Paths and URLs.
        top_k: Rows kept; None for all.
        answering: More options of an answer, see `AnswerOptions`.
        examples: A few videos of labels, see `load_examples`.
        batch_size: Videos in one forward.
        num_workers: Processes that read videos; one that dies costs its own file.

    Yields:
        Index of a file and its result, in order: `scores`, the rows of the answer, best first, with `frames`, how many
        were seen, and `seconds`, the video's length, if it is known; or `error`, and in either case `warning`, None if
        there is none.

    Raises:
        ValueError: For bad labels, and a model whose scores are no numbers.
    """
    options = AnswerOptions(top_k=top_k, **(answering or {}))
    options.check(tuple(labels), classify.calibration)
    num_frames = classify.processor.video_processor.frames_per_clip(classify.model.config)
    reader = PixelReader(classify.processor.video_processor, num_frames)
    batch: list[tuple[int, Reading]] = []
    # A single file is read here.
    for index, reading in read_in_processes(reader, files, num_workers if len(files) > 1 else 0):
        if isinstance(reading, ProcessDied):
            reading = Reading(error=describe_death(reading, files[index]))
        batch.append((index, reading))
        if len(batch) == batch_size:
            yield from _score(classify, labels, batch, options, examples)
            batch = []
    yield from _score(classify, labels, batch, options, examples)


def _score(
    classify: Any,
    labels: Labels,
    batch: Sequence[tuple[int, Reading]],
    options: AnswerOptions,
    examples: ExampleSet | None,
) -> Iterator[tuple[int, Result]]:
    read = [torch.from_numpy(reading.pixels) for _, reading in batch if reading.pixels is not None]
    # Videos that were sampled by frames per second differ in length.
    stacks = [torch.stack(read)] if len({pixels.shape for pixels in read}) == 1 else [each[None] for each in read]
    answers: list[list[dict[str, Any]]] = []
    for pixels in stacks:  # [b, (v), t, 3, h, w]
        inputs = classify.processor.video_processor.normalize_pixels(pixels.to(classify.device)).to(classify.dtype)
        answers += classify.rank({"pixel_values_videos": inputs}, options, candidate_labels=labels, examples=examples)
    scored = iter(answers)
    for index, reading in batch:
        result: Result = {"error": reading.error, "warning": reading.warning}
        if reading.pixels is not None:
            scores = next(scored)
            if any(math.isnan(row["score"]) for row in scores):
                raise ValueError("The model gives scores that are no numbers: its weights are damaged.")
            result |= {"scores": scores, "frames": reading.num_frames, "seconds": reading.seconds}
        yield index, result


def score_windows(
    classify: ZeroShotVideoClassificationPipeline,
    labels: Labels,
    file: str,
    *,
    window: float,
    stride: float = 1.0,
    smooth: float = 0.0,
    top_k: int | None = 5,
    answering: Mapping[str, Any] | None = None,
    examples: ExampleSet | None = None,
    batch_size: int = 8,
    timeline: str | os.PathLike[str] | None = None,
    show_progress: bool = False,
) -> Result:
    """Score one video window by window.

    Args:
        classify: The pipeline.
        labels: The candidate labels, as the pipeline takes them.
        file: Path or URL.
        window: Seconds of a window.
        stride: Seconds from one window's start to the next one's.
        smooth: Seconds over which scores are averaged.
        top_k: Best labels kept of a window, and drawn.
        answering: More options of an answer, as `classify_windows` takes them.
        examples: A few videos of labels, see `load_examples`.
        batch_size: Windows in one forward.
        timeline: PNG file to write, if any.
        show_progress: Draw a bar.

    Returns:
        `segments` and `windows`, see `merge_windows` and `classify_windows`, or `error`; and `warning`.

    Raises:
        ValueError: For bad labels and options.
        OSError: If the timeline can't be written.
    """
    windows: list[dict[str, Any]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        known = dict(answering or {}) | ({} if examples is None else {"examples": examples})
        found = classify_windows(classify, file, labels, window=window, stride=stride, batch_size=batch_size, **known)
        with tqdm(unit="s", desc=os.path.basename(file), disable=not show_progress) as bar:
            try:
                for each in thin_thumbnails(found):
                    windows.append(each)
                    bar.update(round(each["end"] - bar.n, 1))
            except Exception as error:  # whatever escapes a decoder is this file's
                return {"error": describe_error(error, file), "warning": None}
    warning = "; ".join(" ".join(str(each.message).split()) for each in caught) or None
    windows = smooth_windows(windows, smooth)
    if timeline is not None:
        with whole_file(timeline) as partial:
            plot_timeline(windows).savefig(partial, format="png")
    best = [
        {"start": each["start"], "end": each["end"], "scores": dict(list(each["scores"].items())[:top_k])}
        for each in windows
    ]
    return {"segments": merge_windows(windows), "windows": best, "error": None, "warning": warning}


def thin_thumbnails(windows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The windows as they come, with thumbnails left on a few only: those of an hour would fill the memory."""
    given: list[dict[str, Any]] = []
    every = 1
    for number, window in enumerate(windows):
        if number % every:
            window["thumbnail"] = None
        given.append(window)
        if number == KEPT_THUMBNAILS * every:
            every *= 2
            for index, earlier in enumerate(given):
                if index % every:
                    earlier["thumbnail"] = None
        yield window


def rows_of(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A result as rows of a table: one for each of its segments or best labels; or one with its error, or no label."""
    common = {name: result[name] for name in ("video", "error", "warning")}
    for scored in result.get("segments") or result.get("scores") or [{}]:
        yield common | scored


# ------------------------------------------------------------------------------------------------- kept as they come


class SavedScores:
    """Results in a CSV or JSON file that grows as they come, and from which a later run goes on.

    Used as a context, it keeps the output for this run and writes it at the end, however that comes. Meanwhile the
    output is written every `SAVE_EVERY` seconds, and `<output>.progress` beside it gets a line for each result at
    once, after a first line that says what they were made with: model, labels, options, and the code that reads
    videos. A run with the same ones takes what is there, but for files that changed meanwhile and those that could not
    be read.

    Args:
        path: The output, .csv or .json; None for results that are not kept.
        settings: What the results depend on.
        facts: What the head of a JSON output says.
        names: What the output calls the videos, in its order.

    Raises:
        OSError: If nothing can be written beside the output.
        ValueError: If another run writes to it now.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        names: Sequence[str],
    ) -> None:
        self.path, self.facts = None if path is None else Path(path), dict(facts)
        self.head, self.order = json.dumps(settings, sort_keys=True), {name: place for place, name in enumerate(names)}
        self.done: dict[str, tuple[list[int], Result]] = {}  # {file: (its state, its result)}
        self.results: list[Result] = []
        self._written = time.monotonic()
        self._stack = ExitStack()

    @property
    def progress(self) -> Path:
        """The file of what is done."""
        assert self.path is not None
        return self.path.with_name(f"{self.path.name}.progress")

    def __enter__(self) -> "SavedScores":
        if self.path is not None:
            self._stack.enter_context(only_writer(self.path))
            with self._stack:  # released if this fails
                if self.progress.exists():
                    self._read()
                lines = [json.dumps([file, *rest]) for file, rest in self.done.items()]
                write_whole(self.progress, "\n".join([self.head, *lines, ""]))
                self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        with self._stack:
            if self.path is not None and self.results:
                self.write()

    def _read(self) -> None:
        """Take what an earlier run with the same settings left."""
        head, *lines = self.progress.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
        for line in lines if head == self.head else ():
            with suppress(ValueError):  # the last one, of a run that was killed
                file, state, result = json.loads(line)
                self.done[file] = state, result

    def find(self, file: str) -> Result | None:
        """The result of a file that was read before and has not changed since."""
        state, result = self.done.get(_place(file), (None, None))
        return result if state == _state(file) else None

    def add(self, name: str, file: str, result: Result) -> None:
        """Keep a result, under the name that the output calls the video by."""
        self.results.append({"video": name} | result)
        if self.path is None:
            return
        if result["error"] is None and self.find(file) is None:
            self.done[_place(file)] = _state(file), result
            with open(self.progress, "a", encoding="utf-8", errors="surrogateescape") as progress:
                progress.write(json.dumps([_place(file), _state(file), result]) + "\n")
        if time.monotonic() - self._written >= SAVE_EVERY:
            self.write()

    def ordered(self) -> list[Result]:
        """The results, in the order of the names."""
        return sorted(self.results, key=lambda result: self.order[result["video"]])

    def write(self) -> None:
        """Write the output: what there is of it."""
        assert self.path is not None
        if self.path.suffix.lower() == ".json":
            content = json.dumps(self.facts | {"videos": self.ordered()}, indent=2) + "\n"
        else:
            table = io.StringIO()
            writer = csv.DictWriter(table, COLUMNS, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for result in self.ordered() for row in rows_of(result))
            content = table.getvalue()
        write_whole(self.path, content)
        self._written = time.monotonic()


def score_all(
    classify: ZeroShotVideoClassificationPipeline,
    labels: Labels,
    videos: Videos,
    saved: SavedScores,
    *,
    window: float | None = None,
    num_workers: int = 2,
    show_progress: bool = False,
    **options: Any,
) -> None:
    """Score the videos that have no result yet, and keep the results.

    Args:
        classify: The pipeline.
        labels: The candidate labels, as the pipeline takes them.
        videos: As `find_videos` lists them.
        saved: Where the results go.
        window: Seconds of a window; None to score whole videos.
        num_workers: Processes that read whole videos.
        show_progress: Draw a bar.
        **options: See `score_videos` and `score_windows`.

    Raises:
        ValueError, OSError: As these two.
    """
    classify.class_features(labels)  # bad labels are known before the work
    new = []
    for name, file in zip(videos.names, videos.files, strict=True):
        known = None if options.get("timeline") else saved.find(file)
        if known is None:
            new.append((name, file))
        else:
            saved.add(name, file, known)
    if window is not None:
        for name, file in new:
            found = score_windows(classify, labels, file, window=window, show_progress=show_progress, **options)
            saved.add(name, file, found)
        return
    results = score_videos(classify, labels, [file for _, file in new], num_workers=num_workers, **options)
    for index, result in tqdm(results, total=len(new), unit="video", disable=not (show_progress and new)):
        name, file = new[index]
        saved.add(name, file, result)


def settings_of(classify: ZeroShotVideoClassificationPipeline, labels: Labels, **options: Any) -> dict[str, Any]:
    """What scores depend on, for `SavedScores`.

    Args:
        classify: The pipeline.
        labels: The candidate labels, as the pipeline takes them.
        **options: Options of the scoring, which JSON can hold, and `examples`.
    """
    processor = classify.processor.video_processor
    model = fingerprint(classify.model, classify.model.config.to_dict(), processor.to_dict(), type(classify).__name__)
    named = list(labels.items()) if isinstance(labels, Mapping) else list(labels)
    if (examples := options.get("examples")) is not None:
        tensors = (examples.targets, examples.frame_embeds, examples.temporal_embeds)
        options["examples"] = fingerprint(*tensors, list(examples.labels))
    return {"model": model, "labels": named, "reading": reading_version(), **options}


def load_examples(
    classify: ZeroShotVideoClassificationPipeline, source: str | os.PathLike[str], num_workers: int = 2
) -> tuple[ExampleSet, list[str]]:
    """Examples of labels from a folder of videos, or from the file of a set.

    Args:
        classify: The pipeline.
        source: A folder with one folder of videos per label, named by it (of a data set with splits, `train`); or a
            file that `ExampleSet.save` wrote.
        num_workers: Processes that read videos.

    Returns:
        The set; and sentences on what was left out of a folder, and which names became which words.

    Raises:
        FileNotFoundError: If there is neither at the path.
        ValueError: For a folder without folders of videos, a video that can't be read, and a file of something else or
            of another model.
    """
    if not Path(source).is_dir():
        return ExampleSet.load(source, classify.model), []
    config = VideoFolderConfig(data_dir=os.fspath(source), splits=("train",))
    videos: dict[str, list[str]] = {}
    for clip in next(iter(config.clips.values())):
        videos.setdefault(config.label_set.classes[clip.label], []).append(os.path.join(source, clip.path))
    return ExampleSet.from_videos(classify, videos, num_workers=num_workers), config.notes


def _place(file: str) -> str:
    return file if is_url(file) else os.path.abspath(file)


def _state(file: str) -> list[int]:
    """Size and time of change; those of a URL are 0."""
    try:
        found = os.stat(file)
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]


__all__ = [
    "COLUMNS",
    "LONG_SECONDS",
    "SavedScores",
    "TrainingClassesPipeline",
    "load_examples",
    "over_training_classes",
    "rows_of",
    "score_all",
    "score_videos",
    "score_windows",
    "settings_of",
]
