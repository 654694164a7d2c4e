"""Windows of long videos: the scores of the pipeline for the same seconds, frames encoded once."""

import io
import os
import warnings
import weakref
from fractions import Fraction
from itertools import islice, permutations
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from modeling_mote.processing import VideoDecodeError, classify_windows, decode_video, windows

LABELS = ["archery", "yoga", "flipping the pancake"]


@pytest.fixture(scope="module")
def classify(model_folder: Path):
    return pipeline("zero-shot-video-classification", model=str(model_folder), device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video) -> Path:
    """9.5 s at 8 frames a second, each frame another."""
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", num_frames=76, codec="mpeg4")


def write_at(path: Path, shown_at: list[float]) -> Path:
    """A video whose frames are shown at the given seconds."""
    draw = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for seconds in shown_at:
            grey = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def assert_scores_are_the_pipelines(classify, video, windows, labels=LABELS, **options):
    for each in windows:
        frames, _ = decode_video(video, start=each["start"], end=each["end"])
        expected = {entry["label"]: entry["score"] for entry in classify(frames, candidate_labels=labels, **options)}
        assert each["scores"] == pytest.approx(expected, abs=1e-5), (each["start"], each["end"])


def times(windows):
    return [(each["start"], each["end"]) for each in windows]


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window, stride, options",
    [
        (4, 1, {}),
        (1.7, 0.3, {}),  # frames of neighbours lie on no common grid
        (2, 2, {"num_frames": 3}),
        (2, 1, {"num_clips": 2, "num_crops": 3}),
        (2, 1, {"sampling": "val", "prompts": "a video of {}."}),
        (0.5, 1.5, {"sampling": "dense"}),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_window_scores_as_its_seconds_do(classify, video, window, stride, options, batch_size):
    windows = list(
        classify_windows(classify, video, LABELS, window=window, stride=stride, batch_size=batch_size, **options)
    )
    assert [each["start"] for each in windows] == pytest.approx([stride * number for number in range(len(windows))])
    assert len({each["scores"]["yoga"] for each in windows}) == len(windows)  # no two windows look alike
    assert_scores_are_the_pipelines(classify, video, windows, **options)


@pytest.mark.parametrize("name", ["long.mkv", "long.avi", "long.webm", "long.ts"])
def test_containers_and_codecs(classify, tmp_path, write_video, name):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    video = write_video(tmp_path / name, num_frames=50, fps=Fraction(30000, 1001), codec=codec)
    windows = list(classify_windows(classify, video, LABELS, window=0.6, stride=0.25))
    assert len(windows) > 4
    assert_scores_are_the_pipelines(classify, video, windows)


def test_windows_follow_the_time_stamps(classify, tmp_path):
    shown_at = [0, 0.05, 0.1, 0.9, 1.0, 1.7, 1.75, 1.8, 1.85, 2.4, 9.1, 9.2, 9.6, 9.95]
    video = write_at(tmp_path / "variable.mkv", shown_at)
    windows = list(classify_windows(classify, video, LABELS, window=1, stride=0.5))
    # Nothing begins between 2.4 and 9.1 s, so windows there are left out.
    assert [each["start"] for each in windows] == [0, 0.5, 1, 1.5, 2, 8.5, 9]
    assert_scores_are_the_pipelines(classify, video, windows)


def test_the_first_window_at_the_end_is_the_last(classify, video):
    def given(**options):
        return times(classify_windows(classify, video, LABELS, **options))

    assert given(window=4, stride=1) == [*((start, start + 4) for start in range(6)), (6, 9.5)]
    assert given(window=4.5, stride=1)[-2:] == [(4, 8.5), (5, 9.5)]  # it ends exactly there
    assert given(window=2, stride=3) == [(0, 2), (3, 5), (6, 8), (9, 9.5)]
    assert given(window=1, stride=4.3) == [(0, 1), (4.3, 5.3), (8.6, 9.5)]
    assert given(window=60, stride=1) == [(0, 9.5)]  # shorter than a window


def test_a_video_of_one_window_scores_as_the_file(classify, video):
    (only,) = classify_windows(classify, video, LABELS, window=10)
    expected = {entry["label"]: entry["score"] for entry in classify(str(video), candidate_labels=LABELS)}
    assert only["scores"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_any_number_of_labels_and_their_list_matters(classify, video, count):
    words = ("archery", "yoga", "flipping", "pancake", "running", "swimming")
    labels = [" ".join(each) for each in islice(permutations(words, 3), count)]
    windows = list(classify_windows(classify, video, labels, window=5, stride=2))
    assert_scores_are_the_pipelines(classify, video, windows, labels)
    for each in windows:
        assert sorted(each["scores"]) == sorted(labels)
        assert list(each["scores"].values()) == sorted(each["scores"].values(), reverse=True)
        assert sum(each["scores"].values()) == pytest.approx(1)


def test_a_frame_goes_through_the_image_tower_once(classify, video):
    seen = []
    handle = classify.model.vision_model.register_forward_pre_hook(
        lambda module, inputs, keywords: seen.append(len((*inputs, *keywords.values())[0])), with_kwargs=True
    )
    try:
        windows = list(classify_windows(classify, video, LABELS, window=4, stride=1))  # 32 frames, each 8th seen
    finally:
        handle.remove()
    # A stride is a step of the grid: one new frame a window. The last one has 28 frames, on another grid.
    assert len(windows) == 7 and sum(seen) == 4 + 5 + 3


def test_frames_that_no_window_needs_are_let_go(classify, tmp_path, write_video, monkeypatch):
    """Of a video of 400 frames, no more are ever alive than a window and a batch need."""
    alive = weakref.WeakSet()

    class Counted(windows.HeldFrame):
        def __init__(self, *values):
            super().__init__(*values)
            alive.add(self)
            most.append(len(alive))

    most = []
    monkeypatch.setattr(windows, "HeldFrame", Counted)
    video = write_video(tmp_path / "many.mp4", num_frames=400, size=(32, 32), codec="mpeg4")
    for _ in classify_windows(classify, video, LABELS, window=2, stride=1, batch_size=2):
        pass
    assert len(most) == 400 and 16 <= max(most) <= 16 + 2 * 4


def test_thumbnails_are_small_and_upright(classify, video):
    for each in classify_windows(classify, video, LABELS):
        assert each["thumbnail"].dtype == np.uint8 and each["thumbnail"].shape == (32, 42, 3)
    mid, _ = decode_video(video, [int(8 * (each["start"] + each["end"]) / 2)])  # of the last window
    shown = np.asarray(Image.fromarray(mid[0]).resize((42, 32)), int)
    assert np.abs(each["thumbnail"].astype(int) - shown).mean() < 25


@pytest.mark.parametrize("name", ["video_0.mov", "video_90.mov", "mpy_no_duration.webm"])
def test_real_and_rotated_clips(classify, shared, name):
    video = shared / "videos" / name
    windows = list(classify_windows(classify, video, LABELS, window=1.5, stride=0.5))
    assert_scores_are_the_pipelines(classify, video, windows)
    _, metadata = decode_video(video, [0])
    height, width, _ = windows[0]["thumbnail"].shape
    assert (height > width) == (metadata.height > metadata.width)


def test_bytes_files_and_dicts(classify, video):
    expected = list(classify_windows(classify, video, LABELS))
    content = video.read_bytes()
    for other in (str(video), content, io.BytesIO(content), {"bytes": content, "path": None}, {"path": str(video)}):
        for each, same in zip(classify_windows(classify, other, LABELS), expected, strict=True):
            assert each["scores"] == pytest.approx(same["scores"], abs=1e-6)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cut(tmp_path, write_video) -> Path:
    """A video of which the second half is missing."""
    whole = write_video(tmp_path / "whole.mkv", num_frames=80, codec="mpeg4", gop=8).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    return path


def test_a_file_that_breaks_off_is_used_as_far_as_it_goes(classify, cut):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        windows = list(classify_windows(classify, cut, LABELS, window=2, stride=1))
    said = [str(warning.message) for warning in caught if "breaks off" in str(warning.message)]
    assert len(said) == 1 and str(cut) in said[0]
    with pytest.warns(UserWarning, match="breaks off"):
        frames, metadata = decode_video(cut)
    assert 16 < len(frames) < 80 and windows[-1]["end"] == pytest.approx(metadata.duration)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_scores_are_the_pipelines(classify, cut, windows)


def test_strict_refuses_it(classify, cut):
    with pytest.raises(VideoDecodeError, match="cut.mkv breaks off after"):
        list(classify_windows(classify, cut, LABELS, strict=True))


def test_nothing_to_decode(classify, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for name, error in (("text.mp4", "cannot be opened"), ("empty.mp4", "is empty"), ("none.mp4", "does not exist")):
        with pytest.raises(VideoDecodeError, match=f"{name} {error}"):
            list(classify_windows(classify, tmp_path / name, LABELS))
    with pytest.raises(FileNotFoundError):
        classify_windows(classify, tmp_path / "none.mp4", LABELS)
    with pytest.raises(TypeError, match="video must be a path"):
        classify_windows(classify, np.zeros((8, 32, 32, 3), np.uint8), LABELS)


def test_no_frame_within_any_window(classify, tmp_path):
    """A file whose sound begins 2 s before its pictures, in windows that are over by then."""
    video = tmp_path / "late.mkv"
    with av.open(str(video), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts, silence.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(sound.encode(silence))
        for index in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = 16 + index, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert times(classify_windows(classify, video, LABELS, window=1, stride=1)) == [(2, 2.5)]
    with pytest.raises(VideoDecodeError, match="late.mkv shows no frame within a window of 1 s every 9 s"):
        list(classify_windows(classify, video, LABELS, window=1, stride=9))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 0}, "window is 0"),
        ({"stride": -1.0}, "stride is -1.0"),
        ({"window": float("nan")}, "window is nan"),
        ({"window": "4"}, "window is '4'"),
        ({"stride": float("inf")}, "stride is inf"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"top_k": 5}, "unknown argument 'top_k' of classify_windows: it takes prompts,"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"sampling": "often"}, "sampling is 'often'"),
        ({"prompts": "no place"}, "unknown prompt set"),
        ({"candidate_labels": []}, "no label was given"),
        ({"candidate_labels": None}, "candidate_labels is missing"),
        ({"candidate_labels": ["yoga", "yoga"]}, "'yoga' was given twice"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(classify, video, options, message):
    with pytest.raises(ValueError, match=message):
        classify_windows(classify, video, **{"candidate_labels": LABELS} | options)


def test_short_windows_by_policy(classify, video):
    windows = list(classify_windows(classify, video, LABELS, window=0.3, stride=3))  # of three frames, 4 are asked
    assert_scores_are_the_pipelines(classify, video, windows)
    with pytest.raises(ValueError, match="long.mp4, 0 to 0.3 s, has 3 frames, fewer than num_frames=4"):
        list(classify_windows(classify, video, LABELS, window=0.3, stride=3, short_video="error"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_a_file_is_closed_when_the_caller_stops(classify, video):
    before = len(os.listdir("/proc/self/fd"))
    windows = classify_windows(classify, video, LABELS, window=1, batch_size=1)
    next(windows)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    windows.close()
    assert len(os.listdir("/proc/self/fd")) == before
