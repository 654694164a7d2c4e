"""A video of any length → its windows, some at a time, with the frames that the model sees of them, each once."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from .video_file import open_video
from .video_inputs import open_encoded
from .video_options import READING_OPTIONS
from .video_source import Source, VideoDecodeError

# A window has a fixed number of frames, and PyAV reads it in order.
WINDOW_OPTIONS = tuple(name for name in READING_OPTIONS if name not in ("fps", "video_backend"))
THUMBNAIL_SIDE = 128  # pixels, the longer one


class Windows(NamedTuple):
    """Some windows that follow one another, and the frames of theirs that no earlier ones had.

    Attributes:
        spans: (start, end) of each of b windows, in seconds.
        frames: Numbers of the frames that the model sees of each, clip after clip, k · t.
        new: Numbers of the frames whose pixels are here.
        pixels: Of these, uint8 [crops, n, 3, h, w], not yet normalised.
        oldest: No later window has a frame of a lower number than this.
        thumbnails: Of each window's middle frame, uint8 [h, w, 3], RGB, if they were asked for.

        Shapes: k clips, t frames per clip, n new frames.
    """

    spans: list[tuple[float, float]]
    frames: list[list[int]]
    new: list[int]
    pixels: np.ndarray
    oldest: int
    thumbnails: list[np.ndarray]


@dataclass(eq=False)
class HeldFrame:
    """A frame that a window still needs: when it is shown, and how it looks at the model's size."""

    number: int
    seconds: float
    image: torch.Tensor  # uint8 [3, h, w], resized and not yet cropped
    is_given: bool = False


class Window(NamedTuple):
    """A window that is complete.

    Attributes:
        start, end: in seconds.
        frames: those that begin in it; after `WindowReader.sample`, those that the model sees.
        oldest: the number of the first one that begins in it.
    """

    start: float
    end: float
    frames: list[HeldFrame]
    oldest: int


class WindowCutter:
    """Frames in the order of their times → windows, each as soon as it is complete; the one place that cuts.

    >>> for number, (seconds, image) in enumerate(frames):
    ...     windows += cutter.advance(seconds)
    ...     if cutter.holds(seconds):
    ...         cutter.add(HeldFrame(number, seconds, image))
    >>> windows += cutter.finish(seconds + 1 / 30)

    Windows start at 0, `stride`, 2 · `stride`, ... seconds. One in which no frame begins is left out.

    Attributes:
        held: the frames from the start of the current window on.

    Args:
        window: Length of a window, in seconds.
        stride: From the start of one window to that of the next, in seconds.
    """

    def __init__(self, window: float, stride: float) -> None:
        self.window, self.stride = float(window), float(stride)
        self.held: deque[HeldFrame] = deque()
        self._number, self._start, self._end = 0, 0.0, self.window  # of the window that waits for its frames

    def advance(self, seconds: float) -> Iterator[Window]:
        """The windows that are complete before a frame of this time."""
        while seconds >= self._end:
            if frames := [each for each in self.held if self._start <= each.seconds < self._end]:
                yield Window(self._start, self._end, frames, frames[0].number)
            # Where nothing is held, the windows before this frame are passed over at once.
            jump = int((seconds - self.window) / self.stride)
            self._number = self._number + 1 if self.held else max(self._number + 1, jump)
            self._start = round(self._number * self.stride, 6)
            self._end = round(self._number * self.stride + self.window, 6)
            while self.held and self.held[0].seconds < self._start:
                self.held.popleft()

    def holds(self, seconds: float) -> bool:
        """Whether a frame of this time is in the current window, or a later one; after `advance`."""
        return seconds >= self._start

    def add(self, frame: HeldFrame) -> None:
        """Take the next frame, one that it `holds`."""
        self.held.append(frame)

    def finish(self, end: float) -> Iterator[Window]:
        """The window that the frames ended in, at most one; it ends where they do."""
        if frames := [each for each in self.held if self._start <= each.seconds]:
            yield Window(self._start, min(self._end, end), frames, frames[0].number)


def check_window(window: Any, stride: Any, batch_size: Any) -> None:
    """Refuse what is no length of a window, no stride, or no number of windows.

    Raises:
        ValueError: naming the argument and its value.
    """
    for name, value in (("window", window), ("stride", stride)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1e-3 <= value < float("inf"):
            raise ValueError(f"{name} is {value!r}: pass a number of seconds from 0.001 on")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}: pass a whole number of windows from 1 on")


@dataclass
class WindowReader:
    """A video → its windows, in one pass over the file. It can be sent to another process.

    Windows start at 0, `stride`, 2 · `stride`, ... seconds. A window [start, end) has the frames that are shown first
    within it, by the file's time stamps. The first window that reaches the end of the video is the last one, and ends
    there. A window in which no frame begins is left out. Only the resized frames of the current window and the batch
    are kept.

    Attributes:
        video_processor: Samples, resizes and crops.
        num_frames: Frames per clip, t.
        window: Length of a window, in seconds.
        stride: From the start of one window to that of the next, in seconds.
        batch_size: Windows given at a time.
        given: Options of `WINDOW_OPTIONS` that are not the processor's own.
        thumbnails: Whether to make them.
    """

    video_processor: Any
    num_frames: int
    window: float
    stride: float
    batch_size: int
    given: Mapping[str, Any]
    thumbnails: bool = False

    def __post_init__(self) -> None:
        self.options = self.video_processor.reading_options(**{**self.given, "num_frames": self.num_frames})

    def open(self, video: Any, name: str = "the video") -> Source:
        """The source of a video in one of the encoded forms, see `open_encoded`.

        Raises:
            VideoDecodeError: If it can't be read.
        """
        return Source(open_encoded(video, name)[0])

    def read(self, source: Source) -> Iterator[Windows]:
        """Give the windows of a video, `batch_size` at a time.

        Args:
            source: The video.

        Raises:
            VideoDecodeError: If nothing can be decoded, or no frame lies in a window, or the file breaks off and
                `strict` is set.
            ValueError: For a window of fewer frames than `num_frames` if `short_video` is "error".
        """
        batch: list[Window] = []
        each = None
        for each in self._windows(source):
            batch.append(self.sample(each, source.name))
            if len(batch) == self.batch_size:
                yield self.pack(batch)
                batch = []
        if batch:
            yield self.pack(batch)
        if each is None:  # short windows far apart, and a video that is shorter than the way to the next
            raise VideoDecodeError(
                f"{source.name} shows no frame within a window of {self.window} s every {self.stride} s."
            )

    def _windows(self, source: Source) -> Iterator[Window]:
        """Every window with all of its frames, as soon as it is complete."""
        cutter = WindowCutter(self.window, self.stride)
        with open_video(source) as video:
            for number, (seconds, frame) in enumerate(video.frames()):
                yield from cutter.advance(seconds)
                if cutter.holds(seconds):
                    cutter.add(self.hold(number, seconds, video.image(frame), video.pixel_aspect))
            video.report(bool(self.options["strict"]))
            yield from cutter.finish(video.clock.end)

    def hold(self, number: int, seconds: float, image: np.ndarray, pixel_aspect: float = 1.0) -> HeldFrame:
        """A frame at the size from which the model's are cropped.

        Args:
            number: Counts the frames of a video; no two have the same.
            seconds: When it is shown.
            image: uint8 [h, w, 3], RGB.
            pixel_aspect: Width / height of its pixels.
        """
        frame = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
        return HeldFrame(number, seconds, self.video_processor.resize_frame(frame, pixel_aspect, options=self.options))

    def sample(self, window: Window, name: str) -> Window:
        """The window with the frames that the model sees alone, clip after clip, k · t.

        Args:
            window: With all of its frames.
            name: What messages call the video.

        Raises:
            ValueError: If it has fewer frames than `num_frames` and `short_video` is "error".
        """
        sampling = {name: self.options[name] for name in ("sampling", "num_clips", "short_video")}
        metadata, where = VideoMetadata(total_num_frames=len(window.frames)), f"{window.start:g} to {window.end:g} s"
        indices = self.video_processor.sample_frames(
            metadata, num_frames=self.num_frames, name=f"{name}, {where},", **sampling
        )
        return window._replace(frames=[window.frames[index] for index in indices.tolist()])

    def pack(self, windows: Sequence[Window]) -> Windows:
        """Sampled windows that follow one another, as a `WindowEncoder` takes them; some may be left out."""
        new = list({frame: None for window in windows for frame in window.frames if not frame.is_given})
        pixels = np.empty((1, 0, 3, 0, 0), np.uint8)
        if new:
            images = torch.stack([frame.image for frame in new])  # [n, 3, h, w]
            pixels = self.video_processor.crop_frame(images, options=self.options).numpy()
        for frame in new:
            frame.is_given = True
        middles = [window.frames[len(window.frames) // 2] for window in windows] if self.thumbnails else []
        return Windows(
            spans=[(window.start, window.end) for window in windows],
            frames=[[frame.number for frame in window.frames] for window in windows],
            new=[frame.number for frame in new],
            pixels=pixels,
            oldest=windows[-1].oldest,
            thumbnails=[_thumbnail(frame) for frame in middles],
        )


def _thumbnail(frame: HeldFrame) -> np.ndarray:
    image = Image.fromarray(frame.image.permute(1, 2, 0).numpy())
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return np.asarray(image)


class WindowEncoder:
    """Frame features of one video's windows; a frame that several windows see goes through the image tower once.

    Args:
        model: With `get_frame_features`.
        video_processor: Its own, which normalises.
        num_frames: Frames per clip, t.
    """

    def __init__(self, model: Any, video_processor: Any, num_frames: int) -> None:
        self.model, self.video_processor, self.num_frames = model, video_processor, num_frames
        self.embeds: dict[int, torch.Tensor] = {}  # of frames that later windows may have, [crops, d] each

    @torch.no_grad()
    def __call__(self, windows: Windows) -> torch.Tensor:
        """Encode the next windows of the video.

        Args:
            windows: As a `WindowReader` gives them, each once and in order.

        Returns:
            [b, v, t, d].

            Shapes: b windows, v = k · crops views, t frames, d = `projection_dim`.
        """
        if windows.new:
            pixels = self.video_processor.normalize_pixels(torch.from_numpy(windows.pixels).to(self.model.device))
            features = self.model.get_frame_features(pixels[None].to(self.model.dtype), return_dict=True)
            rows = features.pooler_output.flatten(0, -3).unbind(1)  # n × [crops, d]
            self.embeds.update(zip(windows.new, rows, strict=True))
        clips = torch.stack([torch.stack([self.embeds[number] for number in frames]) for frames in windows.frames])
        self.embeds = {number: row for number, row in self.embeds.items() if number >= windows.oldest}
        clips = clips.unflatten(1, (-1, self.num_frames)).transpose(2, 3)  # [b, k, crops, t, d]
        return clips.flatten(1, 2)


__all__ = [
    "WINDOW_OPTIONS",
    "HeldFrame",
    "Window",
    "WindowCutter",
    "WindowEncoder",
    "WindowReader",
    "Windows",
    "check_window",
]
