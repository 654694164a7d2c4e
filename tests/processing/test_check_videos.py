"""The check of single videos and of a data set, on files with every kind of fault; the command has its own tests."""

import os
import signal

import pytest

from modeling_mote.processing.builders import video_builder
from modeling_mote.processing.check_videos import Check, check_data, check_video


@pytest.fixture
def cut(tmp_path, write_video):
    """The first half of a file of 60 frames."""
    whole = write_video(tmp_path / "whole.avi", num_frames=60, codec="mpeg4", gop=1).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    return tmp_path / "cut.avi"


def test_a_video_is_read_from_beginning_to_end(tmp_path, write_video, cut):
    good = write_video(tmp_path / "good.mp4", num_frames=16)
    assert check_video(Check(str(good), 16)) is None
    short = check_video(Check(str(good), 17))
    assert (short.problem, short.num_frames) == ("too short", 16)
    found = check_video(Check(str(cut), 8))
    assert found.problem == "broken off" and 8 <= found.num_frames < 60 and "cut.avi breaks off" in found.detail
    assert check_video(Check(str(tmp_path / "gone.mp4"), 8)).problem == "missing"
    (tmp_path / "text.mp4").write_text("no video " * 100)
    assert check_video(Check(str(tmp_path / "text.mp4"), 8)).problem == "unreadable"
    part = check_video(Check(str(good), 8, start=0.0, end=0.5))  # at 8 frames per second
    assert (part.problem, part.num_frames) == ("too short", 4)


def test_damage_in_the_middle_is_seen(tmp_path, write_video):
    """A file that opens, has all its packets and gives its first frames, with bytes of a later picture overwritten."""
    path = write_video(tmp_path / "damaged.mkv", num_frames=40, codec="mpeg4", gop=40, size=(64, 64))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(content)
    found = check_video(Check(str(path), 8))
    assert found is not None and found.problem in ("damaged", "broken off"), found


def test_what_a_data_set_leaves_out_comes_first(tmp_path, write_video, cut):
    for name in ("red_star/a.mp4", "red_star/b.mp4", "BlueBar/c.mp4"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "data" / name, num_frames=8)
    cut.rename(tmp_path / "data" / "BlueBar" / "cut.avi")
    (tmp_path / "data" / "empty").mkdir()
    (tmp_path / "data" / "red_star" / "notes.txt").touch()
    config = video_builder(tmp_path / "data", allow_empty_classes=True).config
    findings = list(check_data(config, num_workers=2))
    assert [each and (each.path, each.label, each.problem) for each in findings] == [
        ("red_star/notes.txt", "", "left out"),
        ("empty", "", "empty folder"),
        None,
        ("BlueBar/cut.avi", "Blue Bar", "broken off"),
        None,
        None,
    ]


def test_classes_of_a_label_file_without_a_clip_are_listed(tmp_path, write_video):
    (tmp_path / "data" / "run").mkdir(parents=True)
    write_video(tmp_path / "data" / "run" / "a.mp4", num_frames=8)
    (tmp_path / "labels.txt").write_text("run\nwalk\n")
    options = {"label_file": str(tmp_path / "labels.txt"), "allow_empty_classes": True}
    (empty, good) = check_data(video_builder(tmp_path / "data", **options).config, num_workers=0)
    assert (empty.split, empty.label, empty.problem) == ("train", "walk", "empty class") and good is None


def test_a_video_that_kills_its_process_is_reported_and_the_others_go_on(tmp_path, write_video, monkeypatch):
    from modeling_mote.processing import check_videos

    def decode_or_die(file, *args, **kwargs):
        if "deadly" in file:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(file, *args, **kwargs)

    decode = check_videos.decode_video
    monkeypatch.setattr(check_videos, "decode_video", decode_or_die)
    (tmp_path / "data" / "run").mkdir(parents=True)
    for name in ("a.mp4", "deadly.mp4", "z.mp4"):
        write_video(tmp_path / "data" / "run" / name, num_frames=8)
    findings = list(check_data(video_builder(tmp_path / "data").config, num_workers=2))
    assert findings[0] is None and findings[2] is None
    assert findings[1].problem == "unreadable" and "deadly.mp4 can't be read: reading it kills" in findings[1].detail
    assert "SIGKILL" in findings[1].detail
