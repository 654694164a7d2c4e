"""What a video may be: files, URLs, bytes, rows of `datasets`, arrays, tensors, frames; alone or in batches."""

import inspect
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension

FORMS = (
    "a path, a URL, bytes, a {'path', 'bytes'} dict, an array [t, h, w, c], a tensor [t, c, h, w] or a list of frames"
)


def is_encoded(video: Any) -> bool:
    """Whether a video has to be decoded: a file, a URL, bytes, a dict of them, or a `VideoDecoder` of `datasets`."""
    return (
        isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview, Mapping))
        or hasattr(video, "read")
        or _encoded_row(video) is not None
    )


def _encoded_row(video: Any) -> Mapping[str, Any] | None:
    """The path and bytes that `datasets` keeps on a torchcodec `VideoDecoder`, which would decode them otherwise."""
    row = getattr(video, "_hf_encoded", None)
    return row if isinstance(row, Mapping) else None


def open_encoded(video: Any, name: str) -> tuple[Any, str]:
    """Bring an encoded video to a form that `decode_video` takes, and name it for messages.

    Args:
        video: Anything for which `is_encoded` holds: a path, URL, bytes, binary file, an upload that holds one (as
            FastAPI's `UploadFile`), or a dict with "bytes", "path" or both, of which the bytes count.
        name: What messages call it, if it has no name of its own.

    Returns:
        A path, URL, bytes or binary file, and the name.

    Raises:
        ValueError: for a dict without either, and a file that can only be read with `await`.
    """
    video = _encoded_row(video) or video
    if isinstance(video, Mapping):
        path, content = video.get("path"), video.get("bytes")
        if path is None and content is None:
            raise ValueError(
                f"{name} is a dict with neither 'path' nor 'bytes': its keys are {', '.join(map(str, video))}"
            )
        if content is None:
            video = path
        else:
            video = io.BytesIO(content)
            video.name = name = str(path or name)
    if isinstance(video, (str, os.PathLike)):
        return video, str(video)
    if isinstance(video, (bytearray, memoryview)):
        return bytes(video), name
    if inspect.iscoroutinefunction(getattr(video, "read", None)):
        name = str(getattr(video, "filename", None) or name)
        if not hasattr(getattr(video, "file", None), "read"):
            raise ValueError(f"{name} is a {type(video).__name__} that reads asynchronously: pass its bytes")
        return video.file, name
    return video, name


def is_one_video(videos: Any) -> bool:
    """Whether this is one video rather than a batch; a list all of frames, or one frame, is one video.

    Args:
        videos: Anything that `MoTEVideoProcessor` takes.

    Returns:
        False for lists of videos and for arrays and tensors [b, t, ...].
    """
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return videos.ndim in (3, 4)
    if isinstance(videos, (list, tuple)):
        return len(videos) > 0 and all(_is_frame(frame) for frame in videos)
    return is_encoded(videos) or isinstance(videos, Image.Image)


def _is_frame(frame: Any) -> bool:
    return isinstance(frame, Image.Image) or (isinstance(frame, (np.ndarray, torch.Tensor)) and frame.ndim in (2, 3))


def flatten_videos(videos: Any) -> list:
    """List the videos of a batch, which may be nested.

    Args:
        videos: One video, or a sequence, array or tensor of videos.

    Returns:
        The videos, in order, as they were given.

    Raises:
        ValueError: for an empty batch, and for what is no video.
    """
    if is_one_video(videos):
        return [videos]
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos)
    if not isinstance(videos, Sequence):
        shape = f" of shape {tuple(videos.shape)}" if hasattr(videos, "shape") else ""
        raise ValueError(f"{type(videos).__name__}{shape} is no video: pass {FORMS}, or a list of these")
    if len(videos) == 0:
        raise ValueError(f"an empty list holds no video: pass {FORMS}, or a list of these")
    return [video for item in videos for video in flatten_videos(item)]


def count_frames(video: Any, name: str = "the video") -> int:
    """Count the frames of a decoded video, refusing what is none.

    Args:
        video: Array or tensor of 4 dimensions, or list of frames.
        name: What messages call the video.

    Returns:
        The number of frames, at least 1.

    Raises:
        ValueError: for a still picture that is not in a list, and for no frames or no pixels.
    """
    if isinstance(video, Image.Image) or getattr(video, "ndim", 4) < 4:
        raise ValueError(
            f"{name} is a still picture: pass it in a list, [picture], to have it as a video of one frame"
        )
    if 0 in getattr(video, "shape", (len(video),)):
        raise ValueError(f"{name} is empty: its shape is {tuple(video.shape)}")
    return len(video)


def to_channels_first(video: Any, name: str = "the video", data_format: str | None = None) -> torch.Tensor:
    """Bring decoded frames of any form to one layout.

    Args:
        video: Array or tensor of 4 dimensions, or list of frames.
        name: What messages call the video.
        data_format: "channels_first" or "channels_last". By default read off the shape; if that leaves doubt,
            arrays are taken as [t, h, w, c] and tensors as [t, c, h, w].

    Returns:
        [t, c, h, w]: uint8, or float32 if the frames were floating point.

        Shapes: t frames, c = 1, 3 or 4 channels, h and w pixels.

    Raises:
        ValueError: for frames of several sizes, no channel dimension, or values outside 0 … 255.
    """
    if isinstance(video, (list, tuple)) and isinstance(video[0], Image.Image):
        if not all(isinstance(image, Image.Image) for image in video):
            raise ValueError(f"{name} mixes PIL images and arrays: pass frames of one kind")
        mode = "RGBA" if any(image.has_transparency_data for image in video) else "RGB"
        video, data_format = [np.asarray(image.convert(mode)) for image in video], ChannelDimension.LAST
    if isinstance(video, (list, tuple)):
        shapes = {tuple(frame.shape) for frame in video}
        if len(shapes) > 1:
            raise ValueError(
                f"the frames of {name} have shapes {', '.join(map(str, sorted(shapes)))}: give them one size"
            )
        if any(isinstance(frame, torch.Tensor) for frame in video):
            video = torch.stack([torch.as_tensor(frame) for frame in video])
        else:
            video = np.stack(video)
        if video.ndim == 3:  # grey frames [h, w]
            video, data_format = video[:, None], ChannelDimension.FIRST

    if data_format is None:
        places = [axis for axis in (1, -1) if video.shape[axis] in (1, 3, 4)]
        if not places:
            raise ValueError(
                f"{name} of shape {tuple(video.shape)} has no dimension of 1, 3 or 4 channels: pass an array "
                "[t, h, w, c] or a tensor [t, c, h, w]"
            )
        axis = places[0] if len(places) == 1 else 1 if isinstance(video, torch.Tensor) else -1
        data_format = ChannelDimension.FIRST if axis == 1 else ChannelDimension.LAST
    frames = _to_pixels(video, name)
    if ChannelDimension(data_format) == ChannelDimension.LAST:
        frames = frames.permute(0, 3, 1, 2)
    if frames.shape[1] == 4 and frames.is_floating_point():
        raise ValueError(f"{name} has four channels of {video.dtype}: pass RGBA as uint8, or RGB")
    return frames


def _to_pixels(video: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Make a uint8 or float32 tensor of the same shape, checking that integers are pixel values."""
    if isinstance(video, np.ndarray):
        if video.dtype.kind not in "uif":
            raise ValueError(f"{name} has values of dtype {video.dtype}: pass uint8 pixels")
        if video.dtype.kind in "ui" and video.dtype != np.uint8:
            video = video.astype(np.int64)  # torch has no arithmetic for some unsigned types
        video = torch.from_numpy(np.require(video, requirements=["C", "W"]))
    if video.is_floating_point():
        return video.float()
    if video.dtype == torch.bool or video.is_complex():
        raise ValueError(f"{name} has values of dtype {video.dtype}: pass uint8 pixels")
    if video.dtype != torch.uint8 and (video.min() < 0 or video.max() > 255):
        raise ValueError(f"{name} has values from {video.min()} to {video.max()}: pass pixels from 0 to 255")
    return video.to(torch.uint8)
