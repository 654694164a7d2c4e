"""Scores over time: sliding windows over a video of any length, each frame encoded once.

>>> classify = pipeline("zero-shot-video-classification", model="org/mote-vitb16")
>>> windows = list(classify_windows(classify, "match.mp4", ["serving", "celebrating", "resting"]))
>>> merge_windows(windows)
[{'start': 0.0, 'end': 6.5, 'label': 'resting', 'score': 0.81}, {'start': 6.5, 'end': 12.5, 'label': 'serving', ...
>>> plot_timeline(windows).savefig("timeline.png")
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from .pipeline_mote import ZeroShotVideoClassificationPipeline
from .video_file import open_video
from .video_inputs import open_encoded
from .video_options import READING_OPTIONS
from .video_source import Source, VideoDecodeError

# A window has a fixed number of frames, and PyAV reads it in order.
OPTIONS = ("prompts", *(name for name in READING_OPTIONS if name not in ("fps", "video_backend")))
THUMBNAIL_SIDE = 128  # pixels, the longer one


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
    source = Source(open_encoded(video, "the video")[0])
    return _classify(scorer, source, window, stride, batch_size)


def _classify(
    scorer: "_Scorer", source: Source, window: float, stride: float, batch_size: int
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
    source: Source, window: float, stride: float, resize: Callable[[np.ndarray, float], torch.Tensor], strict: bool
) -> Iterator[_Window]:
    """Every window with all of its frames, as soon as it is complete."""
    number, start, end = 0, 0.0, float(window)  # of the window that waits for its frames
    held: deque[_Frame] = deque()  # the frames from its start on
    with open_video(source) as video:
        for seconds, frame in video.frames():
            while seconds >= end:
                if frames := [each for each in held if start <= each.seconds < end]:
                    yield _Window(start, end, frames)
                # Where nothing is held, the windows before this frame are passed over at once.
                number = number + 1 if held else max(number + 1, int((seconds - window) / stride))
                start, end = round(number * stride, 6), round(number * stride + window, 6)
                while held and held[0].seconds < start:
                    held.popleft()
            if seconds >= start:
                held.append(_Frame(seconds, resize(video.image(frame), video.pixel_aspect)))
        video.report(strict)
        if frames := [each for each in held if start <= each.seconds]:
            yield _Window(start, min(end, video.clock.end), frames)


class _Scorer:
    """The steps of the pipeline, one frame or window at a time."""

    def __init__(self, classify: Any, processing: Mapping[str, Any], forward: Mapping[str, Any]) -> None:
        self.classify, self.forward = classify, forward
        self.processor = classify.processor.video_processor
        own_frames = self.processor.frames_per_clip(classify.model.config)
        self.num_frames = processing.get("num_frames", own_frames or classify.model.config.num_frames)
        self.options = self.processor.reading_options(**{**processing, "num_frames": self.num_frames})
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


__all__ = ["classify_windows"]
