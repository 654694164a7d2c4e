"""Videos of any form to CLIP pixels: decode, sample frames, resize, crop and normalise."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torchvision.transforms.v2 import functional as tvF
from transformers.image_processing_utils import BatchFeature, get_size_dict
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.utils import logging
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata, default_sample_indices_fn, make_batched_metadata

from .frame_sampling import sample_indices
from .video_decoding import decode_video
from .video_inputs import count_frames, flatten_videos, is_encoded, open_encoded, to_channels_first
from .video_options import READING_OPTIONS, MoTEVideoProcessorKwargs, check_options

logger = logging.get_logger(__name__)


MOST_STRETCHED = 8  # pixels further from square are a damaged header's: the widest in use are 3 times as wide as high


class MoTEVideoProcessor(BaseVideoProcessor):
    """Turn videos into `pixel_values_videos` for MoTE.

    A video is a path, a URL, bytes, a `{"path", "bytes"}` dict as in `datasets`, an array [t, h, w, c], a tensor
    [t, c, h, w] or a list of frames (PIL images or arrays); a batch may mix them, at any lengths and sizes. Arrays
    with the channels in the other place are understood wherever the shape leaves no doubt.

    Frames are resized to a shortest edge of 224 (bicubic, antialiased) and cropped to 224 × 224 at offsets
    `round((h - 224) / 2)`, `round((w - 224) / 2)`, half to even, as the authors of MoTE (arXiv 2410.10589) do.

    The result is [b, t, c, h, w], or [b, v, t, c, h, w] if `num_clips * num_crops` = v > 1, the crops of one clip
    side by side. With `do_sample_frames=True` and `num_frames` set, every video gives exactly `num_frames` frames per
    view; without `num_frames` or `fps`, all its frames. Frames are resized and cropped as they are decoded, so memory
    follows the result, not the size of the frames.

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
    square_pixels = True
    video_backend = "auto"
    strict = False
    valid_kwargs: Any = MoTEVideoProcessorKwargs
    model_input_names = ["pixel_values_videos"]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reading_options()

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a processor of what one saved; one saved before `square_pixels` existed goes on without it.

        Args:
            video_processor_dict: The saved settings.
            **kwargs: Settings that replace saved ones.

        Returns:
            The processor; with `return_unused_kwargs`, what was not used too.
        """
        if video_processor_dict.get("video_processor_type") == cls.__name__:
            video_processor_dict = {"square_pixels": False} | video_processor_dict
        return super().from_dict(video_processor_dict, **kwargs)

    def reading_options(self, **given: Any) -> dict[str, Any]:
        """Complete the options of one call: what is given, else the processor's own, all checked.

        Args:
            **given: Fields of `MoTEVideoProcessorKwargs`. `num_frames` puts aside an `fps` set on the processor, and
                the other way round; None stands for the processor's own.

        Returns:
            Every field of `MoTEVideoProcessorKwargs`, `size` and `crop_size` as transformers' `SizeDict`.

        Raises:
            ValueError: for an option that does not exist, or a value that it does not take.
        """
        if unknown := given.keys() - self.valid_kwargs.__annotations__.keys():
            raise ValueError(f"unknown option {min(unknown)!r}: pass some of {', '.join(READING_OPTIONS)}")
        given = {name: value for name, value in given.items() if value is not None or name not in READING_OPTIONS}
        check_options(given)
        try:
            validate_typed_dict(self.valid_kwargs, given)
        except StrictDataclassFieldValidationError as error:
            raise ValueError(" ".join(str(error).split())) from error
        if "fps" in given:
            given.setdefault("num_frames", None)
        elif "num_frames" in given:
            given["fps"] = None
        options = {name: given.get(name, getattr(self, name, None)) for name in self.valid_kwargs.__annotations__}
        check_options(options)
        if not options["do_sample_frames"]:
            options["num_clips"] = 1  # all the frames are one clip
        for name, square in (("size", bool(options["default_to_square"])), ("crop_size", True)):
            if options[name] is not None and not isinstance(options[name], SizeDict):
                options[name] = SizeDict(**get_size_dict(options[name], default_to_square=square, param_name=name))
        return options

    def frames_per_clip(self, config: Any) -> int | None:
        """The number of frames that a model gets per clip: the processor's own, else the model's.

        Args:
            config: The model's.

        Returns:
            The number; None if the processor samples by `fps`, so that it depends on the video.
        """
        return self.num_frames or (None if self.fps else config.num_frames)

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """Decode, sample, resize, crop and normalise videos.

        Args:
            videos: One video or a batch of them, in any of the forms that the class names.
            **kwargs: Fields of `MoTEVideoProcessorKwargs`, for this call. `num_frames` here puts aside an `fps` set
                on the processor, and the other way round.

        Returns:
            `pixel_values_videos`, float32 [b, t, c, h, w], or [b, v, t, c, h, w] for several views; a list of
            tensors without `return_tensors`. With `return_metadata`, `video_metadata` too.

        Raises:
            ValueError: for something that is no video or cannot be decoded, for fewer frames than `num_frames`
                unless `short_video` is "loop", and for videos that cannot be stacked.
        """
        known_names = self.valid_kwargs.__annotations__
        options = self.reading_options(**{name: value for name, value in kwargs.items() if name in known_names})
        batch = flatten_videos(videos)
        given = kwargs.pop("video_metadata", None)
        known = [None] * len(batch) if given is None else make_batched_metadata(batch, given)
        read = [
            self.read(video, f"video {index} of {len(batch)}", metadata=known[index], options=options)
            for index, video in enumerate(batch)
        ]
        # transformers' own steps are left with what `read` has not done: rescale, normalise, stack.
        done = dict.fromkeys(("do_sample_frames", "do_convert_rgb", "do_resize", "do_center_crop"), False)
        kwargs |= {name: options[name] for name in ("num_clips", "num_crops")} | done
        kwargs["input_data_format"] = ChannelDimension.FIRST
        return super().preprocess(
            [views.flatten(0, 1) for views, _ in read], video_metadata=[metadata for _, metadata in read], **kwargs
        )

    def read(
        self,
        video: Any,
        name: str = "the video",
        *,
        options: Mapping[str, Any] | None = None,
        metadata: VideoMetadata | None = None,
        start: float | None = None,
        end: float | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        seed: int | None = None,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """Give the views of one video as the model sees them, but for rescaling and normalisation.

        The one way from a file to pixels: calls of the processor, `VideoClips` and so training, evaluation and search
        take it. Each frame is resized and cropped as it comes.

        Args:
            video: One video, in any of the forms that the class names.
            name: What messages call it, if it has no name of its own.
            options: As `reading_options` completes them; the processor's own by default.
            metadata: Of decoded frames, for sampling by `fps`.
            start: Where the clip starts in a longer file, in seconds.
            end: Where it ends, in seconds.
            transform: Of a frame, uint8 [1, 3, h, w], in place of resize and crop, as training augments.
            seed: Determines the frames of `sampling="train"`; by default torch's global generator gives it.

        Returns:
            [v, t, 3, h, w], uint8 (or float32, if the frames were), crops of one clip side by side, for
            [`normalize_pixels`]; and the video's metadata.

            Shapes: v views, t frames, h and w pixels.

        Raises:
            ValueError: for something that is no video or cannot be decoded (a `VideoDecodeError`), and for fewer
                frames than `num_frames` unless `short_video` is "loop".
        """
        options = self.reading_options() if options is None else options
        encoded, choose = is_encoded(video), None
        if encoded:
            video, name = open_encoded(video, name)
        if options["do_sample_frames"]:
            if seed is None and options["sampling"] == "train":
                seed = int(torch.randint(2**63 - 1, ()))  # a decoder may ask twice, and must be answered the same
            names = ("num_frames", "fps", "sampling", "num_clips", "short_video")
            choose = partial(self.sample_frames, name=name, seed=seed, **{option: options[option] for option in names})
        finish = partial(self._finish, options=options, transform=transform)
        if encoded:
            frames, metadata = decode_video(
                video,
                choose,
                backend=options["video_backend"],
                strict=bool(options["strict"]),
                start=start,
                end=end,
                finish=finish,
            )
        else:
            chosen, metadata = self._choose(video, metadata, name, choose, options)
            frames = [finish(frame) for frame in chosen]
        views = torch.stack(frames)  # [k * t, crops, 3, h, w], k clips
        return views.unflatten(0, (options["num_clips"], -1)).transpose(1, 2).flatten(0, 1), metadata

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
        seed: int | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Choose the frames of one video.

        Args:
            metadata: Of the video; `total_num_frames` must be set, and `fps` to sample by it.
            num_frames: Frames per clip, t. Together with `fps` None: the processor's own.
            fps: Frames per second of video, in place of `num_frames`, spread as transformers does.
            sampling: See `MoTEVideoProcessorKwargs`; the processor's own by default, as the next two.
            num_clips: Clips per video, k.
            short_video: Policy for a video of fewer than `num_frames` frames.
            name: What messages call the video.
            seed: Determines the frames of "train"; by default torch's global generator gives it, so that
                transformers' `set_seed` fixes them too.
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
        if seed is None and sampling == "train":
            seed = int(torch.randint(2**63 - 1, ()))
        generator = None if seed is None else np.random.default_rng(seed)
        return sample_indices(metadata.total_num_frames, num_frames, sampling, num_clips, generator)

    def _choose(
        self,
        video: Any,
        metadata: VideoMetadata | None,
        name: str,
        choose: Callable[[VideoMetadata], np.ndarray] | None,
        options: Mapping[str, Any],
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """Sample the frames of a decoded video: [k * t, c, h, w], uint8 or float, and the video's metadata."""
        length = count_frames(video, name)
        if metadata is None:
            metadata = VideoMetadata(total_num_frames=length)
        indices = np.arange(length) if choose is None else choose(metadata)
        if len(indices) and indices.max() >= length:
            raise ValueError(
                f"{name} has {length} frames but its video_metadata says {metadata.total_num_frames}: correct "
                "total_num_frames, or pass do_sample_frames=False for frames that are sampled already"
            )
        if choose is not None:
            video = [video[i] for i in indices] if isinstance(video, (list, tuple)) else video[indices]
        frames = to_channels_first(video, name, options["input_data_format"])
        if options["do_rescale"] and frames.is_floating_point() and frames.min() >= 0 and frames.max() <= 1:
            logger.warning(f"{name} seems to be rescaled to [0, 1] already: pass do_rescale=False for such pixels")
        height, width = frames.shape[-2:]
        if metadata.height is None:
            metadata = replace(metadata, height=height, width=width)
        return frames, replace(metadata, frames_indices=indices.tolist())

    def _finish(
        self,
        frame: np.ndarray | torch.Tensor,
        pixel_aspect: float = 1.0,
        *,
        options: Mapping[str, Any],
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Bring a decoded frame, an array [h, w, 3] or a tensor [c, h, w], to the model's size: [crops, 3, h, w]."""
        if isinstance(frame, np.ndarray):
            frame = torch.from_numpy(np.require(frame, requirements=["C", "W"])).permute(2, 0, 1)
        if transform is None:
            return self.crop_frame(self.resize_frame(frame, pixel_aspect, options=options), options=options)
        unsized = {**options, "do_resize": False}
        return transform(self.resize_frame(frame, pixel_aspect, options=unsized)[None])

    def resize_frame(
        self, frame: torch.Tensor, pixel_aspect: float = 1.0, *, options: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        """Bring a frame to three colours, square pixels and the size from which crops are cut.

        Args:
            frame: [c, h, w], c = 1, 3 or 4.
            pixel_aspect: Width of a pixel over its height, as the file says it is shown.
            options: As `reading_options` completes them; the processor's own by default.

        Returns:
            [3, h, w], resized once: to the size that a frame of the shape in which it is shown would get.
        """
        options = self.reading_options() if options is None else options
        if options["do_convert_rgb"]:
            frame = self.convert_to_rgb(frame[None])[0]
        if options["device"] is not None:
            frame = frame.to(options["device"])
        size, resample = options["size"], options["resample"]
        if options["square_pixels"] and pixel_aspect != 1 and 1 / MOST_STRETCHED <= pixel_aspect <= MOST_STRETCHED:
            height, width = frame.shape[-2:]
            shown = torch.empty(  # enlarged, never shrunk; no memory is behind it
                3, max(height, round(height / pixel_aspect)), max(width, round(width * pixel_aspect)), device="meta"
            )
            if options["do_resize"]:
                shown = self.resize(shown, size=size, resample=resample)
            return self.resize(frame, size=SizeDict(height=shown.shape[-2], width=shown.shape[-1]), resample=resample)
        return self.resize(frame, size=size, resample=resample) if options["do_resize"] else frame

    def crop_frame(self, frame: torch.Tensor, *, options: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Cut the crops of a resized frame.

        Args:
            frame: [..., h, w].
            options: As `reading_options` completes them; the processor's own by default.

        Returns:
            [crops, ..., h, w], which hold nothing of the frame.

        Raises:
            ValueError: for three crops of a frame that is smaller than they are.
        """
        options = self.reading_options() if options is None else options
        if options["num_crops"] > 1:
            return torch.stack(self.three_crops(frame, options["crop_size"]))
        if options["do_center_crop"]:
            frame = self.center_crop(frame, options["crop_size"])
        return frame[None].contiguous()  # arithmetic by channel is several times slower with the channels last

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
        for video in videos:  # [v * t, 3, h, w], cropped
            views = self.rescale_and_normalize(
                video, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            ).unflatten(0, (num_clips * num_crops, -1))  # [v, t, 3, h, w]
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
