"""Frame sampling: equal to the authors' loaders on every recorded case, and safe on every length."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from modeling_mote.processing.frame_sampling import sample_indices, train_segment_bounds


def recorded_cases(shared: Path) -> list[dict]:
    return json.loads((shared / "reference" / "frame_sampling.json").read_text())


def test_every_recorded_case_is_equal(shared: Path) -> None:
    cases = recorded_cases(shared)
    assert len(cases) == 144
    for case in cases:
        n, t = case["num_frames"], case["num_segments"]
        if case["mode"] == "train_uniform_bounds_inclusive":
            assert train_segment_bounds(n, t).tolist() == case["bounds"], case
        else:
            indices = sample_indices(n, t, case["mode"], case.get("clips", 1))
            assert indices.tolist() == case["indices"], case


def test_known_values_without_the_recorded_cases() -> None:
    assert sample_indices(32, 8).tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert sample_indices(300, 4, "test_dense", 2).tolist() == [0, 32, 64, 96, 172, 204, 236, 268]
    assert sample_indices(17, 8, "val_uniform").tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert train_segment_bounds(9, 4).tolist() == [[0, 2], [2, 4], [4, 6], [6, 8]]
    # Three frames for eight: the starts are 0, -1, -1; cutting toward zero leaves only -1 itself to wrap around.
    clips = sample_indices(3, 8, num_clips=3).reshape(3, 8)
    assert clips[0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert clips[1].tolist() == clips[2].tolist() == [2, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("num_segments", [1, 2, 8, 16, 32, 130])
@pytest.mark.parametrize("mode", ["test_uniform", "test_dense", "val_uniform", "train_uniform"])
def test_every_length_gives_valid_indices(mode: str, num_segments: int) -> None:
    """Against the rules written a second time, one index at a time, for n = 1 ... 299."""
    for n in range(1, 300):
        for clips in (1, 2, 3, 4, 10) if mode.startswith("test_") else (1,):
            indices = sample_indices(n, num_segments, mode, clips, np.random.default_rng(n))
            assert indices.dtype == np.int64 and indices.shape == (clips * num_segments,)
            assert indices.min() >= 0 and indices.max() < n
            assert mode == "train_uniform" or indices.tolist() == written_out(n, num_segments, mode, clips)


def written_out(n: int, t: int, mode: str, clips: int) -> list[int]:
    if mode == "val_uniform":
        return [int(n / t * i) % n for i in range(t)]
    if mode == "test_uniform":
        return [int(start + n / t * i) % n for start in np.linspace(0, n / t - 1, clips, dtype=int) for i in range(t)]
    starts = [0] if clips == 1 else [i * math.floor(max(0, n - 128) / (clips - 1)) for i in range(clips)]
    return [(start + 128 // t * j) % n for start in starts for j in range(t)]


def test_short_names_are_the_long_ones() -> None:
    for short, long in {"uniform": "test_uniform", "dense": "test_dense", "val": "val_uniform"}.items():
        assert sample_indices(100, 8, short).tolist() == sample_indices(100, 8, long).tolist()
    draws = [sample_indices(100, 8, mode, generator=np.random.default_rng(0)) for mode in ("train", "train_uniform")]
    assert draws[0].tolist() == draws[1].tolist()


def test_training_draws_reach_both_ends_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    draws = np.stack([sample_indices(30, 4, "train", generator=generator) for _ in range(500)])
    bounds = train_segment_bounds(30, 4)
    for segment, (low, high) in enumerate(bounds):
        assert sorted(set(draws[:, segment].tolist())) == list(range(low, high + 1))


def test_only_the_training_mode_draws() -> None:
    generator = np.random.default_rng(0)
    before = generator.bit_generator.state
    for mode in ("test_uniform", "test_dense", "val_uniform"):
        sample_indices(100, 8, mode, generator=generator)
    assert generator.bit_generator.state == before
    sample_indices(100, 8, "train", generator=generator)
    assert generator.bit_generator.state != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames must be"),
        ({"num_frames": -3}, "num_frames must be"),
        ({"num_frames": 2.5}, "num_frames must be"),
        ({"num_segments": 0}, "num_segments must be"),
        ({"num_clips": 0}, "num_clips must be"),
        ({"mode": "random"}, "mode must be one of"),
        ({"mode": "train", "num_clips": 2}, "one clip"),
        ({"mode": "val", "num_clips": 3}, "one clip"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_indices(**{"num_frames": 10, "num_segments": 8, **arguments})
