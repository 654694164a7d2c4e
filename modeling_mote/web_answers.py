"""What the web app answers, to its page and over HTTP alike: a video and labels in, scores out, within limits.

No file that a visitor sends is decoded in this process (pictures of a webcam are, see `web_camera`): a reading process
opens the file or fetches the URL, and is ended if it takes too long. It connects to public addresses alone, whatever a
URL, its name server or a redirect says.
"""

import math
import multiprocessing
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .processing import AnswerOptions, ExampleSet
from .processing.class_names import to_words, unlike_words
from .processing.limits import Limits, RefusedError, check_megabytes, check_seconds, check_size
from .processing.public_fetch import fetch_public
from .processing.reading import ProcessDied, ReadingProcesses, describe_death, recorded_warnings
from .processing.timeline import merge_windows
from .processing.video_size import measure_video
from .processing.video_source import HTTP
from .processing.windows import WindowEncoder, WindowReader, Windows

# One view of a video, and of a short one repeated frames, whatever the checkpoint's processor would do.
VIEW: dict[str, Any] = {"num_clips": 1, "num_crops": 1, "short_video": "loop"}
WINDOWS_AT_A_TIME = 8


class OutOfTimeError(RefusedError):
    """It took longer than `max_working_seconds`, and was stopped."""


# ------------------------------------------------------------------------------------------------------------- labels


def hint(candidates: Mapping[str, Sequence[str]]) -> str | None:
    """What to point out about labels that look like names of folders."""
    for name, words in unlike_words(name for name, texts in candidates.items() if not texts).items():
        return f"Labels are read as they are written: did you mean “{words}” rather than “{name}”?"
    return None


def match_examples(files: Sequence[str], candidates: Mapping[str, Any]) -> dict[str, list[str]]:
    """{label: files}, each by the label that its name begins with, the longest: `red_bar_1.mp4` shows "red bar".

    Raises:
        RefusedError: For a file whose name begins with no label.
    """
    found: dict[str, list[str]] = {}
    for file in files:
        words = f"{to_words(Path(file).stem)} ".casefold()
        fitting = [label for label in candidates if words.startswith(f"{to_words(label)} ".casefold())]
        if not fitting:
            raise RefusedError(f"{Path(file).name} is named after no label: call an example `label 1.mp4`.")
        found.setdefault(max(fitting, key=len), []).append(file)
    return found


# ------------------------------------------------------------------------------------------------ the reading process


class Job(NamedTuple):
    """A video to read: its path or http(s) URL, what messages call it, and whether its windows are wanted too."""

    video: str
    name: str
    windows: bool = True


class Seen(NamedTuple):
    """What the model sees of a whole video: frames uint8 [t, 3, h, w], and the second at which each is shown."""

    frames: np.ndarray
    times: list[float | None]
    seconds: float


class Note(NamedTuple):
    """Something is wrong with a file, and why it is `refused`, or else what is done nevertheless."""

    text: str
    refused: bool


@dataclass
class VisitorReader:
    """A video → what the model sees of it, and its windows if it is longer than one. It can be sent to a process."""

    video_processor: Any
    num_frames: int
    limits: Limits
    window: float
    stride: float

    def __call__(self, job: Job) -> Iterator[Seen | Windows | Note]:
        """Read a video; what is wrong with it is a result."""
        with recorded_warnings() as warned:
            try:
                yield from self._read(job)
            except (ValueError, OSError) as error:
                yield Note(_sentence(str(error), job), refused=True)
            except Exception as error:  # whatever escapes a decoder is this video's
                yield Note(f"{job.name} can't be classified ({type(error).__name__}).", refused=True)
            else:
                if (warning := warned()) is not None:
                    yield Note(_sentence(warning, job), refused=False)

    def _read(self, job: Job) -> Iterator[Seen | Windows]:
        video: Any = job.video
        if job.video.startswith(HTTP):
            video = fetch_public(job.video, self.limits)
        else:
            check_megabytes(Path(job.video).stat().st_size, self.limits)
        size = measure_video(video)
        check_size(size, self.limits)
        options = self.video_processor.reading_options(strict=False, num_frames=self.num_frames, **VIEW)
        views, metadata = self.video_processor.read(video, job.name, options=options)
        seconds = metadata.duration or size.seconds
        check_seconds(seconds, self.limits)
        times = [index / metadata.fps if metadata.fps else None for index in metadata.frames_indices]
        yield Seen(views[0].numpy(), times, seconds)
        if job.windows and seconds > self.window:
            reader = WindowReader(
                self.video_processor,
                self.num_frames,
                self.window,
                self.stride,
                WINDOWS_AT_A_TIME,
                {**VIEW, "strict": False},
                thumbnails=True,
            )
            yield from reader.read(reader.open(video))


def _sentence(message: str, job: Job) -> str:
    """A message on one line, with the file's name in place of its path on this machine."""
    return " ".join(message.split()).replace(job.video, job.name)


# ------------------------------------------------------------------------------------------------------------ answers


@dataclass
class Answer:
    """What is known so far of one video.

    Attributes:
        name: What the video is called.
        seconds: Its length.
        frames: What the model saw of it as a whole, uint8 [t, 3, h, w].
        times: When these are shown, in seconds.
        rows: `{"label", "score", "similarity"}`, best first, as the pipeline gives them, "none of these" among them if
            the checkpoint has a calibration; of a video longer than a window, the means over its windows.
        windows: Of a longer video, as `classify_windows` gives them; empty otherwise.
        num_windows: How many there will be.
        notes: What to tell the visitor.
    """

    name: str
    seconds: float
    frames: np.ndarray
    times: list[float | None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    num_windows: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def segments(self) -> list[dict[str, Any]]:
        """Stretches of time of the same best label, see `merge_windows`."""
        return merge_windows(self.windows)


class Answers:
    """Answers some visitors at a time; each video is read in a process that can be ended.

    Args:
        classify: The zero-shot pipeline.
        limits: What is refused.
        window: Seconds of a window; longer videos are scored window by window.
        stride: Seconds from one window to the next.
        concurrency: Videos at a time, which is also the number of reading processes.
    """

    def __init__(
        self, classify: Any, limits: Limits, window: float = 4.0, stride: float = 1.0, concurrency: int = 2
    ) -> None:
        self.classify, self.limits, self.window, self.stride = classify, limits, window, stride
        self.concurrency = concurrency
        config, self.video_processor = classify.model.config, classify.processor.video_processor
        self.num_frames = self.video_processor.frames_per_clip(config) or config.num_frames
        reader = VisitorReader(self.video_processor, self.num_frames, limits, window, stride)
        # A fork of a server with threads may wait for ever; these come from a process that has none.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["modeling_mote.web_answers"])
        self.processes = [ReadingProcesses(reader, 1, context) for _ in range(concurrency)]
        self.free: queue.SimpleQueue[ReadingProcesses] = queue.SimpleQueue()
        for jobs in ([], [Job("", "nothing")]):  # all start at once, then all are there, before the first visitor
            for each in self.processes:
                deque(each.read(jobs), maxlen=0)
        for each in self.processes:
            self.free.put(each)

    def close(self) -> None:
        """End the reading processes."""
        for each in self.processes:
            each.close()

    def __call__(
        self,
        video: str,
        candidates: Mapping[str, Sequence[str]],
        name: str | None = None,
        examples: Mapping[str, Sequence[str]] | None = None,
    ) -> Iterator[Answer]:
        """Classify a video; the same answer again and again, as more of it is known.

        Args:
            video: A path or an http(s) URL.
            candidates: As `read_candidates` gives them.
            name: What messages call the video; its file name by default.
            examples: {label: paths of videos that show it}, of some of the labels.

        Raises:
            RefusedError: If it can't be read, or is more than the limits allow; an `OutOfTimeError` if it takes too
                long, after the part that was done in time.
        """
        scorer = self.scorer(candidates, examples)
        encoder = WindowEncoder(self.classify.model, self.video_processor, self.num_frames)
        answer: Answer | None = None
        video = str(video)  # no subclass of a web library, which a reading process would load
        job = Job(video, name or (video if video.startswith(HTTP) else Path(video).name))
        with closing(self.read(job)) as results:
            for result in results:
                if isinstance(result, Seen):
                    answer = Answer(job.name, result.seconds, result.frames, result.times)
                    answer.notes += [note] if (note := hint(candidates)) else []
                    if result.seconds > self.window:
                        answer.num_windows = 1 + math.ceil((result.seconds - self.window) / self.stride)
                    else:
                        answer.rows = scorer({"pixel_values_videos": self._pixels(result.frames)})[0]
                    yield answer
                    continue
                assert answer is not None  # what is seen comes first
                if isinstance(result, Note):
                    answer.notes.append(result.text)
                else:
                    for window, rows in zip(_windows(result), scorer({"frame_embeds": encoder(result)}), strict=True):
                        scores = {row["label"]: row["score"] for row in rows}
                        similarities = {row["label"]: row["similarity"] for row in rows}
                        answer.windows.append({**window, "scores": scores, "similarities": similarities})
                    answer.rows = _mean(answer.windows)
                yield answer

    def finish(self, *arguments: Any) -> Answer:
        """The whole answer; see the call, which gives it in steps."""
        return deque(self(*arguments), maxlen=1)[0]

    def see(self, video: str, name: str | None = None) -> Seen:
        """What the model sees of a whole video.

        Raises:
            RefusedError: As calls do.
        """
        job = Job(str(video), name or Path(video).name, windows=False)
        (seen,) = [result for result in self.read(job) if isinstance(result, Seen)]
        return seen

    def read(self, job: Job) -> Generator[Seen | Windows | Note, None, None]:
        """What a reading process gives for a video, in time."""
        processes, limit = self.free.get(), self.limits.max_working_seconds
        end = time.monotonic() + limit
        timer = threading.Timer(limit, processes.kill)
        timer.start()
        refusal: Note | None = None
        try:
            with closing(processes.read([job])) as results:
                for _, result in results:  # to its end, or else the process would be ended
                    if time.monotonic() > end:
                        raise OutOfTimeError(
                            f"{job.name} takes more than {limit:g} s of work: make it smaller or cut it."
                        )
                    if isinstance(result, ProcessDied):
                        raise RefusedError(describe_death(result, job.name))
                    if isinstance(result, Note) and result.refused:
                        refusal = result
                    else:
                        yield result
        finally:
            timer.cancel()
            timer.join()  # it must not end the next one's reading
            self.free.put(processes)
        if refusal is not None:
            raise RefusedError(refusal.text)

    def _pixels(self, frames: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(frames)[None].to(self.classify.device)
        return self.video_processor.normalize_pixels(pixels).to(self.classify.dtype)

    def scorer(
        self, candidates: Mapping[str, Sequence[str]], examples: Mapping[str, Sequence[str]] | None
    ) -> Callable[[dict[str, torch.Tensor]], list[list[dict[str, Any]]]]:
        """What gives the rows of each video or window, as the pipeline ranks them.

        Raises:
            RefusedError: For labels that mean nothing to the model, before any video is read, and for bad examples.
        """
        labels, options = tuple(candidates), AnswerOptions(unknown=self.classify.calibration is not None)
        try:
            options.check(labels, self.classify.calibration)
            self.classify.class_features(dict(candidates))
            shown = None if not examples else self._example_set(examples)
        except RefusedError:
            raise
        except ValueError as error:
            raise RefusedError(str(error)) from error

        return partial(self.classify.rank, options=options, candidate_labels=dict(candidates), examples=shown)

    def _example_set(self, examples: Mapping[str, Sequence[str]]) -> ExampleSet:
        """Examples, of what reading processes see of them."""
        count = sum(map(len, examples.values()))
        if count > self.limits.max_examples:
            raise RefusedError(f"{count} examples were given: this app takes up to {self.limits.max_examples}.")
        with torch.no_grad():
            features = {
                label: torch.cat(
                    [
                        self.classify.model.get_frame_features(self._pixels(self.see(video).frames)).pooler_output
                        for video in videos
                    ]
                )
                for label, videos in examples.items()
            }  # [k, t, d]
        return ExampleSet.from_features(self.classify.model, features)


def _windows(read: Windows) -> Iterator[dict[str, Any]]:
    """Start, end and thumbnail of each window."""
    for (start, end), thumbnail in zip(read.spans, read.thumbnails, strict=True):
        yield {"start": start, "end": end, "thumbnail": thumbnail}


def _mean(windows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean scores and similarities over windows, best first."""
    rows = []
    for label in windows[0]["scores"]:
        similarities = [each["similarities"][label] for each in windows]
        score = sum(each["scores"][label] for each in windows) / len(windows)
        similarity = None if None in similarities else sum(similarities) / len(windows)  # of "none of these"
        rows.append({"label": label, "score": score, "similarity": similarity})
    return sorted(rows, key=lambda row: -row["score"])


__all__ = [
    "Answer",
    "Answers",
    "Job",
    "OutOfTimeError",
    "VisitorReader",
    "match_examples",
]
