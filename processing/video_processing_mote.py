"""Videos of any form to CLIP pixels: decode, sample frames, resize, crop and normalise."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import VideosKwargs
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, default_sample_indices_fn, make_batched_metadata

from .frame_sampling import sample_indices
from .video_decoding import decode_video

logger = logging.get_logger(__name__)

CHOICES: dict[str, tuple] = {
    "sampling": ("uniform", "dense", "val", "train"),
    "num_crops": (1, 3),
    "short_video": ("error", "loop"),
    "video_backend": ("auto", "pyav", "decord", "torchcodec"),
}
FORMS = (
    "a path, a URL, bytes, a {'path', 'bytes'} dict, an array [t, h, w, c], a tensor [t, c, h, w] or a list of frames"
)


class MoTEVideoProcessorKwargs(VideosKwargs, total=False):
    """What `MoTEVideoProcessor` takes beyond transformers' own arguments, in its constructor and at each call.

    Attributes:
        sampling: Where the frames of a clip lie, used with `num_frames`: "uniform" (the default) spreads them over
            the video, "dense" takes them from 128 consecutive frames, "val" starts every segment at its first frame,
            "train" draws one at random from each segment.
        num_clips: Clips a video, each of `num_frames` frames.
        num_crops: 1 for the centre crop, 3 for left, right and centre (top, bottom and centre share their columns).
        short_video: What to do with a video of fewer than `num_frames` frames: "error", or "loop" to repeat frames.
        video_backend: Decoder of files: "auto", "pyav", "decord" or "torchcodec". Not named `backend`, which
            transformers' `AutoVideoProcessor` takes for itself.
        strict: Whether a file that breaks off midway is an error rather than a warning.
    """

    sampling: str | None
    num_clips: int | None
    num_crops: int | None
    short_video: str | None
    video_backend: str | None
    strict: bool | None


OWN_KWARGS = tuple(
    name for name in MoTEVideoProcessorKwargs.__annotations__ if name not in VideosKwargs.__annotations__
)


class MoTEVideoProcessor(BaseVideoProcessor):
    """Turn videos into `pixel_values_videos` for MoTE.

    A video is a path, a URL, bytes, a `{"path", "bytes"}` dict as in `datasets`, an array [t, h, w, c], a tensor
    [t, c, h, w] or a list of frames (PIL images or arrays); a batch may mix them, at any lengths and sizes. Arrays
    with the channels in the other place are understood wherever the shape leaves no doubt.

    Frames are resized to a shortest edge of 224 (bicubic, antialiased) and cropped to 224 × 224 at offsets
    `round((h - 224) / 2)`, `round((w - 224) / 2)`, half to even, as the authors of MoTE (arXiv 2410.10589) do.

    The result is [b, t, c, h, w], or [b, v, t, c, h, w] where `num_clips * num_crops` = v > 1, the crops of one clip
    side by side. With `do_sample_frames=True` and `num_frames` set, every video gives exactly `num_frames` frames a
    view; without `num_frames` or `fps`, all its frames.

    Shapes: b videos, v views, t frames, c = 3 channels, h and w pixels.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    fps: float | None = None
    num_frames: int | None = None  # a number here would make sampling by `fps` impossible; checkpoints save theirs
    sampling = "uniform"
    num_clips = 1
    num_crops = 1
    short_video = "error"
    video_backend = "auto"
    strict = False
    valid_kwargs: Any = MoTEVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._check_options({name: getattr(self, name) for name in (*OWN_KWARGS, "num_frames", "do_center_crop")})

    @staticmethod
    def _check_options(options: Mapping[str, Any]) -> None:
        for name, allowed in CHOICES.items():
            if options[name] not in allowed:
                raise ValueError(f"{name} is {options[name]!r}: pass one of {', '.join(map(repr, allowed))}")
        for name in ("num_clips", "num_frames"):
            number = options[name]
            if not (number is None and name == "num_frames") and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} is {number!r}: pass a whole number from 1 on")
        if options["num_crops"] > 1 and not options["do_center_crop"]:
            raise ValueError(f"num_crops is {options['num_crops']} but do_center_crop is off: turn it on, or pass 1")

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Decode, sample, resize, crop and normalise videos.

        Args:
            videos: One video or a batch of them, in any of the forms that the class names.
            **kwargs: Fields of `MoTEVideoProcessorKwargs`, for this call. `num_frames` here puts aside an `fps` set
                on the processor, and the other way round.

        Returns:
            `pixel_values_videos`, float32 [b, t, c, h, w], or [b, v, t, c, h, w] for several views; a list of
            tensors where `return_tensors` is not given. With `return_metadata`, `video_metadata` too.

        Raises:
            ValueError: for something that is no video or cannot be decoded, for fewer frames than `num_frames`
                unless `short_video` is "loop", and for videos that cannot be stacked.
        """
        try:
            validate_typed_dict(self.valid_kwargs, kwargs)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(" ".join(str(error).split())) from error
        if kwargs.get("fps") is not None:
            kwargs.setdefault("num_frames", None)
        elif kwargs.get("num_frames") is not None:
            kwargs.setdefault("fps", None)
        kwargs.update({name: getattr(self, name) for name in OWN_KWARGS if kwargs.get(name) is None})
        options = {name: kwargs.get(name, getattr(self, name, None)) for name in self.valid_kwargs.__annotations__}
        self._check_options(options)

        batch = flatten_videos(videos)
        given = kwargs.pop("video_metadata", None)
        known = [None] * len(batch) if given is None else make_batched_metadata(batch, given)
        loaded = [
            self._load(video, known[index], f"video {index} of {len(batch)}", options)
            for index, video in enumerate(batch)
        ]
        if not options["do_sample_frames"]:
            kwargs["num_clips"] = 1  # all the frames are one clip
        kwargs.update(do_sample_frames=False, input_data_format=ChannelDimension.FIRST)
        return super().preprocess(
            [frames for frames, _ in loaded], video_metadata=[metadata for _, metadata in loaded], **kwargs
        )

    def fetch_videos(
        self, video_url_or_urls: Any, sample_indices_fn: Callable[[VideoMetadata], np.ndarray] | None = None
    ) -> Any:
        """Decode files, URLs or bytes with the package's own decoders; transformers calls this for chat templates.

        Args:
            video_url_or_urls: One video, or a list of them.
            sample_indices_fn: Gives the indices of the frames to keep. None keeps them all.

        Returns:
            Frames, uint8 [t, h, w, c], and their `VideoMetadata`; for a list, a tuple of each.
        """
        if isinstance(video_url_or_urls, list):
            return list(
                zip(*(self.fetch_videos(video, sample_indices_fn) for video in video_url_or_urls), strict=True)
            )
        return decode_video(video_url_or_urls, sample_indices_fn, backend=self.video_backend, strict=self.strict)

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: int | float | None = None,
        sampling: str | None = None,
        num_clips: int | None = None,
        short_video: str | None = None,
        name: str = "the video",
        **kwargs: Any,
    ) -> np.ndarray:
        """Choose the frames of one video.

        Args:
            metadata: Of the video; `total_num_frames` must be set, and `fps` to sample by it.
            num_frames: Frames a clip, t. Together with `fps` None: the processor's own.
            fps: Frames a second of video, in place of `num_frames`, spread as transformers does.
            sampling: See `MoTEVideoProcessorKwargs`; the processor's own by default, as the next two.
            num_clips: Clips a video, k.
            short_video: Policy for a video of fewer than `num_frames` frames.
            name: What messages call the video.
            **kwargs: Not used; transformers passes all its arguments.

        Returns:
            int64 array [k * t], clip after clip.

        Raises:
            ValueError: if the video is shorter than asked and `short_video` is "error", if both or neither of what
                the sampling needs is given, or if the frame rate is needed and not known.
        """
        if num_frames is None and fps is None:
            num_frames, fps = self.num_frames, self.fps
        num_clips = self.num_clips if num_clips is None else num_clips
        if num_frames is None:
            if num_clips > 1:
                raise ValueError(f"num_clips={num_clips} needs num_frames, the number of frames of each clip")
            try:
                return default_sample_indices_fn(metadata, fps=fps)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if fps is not None:
            raise ValueError(f"num_frames={num_frames} and fps={fps} exclude each other: pass one of them")
        if num_frames > metadata.total_num_frames and (short_video or self.short_video) == "error":
            raise ValueError(
                f"{name} has {metadata.total_num_frames} frames, fewer than num_frames={num_frames}: pass a smaller "
                "num_frames, or short_video='loop' to repeat frames"
            )
        sampling = sampling or self.sampling
        # Seeded by torch's global state, so that transformers' set_seed fixes training frames too.
        generator = np.random.default_rng(int(torch.randint(2**63 - 1, ()))) if sampling == "train" else None
        return sample_indices(metadata.total_num_frames, num_frames, sampling, num_clips, generator)

    def _load(
        self, video: Any, metadata: VideoMetadata | None, name: str, options: Mapping[str, Any]
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """Give the sampled frames [k * t, c, h, w] of one video, uint8 (or float, as given), and its metadata."""
        choose = None
        if is_encoded(video):
            video, name = open_encoded(video, name)
        if options["do_sample_frames"]:
            names = ("num_frames", "fps", "sampling", "num_clips", "short_video")
            choose = partial(self.sample_frames, name=name, **{option: options[option] for option in names})
        if is_encoded(video):
            images, metadata = decode_video(
                video, choose, backend=options["video_backend"], strict=bool(options["strict"])
            )
            return torch.from_numpy(images).permute(0, 3, 1, 2), metadata

        frames = to_channels_first(video, name, options["input_data_format"])
        if options["do_rescale"] and frames.is_floating_point() and frames.min() >= 0 and frames.max() <= 1:
            logger.warning(f"{name} seems to be rescaled to [0, 1] already: pass do_rescale=False for such pixels")
        length, _, height, width = frames.shape
        if metadata is None:
            metadata = VideoMetadata(total_num_frames=length, height=height, width=width)
        indices = np.arange(length) if choose is None else choose(metadata)
        if len(indices) and indices.max() >= length:
            raise ValueError(
                f"{name} has {length} frames but its video_metadata says {metadata.total_num_frames}: correct "
                "total_num_frames, or pass do_sample_frames=False for frames that are sampled already"
            )
        metadata = replace(metadata, frames_indices=indices.tolist())
        return frames if choose is None else frames[torch.from_numpy(indices)], metadata

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rescale and normalise cropped frames as a call of the processor would, on the device where they are.

        Args:
            pixels: uint8, or any dtype on the scale of 0 to 255, [..., 3, h, w].

        Returns:
            float32, of the same shape.
        """
        mean: Any
        std: Any
        mean, std = (tuple(values) for values in (self.image_mean, self.image_std))  # it hashes them
        return self.rescale_and_normalize(pixels, self.do_rescale, self.rescale_factor, self.do_normalize, mean, std)

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """Repeat grey frames and blend transparent ones with white, as transformers does, keeping the dtype.

        Args:
            video: [t, c, h, w], c = 1, 3 or 4.

        Returns:
            [t, 3, h, w].
        """
        rgb: Any = super().convert_to_rgb(video)
        return rgb if rgb.dtype == video.dtype else rgb.round().to(video.dtype)

    def center_crop(self, image: torch.Tensor, size: Any, **kwargs: Any) -> torch.Tensor:
        """Crop the middle at offsets rounded half to even; transformers rounds them down, one pixel off.

        Args:
            image: [..., h, w]; padded with zeros where smaller than the crop.
            size: `SizeDict` with the height and width of the crop, in pixels.
            **kwargs: Not used.

        Returns:
            [..., size.height, size.width].
        """
        height, width = image.shape[-2:]
        if size.height > height or size.width > width:
            return super().center_crop(image, size)
        return tvF.crop(
            image, round((height - size.height) / 2), round((width - size.width) / 2), size.height, size.width
        )

    def three_crops(self, image: torch.Tensor, size: Any) -> list[torch.Tensor]:
        """Crop left, right and centre, at the authors' offsets on a grid of quarters of the margin.

        Args:
            image: [..., h, w], at least as large as the crop.
            size: `SizeDict` with the height and width of the crop, in pixels.

        Returns:
            Three tensors [..., size.height, size.width].

        Raises:
            ValueError: if the image is smaller than the crop.
        """
        height, width = image.shape[-2:]
        if size.height > height or size.width > width:
            raise ValueError(
                f"frames of {height} × {width} are smaller than the three crops of {size.height} × {size.width}: "
                "pass a larger size, a smaller crop_size, or num_crops=1"
            )
        step_y, step_x = (height - size.height) // 4, (width - size.width) // 4
        return [tvF.crop(image, 2 * step_y, left, size.height, size.width) for left in (0, 4 * step_x, 2 * step_x)]

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        num_clips: int = 1,
        num_crops: int = 1,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        pixel_values = []
        for video in videos:  # [k * t, c, h, w], k clips
            if do_resize:
                video = self.resize(video, size=size, resample=resample)
            if num_crops == 1 and do_center_crop:
                video = self.center_crop(video, crop_size)
            # Decoded frames hold the channels last, where arithmetic by channel is several times slower.
            video = self.rescale_and_normalize(
                video.contiguous(), do_rescale, rescale_factor, do_normalize, image_mean, image_std
            ).unflatten(0, (num_clips, -1))  # [k, t, c, h, w]
            crops = self.three_crops(video, crop_size) if num_crops > 1 else [video]
            views = crops[0] if len(crops) == 1 else torch.stack(crops, dim=1).flatten(0, 1)  # [v, t, c, h, w]
            pixel_values.append(views[0] if len(views) == 1 else views)
        shapes = {tuple(video.shape) for video in pixel_values}
        if return_tensors is not None and len(shapes) > 1:
            raise ValueError(
                f"videos of shapes {', '.join(map(str, sorted(shapes)))} cannot be stacked: pass num_frames= and keep "
                "do_sample_frames and do_center_crop on, or leave return_tensors out to get a list"
            )
        # A single video needs no copy to become a batch.
        batch = pixel_values[0][None] if return_tensors is not None and len(pixel_values) == 1 else pixel_values
        return BatchFeature(data={"pixel_values_videos": batch}, tensor_type=return_tensors)


def is_encoded(video: Any) -> bool:
    """Whether a video is a file, a URL, bytes or a dict of them, which has to be decoded."""
    return isinstance(video, (str, os.PathLike, bytes, bytearray, memoryview, Mapping)) or hasattr(video, "read")


def open_encoded(video: Any, name: str) -> tuple[Any, str]:
    """Bring an encoded video to a form that `decode_video` takes, and name it for messages.

    Args:
        video: Path, URL, bytes, binary file, or a dict with "bytes", "path" or both, of which the bytes count.
        name: Its name where it has none of its own.

    Returns:
        A path, URL, bytes or binary file, and the name.

    Raises:
        ValueError: for a dict without either.
    """
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


def to_channels_first(video: Any, name: str = "the video", data_format: str | None = None) -> torch.Tensor:
    """Bring decoded frames of any form to one layout.

    Args:
        video: Array or tensor of 4 dimensions (3 for one frame), PIL image, or list of frames.
        name: What messages call the video.
        data_format: "channels_first" or "channels_last". By default read off the shape, and where that leaves
            doubt, arrays are taken as [t, h, w, c] and tensors as [t, c, h, w].

    Returns:
        [t, c, h, w]: uint8, or float32 where the frames were floating point.

    Raises:
        ValueError: for frames of several sizes, no frames, no channel dimension, or values outside 0 … 255.
    """
    if isinstance(video, Image.Image) or (isinstance(video, (list, tuple)) and isinstance(video[0], Image.Image)):
        images = list(video) if isinstance(video, (list, tuple)) else [video]
        if not all(isinstance(image, Image.Image) for image in images):
            raise ValueError(f"{name} mixes PIL images and arrays: pass frames of one kind")
        mode = "RGBA" if any(image.has_transparency_data for image in images) else "RGB"
        video, data_format = [np.asarray(image.convert(mode)) for image in images], ChannelDimension.LAST
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
    if video.ndim == 3:
        video = video[None]
    if 0 in video.shape:
        raise ValueError(f"{name} is empty: its shape is {tuple(video.shape)}")

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
