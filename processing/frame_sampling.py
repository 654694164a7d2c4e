"""Which frames of a video the model sees: one frame from each of t equal segments, or from dense windows.

The rules are those of the authors' data loaders, exact to the rounding (MoTE, arXiv 2410.10589; segments as in TSN,
arXiv 1608.00859). Nothing here opens a file: a video is only its number of frames n.
"""

import numpy as np

# A dense window covers this many frames of the video, whatever the number of frames taken from it.
DENSE_WINDOW = 128

_MODES = {
    "test_uniform": "test_uniform",
    "uniform": "test_uniform",
    "test_dense": "test_dense",
    "dense": "test_dense",
    "val_uniform": "val_uniform",
    "val": "val_uniform",
    "train_uniform": "train_uniform",
    "train": "train_uniform",
}


def sample_indices(
    num_frames: int,
    num_segments: int,
    mode: str = "test_uniform",
    num_clips: int = 1,
    generator: np.random.Generator | None = None,
) -> np.ndarray:
    """Choose the frames of one video: t of them for every clip.

    A video shorter than t gives some frames more than once; no index is ever out of range.

    Args:
        num_frames: Frames in the video, n.
        num_segments: Frames to take in a clip, t.
        mode: `"test_uniform"` (or `"uniform"`), t frames n / t apart, a clip starting anywhere in the first segment;
            `"test_dense"` (`"dense"`), t frames from a window of 128, the windows spread over the video;
            `"val_uniform"` (`"val"`), the first frame of each segment;
            `"train_uniform"` (`"train"`), a random frame of each segment.
        num_clips: Temporal views of the video in the test modes; 1 in the others.
        generator: Source of the random frames of `"train_uniform"`; a fresh one by default. Other modes draw nothing.

    Returns:
        int64 array [num_clips * t], clip after clip, values in 0 ... n - 1.

    Raises:
        ValueError: If `num_frames`, `num_segments` or `num_clips` is not a positive whole number, if `mode` is
            unknown, or if several clips are asked of a mode that has one.
    """
    n, t = _positive("num_frames", num_frames), _positive("num_segments", num_segments)
    clips = _positive("num_clips", num_clips)
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}.")
    mode = _MODES[mode]
    if clips > 1 and not mode.startswith("test_"):
        raise ValueError(f"mode {mode!r} takes one clip, got num_clips={clips}; several need a test mode.")

    if mode == "train_uniform":
        low, high = train_segment_bounds(n, t).T
        return (generator or np.random.default_rng()).integers(low, high, endpoint=True, dtype=np.int64)
    if mode == "val_uniform":
        return (n / t * np.arange(t)).astype(np.int64) % n
    if mode == "test_uniform":
        # dtype=int rounds down, so a video of n < t frames starts at -1 in every clip but the last one.
        starts = np.linspace(0, n / t - 1, clips, dtype=int)
        return (starts[:, None] + n / t * np.arange(t)).astype(np.int64).ravel() % n
    stride = DENSE_WINDOW // t
    gap = max(0, n - DENSE_WINDOW) / (clips - 1) if clips > 1 else 0
    starts = np.arange(clips) * int(gap)
    return (starts[:, None] + stride * np.arange(t)).astype(np.int64).ravel() % n


def train_segment_bounds(num_frames: int, num_segments: int) -> np.ndarray:
    """The first and last frame that training may draw in each segment; neighbouring segments share a frame.

    Args:
        num_frames: Frames in the video, n.
        num_segments: Segments, t.

    Returns:
        int64 array [t, 2], both ends included.

    Raises:
        ValueError: If either number is not a positive whole number.
    """
    n, t = _positive("num_frames", num_frames), _positive("num_segments", num_segments)
    edges = np.round((n - 1) / t * np.arange(t + 1)).astype(np.int64)  # round halves to even
    return np.stack([edges[:-1], edges[1:]], axis=1)


def _positive(name: str, value: int) -> int:
    """`value` as an int, refusing what is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    return int(value)
