"""A visitor's webcam: pictures as they come, an answer per window as soon as it is complete.

>>> camera = CameraWindows(answers)
>>> answer = camera.add(picture, time.monotonic(), candidates)  # None until a window is complete
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .processing.limits import RefusedError
from .processing.windows import WindowCutter, WindowEncoder, WindowReader
from .web_answers import VIEW, Answer, Answers

PICTURES = ("JPEG", "PNG", "WEBP")  # what browsers send
MAX_PIXELS = 2560 * 1920  # some cameras have no smaller size than theirs
MAX_HELD = 256  # pictures of a window; more are dropped


def read_picture(payload: Any) -> np.ndarray | None:
    """A picture that a browser sent, uint8 [h, w, 3], RGB; this process decodes it, unlike files.

    Args:
        payload: As Gradio gives it: its `url` is a data URL; None for nothing.

    Raises:
        RefusedError: For what is no such picture, or too large.
    """
    if payload is None:
        return None
    try:
        scheme, _, content = payload.url.partition(":")
        if scheme != "data":  # no file of this machine, nor another machine's
            raise ValueError(scheme)
        content = base64.b64decode(content.partition(",")[2])
        with Image.open(io.BytesIO(content), formats=PICTURES) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise RefusedError(f"A picture has {picture.width} × {picture.height} pixels: too large.")
            return np.asarray(picture.convert("RGB"))
    except RefusedError:
        raise
    except Exception as error:  # Pillow has many kinds for pictures that are damaged
        raise RefusedError("What the camera sent is no picture.") from error


class CameraWindows:
    """The windows of one camera, cut as those of live streams and long videos are; pictures are shown when they come.

    Args:
        answers: What answers.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        parts = answers.video_processor, answers.num_frames, answers.window, answers.stride, 1, VIEW
        self.reader = WindowReader(*parts)
        self._count = 0
        self._begin(0.0, ())

    def _begin(self, now: float, shape: tuple[int, ...]) -> None:
        """Begin anew: the first picture, or one of another size."""
        self._began, self._shape = now, shape
        self.cutter = WindowCutter(self.answers.window, self.answers.stride)
        self.encoder = WindowEncoder(
            self.answers.classify.model, self.answers.video_processor, self.answers.num_frames
        )

    def add(self, picture: np.ndarray, now: float, candidates: Mapping[str, Sequence[str]]) -> Answer | None:
        """Take the next picture, and answer the newest window that is complete with it.

        Args:
            picture: uint8 [h, w, 3], RGB.
            now: When it came, in seconds of any clock.
            candidates: As `read_candidates` gives them.

        Returns:
            The answer, or None if no window is complete.

        Raises:
            RefusedError: For labels that mean nothing to the model.
        """
        if picture.shape != self._shape:
            self._begin(now, picture.shape)
        seconds = now - self._began
        windows = list(self.cutter.advance(seconds))
        if self.cutter.holds(seconds) and len(self.cutter.held) < MAX_HELD:
            self.cutter.add(self.reader.hold(self._count, seconds, picture))
            self._count += 1
        if not windows:
            return None
        newest = windows[-1]
        packed = self.reader.pack([self.reader.sample(newest, "the webcam")])
        (rows,) = self.answers.scorer(candidates, None)({"frame_embeds": self.encoder(packed)})
        return Answer("webcam", newest.end - newest.start, packed.pixels[0], [], rows)


__all__ = ["CameraWindows", "read_picture"]
