"""What a person names to the videos that are meant."""

import os
from pathlib import Path

import pytest

from modeling_mote.processing.sources import find_videos, is_url, is_video_name, some_of, walk


@pytest.fixture
def tree(tmp_path) -> Path:
    """Videos at two depths, a text among them, hidden files, and a folder without videos."""
    for name in ("b.mp4", "a.MKV", "notes.txt", ".hidden.mp4", "below/c.avi", "below/.cache/x.mp4", "texts/d.txt"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def test_a_folder(tree):
    videos = find_videos([str(tree)])
    assert videos.names == ["a.MKV", "b.mp4", "below/c.avi"]
    assert videos.files == [str(tree / name) for name in videos.names]
    assert videos.left_out == [str(tree / "notes.txt"), str(tree / "texts" / "d.txt")]
    assert videos.note == f"2 files ({tree}/notes.txt, {tree}/texts/d.txt) without a video's suffix left out"


def test_several_sources_are_named_in_full_and_each_video_once(tree):
    sources = [str(tree / "b.mp4"), str(tree / "below"), str(tree), "https://example.org/e.mp4"]
    videos = find_videos([*sources, str(tree / "below" / ".." / "b.mp4")])
    assert (
        videos.names
        == videos.files
        == [
            str(tree / "b.mp4"),
            str(tree / "below" / "c.avi"),
            str(tree / "a.MKV"),
            "https://example.org/e.mp4",
        ]
    )


def test_globs(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert find_videos(["*.mp4"]) == (["b.mp4"], ["b.mp4"], [])
    assert find_videos(["*"]).names == ["a.MKV", "b.mp4", "below/c.avi"]
    assert find_videos(["*"]).left_out == ["notes.txt", "texts/d.txt"]
    assert find_videos(["**/*.avi"]).names == ["below/c.avi"]
    Path("odd[1].mp4").touch()  # a file is what it is called before it is a glob
    assert find_videos(["odd[1].mp4"]).names == ["odd[1].mp4"]


def test_a_file_that_is_named_is_taken_whatever_its_suffix(tree):
    assert find_videos([str(tree / "notes.txt")]).files == [str(tree / "notes.txt")]


def test_the_home_folder(tree, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert find_videos(["~/b.mp4"]) == (["~/b.mp4"], [str(tree / "b.mp4")], [])
    assert find_videos(["~"]).files == find_videos([str(tree)]).files


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.mp4", "nowhere.mp4 does not exist"),
        ("nowhere/*.mp4", r"nowhere/\*.mp4 does not exist"),
        ("texts", "texts holds no file with the suffix of a video"),
        ("texts/*", r"texts/\* fits no file with the suffix of a video"),
    ],
)
def test_what_is_not_there_is_named(tree, monkeypatch, source, message):
    monkeypatch.chdir(tree)
    with pytest.raises(FileNotFoundError, match=message):
        find_videos(["b.mp4", source])


def test_links_are_followed_once(tree):
    os.symlink(tree, tree / "below" / "loop")
    os.symlink(tree / "b.mp4", tree / "link.mp4")
    assert walk(tree) == ["a.MKV", "b.mp4", "below/c.avi", "link.mp4", "notes.txt", "texts/d.txt"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://a.org/b.mp4", True),
        ("HTTP://a.org/b.mp4", True),
        ("s3://bucket/b.mp4", True),
        ("zip://b.mp4::a.zip", True),
        ("C://videos/b.mp4", False),
        ("a/b.mp4", False),
        ("12:30://b.mp4", False),
    ],
)
def test_urls(source, expected):
    assert is_url(source) == expected


def test_names():
    assert is_video_name("a/B.MP4") and not is_video_name("mp4") and not is_video_name("a.mp4.txt")
    assert some_of(["a"], "file") == "1 file (a)" and some_of(["a", "b"], "class") == "2 classes (a, b)"
    assert some_of("abcd", "file") == "4 files (a, b, c, …)"
