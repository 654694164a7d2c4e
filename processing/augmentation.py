"""Training pixels: one random transform for all the frames of a clip, fixed by integers."""

from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms import v2


def train_transform(
    size: int = 224,
    *,
    short_side: int | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    grayscale: float = 0.2,
) -> v2.Compose:
    """Build the training transform of MoTE: short side to 256, random resized crop to 224, flip, greyscale.

    The authors draw the crop's aspect ratio uniformly and swap its sides half the time; torchvision draws the ratio
    log-uniformly.

    Args:
        size: Side of the result, s, in pixels.
        short_side: Short side before cropping, in pixels; by default 256 for 224, and in proportion.
        scale: Least and largest area of the crop, as parts of the frame's.
        ratio: Least and largest width / height of the crop.
        flip: Probability of a left-right flip; 0 where labels tell directions.
        grayscale: Probability of dropping the colours.

    Returns:
        A transform of uint8 frames [t, 3, h, w] to [t, 3, s, s], for `augment_clip`.
    """
    bicubic, bilinear = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR
    return v2.Compose(
        [
            v2.Resize(round(size * 256 / 224) if short_side is None else short_side, bicubic, antialias=True),
            v2.RandomResizedCrop(size, scale, ratio, bilinear, antialias=True),
            v2.RandomHorizontalFlip(flip),
            v2.RandomGrayscale(grayscale),
        ]
    )


def augment_clip(
    frames: torch.Tensor, transform: Callable[[torch.Tensor], torch.Tensor], seed: int | torch.Generator
) -> torch.Tensor:
    """Apply a random transform with one draw for all the frames, leaving the global random state as it was.

    The video processor then normalises, with `do_sample_frames`, `do_resize` and `do_center_crop` off.

    Args:
        frames: One clip, uint8 [t, 3, h, w].
        transform: A transform from torchvision's v2, such as `train_transform` gives.
        seed: Determines the draw; a generator gives one number and moves on.

    Returns:
        uint8 [t, 3, s, s].

        Shapes: t frames, h and w pixels, s the transform's size.

    Raises:
        ValueError: if `frames` are not uint8 [t, 3, h, w].
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(f"frames must be uint8 [t, 3, h, w], not {frames.dtype} {list(frames.shape)}")
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**63 - 1, (), generator=seed, device=seed.device))
    with torch.random.fork_rng(devices=[]):  # v2 transforms draw from the global CPU generator alone
        torch.default_generator.manual_seed(seed)
        return transform(frames)


def clip_seed(seed: int, epoch: int, index: int) -> int:
    """Mix three integers into one seed, such that neighbouring samples and epochs draw independently.

    Args:
        seed: Of the whole run.
        epoch: Counted from 0.
        index: Of the sample in the data set, not in the order of visits.

    Returns:
        An integer from 0 to 2**63 - 1.

    Raises:
        ValueError: if one of them is negative.
    """
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
