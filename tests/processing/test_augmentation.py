"""Training transforms: one draw a clip, determined by integers, and no trace in the global random state."""

import itertools

import numpy as np
import pytest
import torch

from modeling_mote.processing import MoTEVideoProcessor, augment_clip, clip_seed, train_transform


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 3, 60, 80), generator=generator, dtype=torch.uint8).repeat(5, 1, 1, 1)


def test_one_draw_for_all_frames(frames):
    transform = train_transform(32)
    results = [augment_clip(frames, transform, seed) for seed in range(20)]
    for result in results:
        assert result.shape == (5, 3, 32, 32) and result.dtype == torch.uint8
        assert torch.equal(result, result[:1].expand_as(result))
    assert any(not torch.equal(a, b) for a, b in itertools.pairwise(results))


def test_the_seed_determines_the_draw(frames):
    transform = train_transform(32)
    torch.manual_seed(1)
    first = augment_clip(frames, transform, 7)
    torch.manual_seed(2)
    assert torch.equal(augment_clip(frames, transform, 7), first)
    generator = torch.Generator().manual_seed(3)
    drawn = [augment_clip(frames, transform, generator) for _ in range(4)]
    generator.manual_seed(3)
    assert all(torch.equal(augment_clip(frames, transform, generator), clip) for clip in drawn)
    assert any(not torch.equal(clip, drawn[0]) for clip in drawn)


def test_global_random_state_is_untouched(frames):
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    augment_clip(frames, train_transform(32), 7)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_flip_and_grayscale_are_switches(frames):
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    square = frames[:, :, :, :60]
    as_is = augment_clip(square, train_transform(32, flip=0, grayscale=0, **still), 0)
    for seed in range(8):
        assert torch.equal(augment_clip(square, train_transform(32, flip=0, grayscale=0, **still), seed), as_is)
    assert torch.equal(augment_clip(square, train_transform(32, flip=1, grayscale=0, **still), 0), as_is.flip(-1))
    grey = augment_clip(square, train_transform(32, flip=0, grayscale=1, **still), 0)
    assert torch.equal(grey[:, :1].expand_as(grey), grey) and not torch.equal(as_is[:, :1].expand_as(grey), as_is)


def test_flips_and_grey_come_at_their_rates():
    """Over 400 clips, within four standard deviations of 0.5 and 0.2."""
    ramp = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    ramp[:, 0] = torch.arange(16) * 10
    transform = train_transform(8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    results = [augment_clip(ramp, transform, clip_seed(0, 0, index)) for index in range(400)]
    flipped = sum(int(result[0, 0, 0, 0] > result[0, 0, 0, -1]) for result in results) / 400
    grey = sum(int(torch.equal(result[:, 0], result[:, 1])) for result in results) / 400
    assert abs(flipped - 0.5) < 0.1 and abs(grey - 0.2) < 0.08


def test_crops_have_the_papers_areas_and_ratios():
    """Crop sizes, read off a ramp of coordinates: area 0.08-1, ratio 3/4-4/3."""
    ramp = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    ramp[0, 0], ramp[0, 1] = torch.arange(256)[:, None], torch.arange(256)
    transform = train_transform(64, short_side=256, flip=0, grayscale=0)
    areas, ratios = [], []
    for seed in range(200):
        crop = augment_clip(ramp, transform, seed)[0].float()
        height = (crop[0, -1, 0] - crop[0, 0, 0]) * 64 / 63
        width = (crop[1, 0, -1] - crop[1, 0, 0]) * 64 / 63
        areas.append(float(height * width) / 256**2)
        ratios.append(float(width / height))
    assert 0.07 < min(areas) < 0.2 and 0.8 < max(areas) <= 1.03
    assert 0.72 < min(ratios) < 0.85 and 1.18 < max(ratios) < 1.38


def test_video_processor_then_only_normalises(frames):
    clip = augment_clip(frames, train_transform(32), 7)
    off = {"do_sample_frames": False, "do_resize": False, "do_center_crop": False}
    processor = MoTEVideoProcessor(num_frames=8, short_video="loop")
    pixels = processor(clip, return_tensors="pt", **off)["pixel_values_videos"]
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    expected = (clip / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(pixels[0], expected, rtol=0, atol=1e-5)


def test_clip_seeds_are_distinct_and_stable():
    seeds = {clip_seed(*key) for key in itertools.product(range(3), range(10), range(200))}
    assert len(seeds) == 6000 and all(0 <= seed < 2**63 for seed in seeds)
    assert clip_seed(0, 1, 2) == clip_seed(0, 1, 2) != clip_seed(0, 2, 1)
    bits = np.array([[clip_seed(0, 0, index) >> bit & 1 for bit in range(63)] for index in range(1000)])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.08  # every bit is a coin over neighbouring samples
    with pytest.raises(ValueError):
        clip_seed(-1, 0, 0)


@pytest.mark.parametrize("frames", [torch.zeros(5, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_other_frames_are_refused(frames):
    with pytest.raises(ValueError, match=r"frames must be uint8 \[t, 3, h, w\], not torch"):
        augment_clip(frames, train_transform(32), 0)
