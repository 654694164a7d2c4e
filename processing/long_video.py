"""Scores over time: sliding windows over a video of any length, merged into segments and drawn as a timeline.

>>> classify = pipeline("zero-shot-video-classification", model="org/mote-vitb16")
>>> windows = list(classify_windows(classify, "match.mp4", ["serving", "celebrating", "resting"]))
>>> merge_windows(windows)
[{'start': 0.0, 'end': 6.5, 'label': 'resting', 'score': 0.81}, {'start': 6.5, 'end': 12.5, 'label': 'serving', ...
>>> plot_timeline(windows).savefig("timeline.png")
"""

import io
import textwrap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from .pipeline_mote import ZeroShotVideoClassificationPipeline
from .video_decoding import VideoDecodeError, _Clock, _frames, _Inventory, _Pass, _Picture, _reason, _report, _Source
from .video_inputs import open_encoded
from .video_processing_mote import READING_OPTIONS

# A window has a fixed number of frames, and PyAV reads it in order.
OPTIONS = ("prompts", *(name for name in READING_OPTIONS if name not in ("fps", "video_backend")))
THUMBNAIL_SIDE = 128  # pixels, the longer one
THUMBNAILS = 8  # in a timeline
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")  # each for ten labels


@dataclass(eq=False)
class _Frame:
    """A frame that a window still needs: when it is shown, and how it looks at the model's size."""

    seconds: float
    image: torch.Tensor  # uint8 [3, h, w], resized and not yet cropped
    embeds: torch.Tensor | None = None  # [crops, d], once a window that has it was scored


class _Window(NamedTuple):
    start: float
    end: float
    frames: list[_Frame]


def classify_windows(
    classify: ZeroShotVideoClassificationPipeline,
    video: Any,
    candidate_labels: Iterable[str] | str | None,
    *,
    window: float = 4.0,
    stride: float = 1.0,
    batch_size: int = 8,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Score a long video against labels, window by window, in one pass over the file.

    Windows start at 0, `stride`, 2 · `stride`, ... seconds. A window [start, end) has the frames that are shown first
    within it, by the file's time stamps, and scores as `classify(decode_video(video, start=start, end=end)[0])` does.
    The first window that reaches the end of the video is the last one, and ends there: every frame is in some window
    (if `stride` is at most `window`), only the last is shorter, and a video shorter than `window` is one window. A
    window in which no frame begins is left out.

    Memory does not grow with the video (a URL's apart, which is fetched whole): only the resized frames of the current
    window and the batch are kept. A frame that several windows sample goes through the image tower once.

    Args:
        classify: The zero-shot pipeline.
        video: A path, an http(s) URL, the bytes of a file, a binary file or a `{"path", "bytes"}` dict.
        candidate_labels: Names of the classes, a list or a comma-separated string; None for those that the pipeline
            was made with.
        window: Length of a window, in seconds.
        stride: From the start of one window to that of the next, in seconds.
        batch_size: Windows scored at a time.
        **options: `prompts`, `num_frames`, `num_clips`, `num_crops`, `sampling`, `short_video` and `strict`, as the
            pipeline takes them; its own by default.

    Returns:
        An iterator over the windows, in order: `{"start", "end", "scores", "thumbnail"}`, times in seconds, `scores`
        {label: score} over all labels, best first, summing to 1, `thumbnail` uint8 [h, w, 3], RGB, the middle frame
        with at most 128 pixels a side.

    Raises:
        ValueError: For bad labels and options, and a window of fewer frames than `num_frames` where `short_video` is
            "error".
        VideoDecodeError: If nothing can be decoded, or the file breaks off and `strict` is set. Without `strict`, the
            windows of what can be decoded are given, and one warning.
        FileNotFoundError: If there is no file at the path (a `VideoDecodeError` too).
        TypeError: If `video` is none of the above kinds.
    """
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-3 <= value < float("inf"):
            raise ValueError(f"{name} is {value!r}: pass a number of seconds from 0.001 on")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}: pass a whole number of windows from 1 on")
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r} of classify_windows: it takes {', '.join(OPTIONS)}")
    processing, forward, _ = classify._sanitize_parameters(candidate_labels=candidate_labels, **options)
    processing, forward = classify._preprocess_params | processing, classify._forward_params | forward
    if "candidate_labels" not in forward:
        raise ValueError("candidate_labels is missing: pass a list of names or a comma-separated string")
    scorer = _Scorer(classify, processing, forward)
    source = _Source(open_encoded(video, "the video")[0])
    return _classify(scorer, source, window, stride, batch_size)


def _classify(
    scorer: "_Scorer", source: _Source, window: float, stride: float, batch_size: int
) -> Iterator[dict[str, Any]]:
    batch: list[_Window] = []
    each = None
    for each in _windows(source, window, stride, scorer.resize, scorer.strict):
        sampled = each._replace(frames=scorer.sample(each.frames, f"{source.name}, {each.start:g} to {each.end:g} s,"))
        batch.append(sampled)
        if len(batch) == batch_size:
            yield from scorer.score(batch)
            batch = []
    if batch:
        yield from scorer.score(batch)
    if each is None:  # short windows far apart, and a video that is shorter than the way to the next
        raise VideoDecodeError(f"{source.name} shows no frame within a window of {window} s every {stride} s.")


def _windows(
    source: _Source, window: float, stride: float, resize: Callable[[np.ndarray, float], torch.Tensor], strict: bool
) -> Iterator[_Window]:
    """Every window with all of its frames, as soon as it is complete."""
    found, last = _Pass(), 0.0
    number, start, end = 0, 0.0, float(window)  # of the window that waits for its frames
    held: deque[_Frame] = deque()  # the frames from its start on
    picture: _Picture | None = None
    failure: Exception | None = None
    with source.open() as (container, stream):
        clock, inventory = _Clock(container, stream), _Inventory(container, stream)
        try:
            for frame in _frames(container, stream, inventory):
                picture = picture or _Picture(frame, stream.sample_aspect_ratio)
                seconds = clock.tick(frame)
                while seconds >= end:
                    if frames := [each for each in held if start <= each.seconds < end]:
                        yield _Window(start, end, frames)
                    # Where nothing is held, the windows before this frame are passed over at once.
                    number = number + 1 if held else max(number + 1, int((seconds - window) / stride))
                    start, end = round(number * stride, 6), round(number * stride + window, 6)
                    while held and held[0].seconds < start:
                        held.popleft()
                if seconds >= start:
                    held.append(_Frame(seconds, resize(picture.rgb(frame), picture.pixel_aspect)))
                last, found.num_frames = max(last, seconds), found.num_frames + 1
            found.breakage = inventory.shortage()
        except av.FFmpegError as error:
            failure, found.breakage = error, _reason(error)
        duration = round(last + 1 / (clock.fps or 25.0), 6)
    if not found.num_frames:
        raise VideoDecodeError(
            f"{source.name}: no frame can be decoded ({found.breakage or 'the video stream is empty'})."
        ) from failure
    _report(source, found, strict)
    if frames := [each for each in held if start <= each.seconds]:
        yield _Window(start, min(end, duration), frames)


class _Scorer:
    """The steps of the pipeline, one frame or window at a time."""

    def __init__(self, classify: Any, processing: Mapping[str, Any], forward: Mapping[str, Any]) -> None:
        self.classify, self.forward = classify, forward
        self.processor = classify.processor.video_processor
        own_frames = self.processor.frames_per_clip(classify.model.config)
        self.num_frames = processing.get("num_frames", own_frames or classify.model.config.num_frames)
        self.options = self.processor.reading_options(**processing | {"num_frames": self.num_frames})
        self.sampling = {name: self.options[name] for name in ("sampling", "num_clips", "short_video")}
        self.strict = bool(self.options["strict"])

    def resize(self, image: np.ndarray, pixel_aspect: float) -> torch.Tensor:
        """A frame [h, w, 3] at the size from which the model's are cropped, uint8 [3, h, w]."""
        frame = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        return self.processor.resize_frame(frame, pixel_aspect, options=self.options)

    def sample(self, frames: list[_Frame], name: str) -> list[_Frame]:
        """The frames that the model sees of all frames of a window, clip after clip, k · t."""
        metadata = VideoMetadata(total_num_frames=len(frames))
        indices = self.processor.sample_frames(metadata, num_frames=self.num_frames, name=name, **self.sampling)
        return [frames[index] for index in indices.tolist()]

    @torch.no_grad()
    def embed(self, frames: list[_Frame]) -> None:
        """Image features of the frames that have none yet."""
        images = torch.stack([frame.image for frame in frames])  # [n, 3, h, w]
        crops = self.processor.crop_frame(images, options=self.options)  # [crops, n, 3, h, w]
        pixels = self.processor.normalize_pixels(crops)[None].to(self.classify.device, self.classify.dtype)
        embeds = self.classify.model.get_frame_features(pixels, return_dict=True).pooler_output
        embeds = embeds.flatten(0, -3)  # [crops, n, d]
        for index, frame in enumerate(frames):
            frame.embeds = embeds[:, index]

    def score(self, windows: list[_Window]) -> Iterator[dict[str, Any]]:
        """The results of windows whose frames are sampled."""
        new = {frame: None for window in windows for frame in window.frames if frame.embeds is None}
        if new:
            self.embed(list(new))
        clips = torch.stack([torch.stack([frame.embeds for frame in window.frames]) for window in windows])
        clips = clips.unflatten(1, (-1, self.num_frames)).transpose(2, 3)  # [b, k, crops, t, d]
        views = clips.flatten(1, 2)  # [b, v, t, d]
        logits = self.classify.forward({"frame_embeds": views}, **self.forward)["logits"]  # [b, c]
        for window, row in zip(windows, logits, strict=True):
            ranked = self.classify.postprocess({"logits": row[None]}, self.forward["candidate_labels"])
            yield {
                "start": window.start,
                "end": window.end,
                "scores": {entry["label"]: entry["score"] for entry in ranked},
                "thumbnail": _thumbnail(window.frames[len(window.frames) // 2]),
            }


def _thumbnail(frame: _Frame) -> np.ndarray:
    image = Image.fromarray(frame.image.permute(1, 2, 0).numpy())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return np.asarray(image)


def smooth_windows(windows: Iterable[Mapping[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Replace the scores of every window by their mean over the windows around it.

    Args:
        windows: As `classify_windows` gives them.
        seconds: Length of the moving average: windows whose middles lie at most half of it apart from a window's own
            count; 0 changes nothing.

    Returns:
        The windows with other scores, best first, that still sum to 1.

    Raises:
        ValueError: For a negative length.
    """
    windows = list(windows)
    if not seconds >= 0:
        raise ValueError(f"seconds is {seconds!r}: pass the length of the moving average, 0 for none")
    if not windows:
        return []
    labels = list(windows[0]["scores"])
    scores, middles = _scores(windows, labels), np.array([(each["start"] + each["end"]) / 2 for each in windows])
    first = np.searchsorted(middles, middles - seconds / 2 - 1e-6)
    behind = np.searchsorted(middles, middles + seconds / 2 + 1e-6, side="right")
    means = [scores[begin:end].mean(axis=0).tolist() for begin, end in zip(first, behind, strict=True)]
    return [
        {**each, "scores": dict(sorted(zip(labels, mean, strict=True), key=lambda item: -item[1]))}
        for each, mean in zip(windows, means, strict=True)
    ]


def merge_windows(windows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Merge neighbouring windows of the same best label into segments, which do not overlap.

    Where two windows overlap, each has its half of the overlap. A stretch of time that no window saw is no part of a
    segment.

    Args:
        windows: As `classify_windows` gives them.

    Returns:
        `{"start", "end", "label", "score"}`, in order, times in seconds, the score the mean of the label's over the
        merged windows.
    """
    windows = list(windows)
    segments: list[dict[str, Any]] = []
    counts: list[int] = []
    for (start, end), each in zip(_spans(windows), windows, strict=True):
        label = max(each["scores"], key=each["scores"].__getitem__)
        if segments and segments[-1]["label"] == label and segments[-1]["end"] == start:
            segments[-1]["end"] = end
            segments[-1]["score"] += each["scores"][label]
            counts[-1] += 1
        else:
            segments.append({"start": start, "end": end, "label": label, "score": each["scores"][label]})
            counts.append(1)
    return [segment | {"score": segment["score"] / count} for segment, count in zip(segments, counts, strict=True)]


def plot_timeline(windows: Sequence[Mapping[str, Any]], *, top_k: int = 5) -> Any:
    """Draw scores over time, under thumbnails of the video.

    Args:
        windows: As `classify_windows` gives them, at least one; those without `thumbnail` are drawn without.
        top_k: Labels drawn, those with the highest scores anywhere; the others would hide them.

    Returns:
        A `matplotlib.figure.Figure`, which shows itself in a notebook; `savefig` writes it.

    Raises:
        ValueError: If there is no window, or `top_k` is less than 1.
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure  # only who plots needs matplotlib
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    class Timeline(Figure):
        """A figure that notebooks show without pyplot, which would keep it."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    windows = list(windows)
    if not windows:
        raise ValueError("there is no window to draw: pass those that classify_windows gives")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k is {top_k!r}: pass a number of labels from 1 on")
    labels = list(windows[0]["scores"])
    scores, spans = _scores(windows, labels), _spans(windows)
    drawn = np.argsort(-scores.max(axis=0), kind="stable")[:top_k]
    begin, end = windows[0]["start"], windows[-1]["end"]

    names = [textwrap.fill(labels[label], 32) for label in drawn]
    lines = sum(name.count("\n") + 1 for name in names)
    height = max(4.5, 1 + 0.22 * lines)
    figure = Timeline(figsize=(12, height), dpi=120, layout="constrained")
    pictured = [each for each in windows if each.get("thumbnail") is not None]
    columns = min(THUMBNAILS, len(pictured))
    grid = figure.add_gridspec(2, max(columns, 1), height_ratios=(1.2, height - 1.2))
    for column in range(columns):
        shown = _nearest(pictured, begin + (column + 0.5) * (end - begin) / columns)
        strip = figure.add_subplot(grid[0, column])
        strip.imshow(shown["thumbnail"])
        strip.axis("off")

    axes = figure.add_subplot(grid[1, :] if columns else grid[:, :])
    unseen = [2 * number for number in range(1, len(spans)) if spans[number - 1][1] < spans[number][0]]
    times = np.insert(np.array(spans, float).ravel(), unseen, np.nan)  # a curve breaks where no window saw the video
    curves = []
    for rank, label in enumerate(drawn):
        heights = np.insert(np.repeat(scores[:, label], 2), unseen, np.nan)
        style = LINE_STYLES[rank // 10 % len(LINE_STYLES)]
        curves += axes.plot(times, heights, color=f"C{rank % 10}", linestyle=style, linewidth=1.8)
    axes.set(xlim=(begin, end), ylim=(0, 1.02), xlabel="seconds" if end < 60 else "time", ylabel="score")
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10] if end < 60 else [1, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _clock_time(seconds, end)))
    axes.grid(alpha=0.3)
    title = f"best {len(drawn)} of {len(labels)} labels" if len(labels) > len(drawn) else None
    legend = figure.legend(curves, names, loc="outside right upper", frameon=False, title=title)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label may cost $5
    return figure


def _scores(windows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> np.ndarray:
    """Scores [w, c] of w windows, in the order of c labels."""
    return np.array([[each["scores"][label] for label in labels] for each in windows])


def _spans(windows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Start and end of the time that each window stands for: of an overlap, neighbours have half each."""
    spans = [(each["start"], each["end"]) for each in windows]
    for index, (left, right) in enumerate(pairwise(windows)):
        if right["start"] < left["end"]:
            middle = round((right["start"] + left["end"]) / 2, 6)
            spans[index], spans[index + 1] = (spans[index][0], middle), (middle, spans[index + 1][1])
    return spans


def _nearest(windows: Sequence[Mapping[str, Any]], seconds: float) -> Mapping[str, Any]:
    return min(windows, key=lambda each: abs((each["start"] + each["end"]) / 2 - seconds))


def _clock_time(seconds: float, end: float) -> str:
    """Seconds of a video that ends at `end`, as its player would show them."""
    if end < 60:
        return f"{seconds:g}"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if end >= 3600 else f"{minutes}:{seconds:02}"
