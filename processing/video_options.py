"""How videos are read: the options of the processor, of the pipeline and of long videos, their choices and checks."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from transformers.processing_utils import VideosKwargs


class MoTEVideoProcessorKwargs(VideosKwargs, total=False):
    """What `MoTEVideoProcessor` takes beyond transformers' own arguments, in its constructor and at each call.

    The names and their choices stand here and nowhere else: the lists below are read off.

    Attributes:
        sampling: Where the frames of a clip lie, used with `num_frames`: "uniform" (the default) spreads them over
            the video, "dense" takes them from 128 consecutive frames, "val" starts every segment at its first frame,
            "train" draws one at random from each segment.
        num_clips: Clips per video, each of `num_frames` frames.
        num_crops: 1 for the centre crop, 3 for left, right and centre (top, bottom and centre share their columns).
        short_video: What to do with a video of fewer than `num_frames` frames: "error", or "loop" to repeat frames.
        square_pixels: Whether a video with pixels that are not square (DV, DVD and broadcast files) is resized to the
            shape in which players show it. True for new processors; those saved before this option existed do not
            correct, nor do the authors of MoTE.
        video_backend: Decoder of files: "auto", "pyav", "decord" or "torchcodec". Not named `backend`, which
            transformers' `AutoVideoProcessor` takes for itself.
        strict: Whether a file that breaks off midway is an error rather than a warning.
    """

    sampling: Literal["uniform", "dense", "val", "train"] | None
    num_clips: int | None
    num_crops: Literal[1, 3] | None
    short_video: Literal["error", "loop"] | None
    square_pixels: bool | None
    video_backend: Literal["auto", "pyav", "decord", "torchcodec"] | None
    strict: bool | None


OWN_OPTIONS = {
    name: kind
    for name, kind in MoTEVideoProcessorKwargs.__annotations__.items()
    if name not in VideosKwargs.__annotations__
}
# How a video is read, which a caller may say for one call; the other arguments say what the model was trained on.
READING_OPTIONS = ("num_frames", "fps", *OWN_OPTIONS)
CHOICES: dict[str, tuple] = {
    name: choices for name, kind in OWN_OPTIONS.items() if (choices := get_args(get_args(kind)[0]))
}


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse values that options do not take; those that are not there are not looked at.

    Args:
        options: By the names of `MoTEVideoProcessorKwargs`.

    Raises:
        ValueError: for what is no choice, for numbers of frames and clips that are none, and for three crops without
            cropping.
    """
    for name in CHOICES.keys() & options.keys():
        if options[name] not in CHOICES[name]:
            raise ValueError(f"{name} is {options[name]!r}: pass one of {', '.join(map(repr, CHOICES[name]))}")
    for name in {"num_frames", "num_clips"} & options.keys():
        number = options[name]
        if number is None and name == "num_frames":
            continue  # by `fps`, or all
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {number!r}: pass a whole number from 1 on")
    if options.get("num_crops", 1) > 1 and not options.get("do_center_crop", True):
        raise ValueError(f"num_crops is {options['num_crops']} but do_center_crop is off: turn it on, or pass 1")
