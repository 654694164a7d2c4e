"""The data checker, on trees with every kind of bad file, and as the command that people type."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from modeling_mote.processing.check_videos import Problem, check_all, main


@pytest.fixture
def tree(tmp_path, write_video):
    """A folder a class: two good videos, one of 5 frames, one cut off, one that is no video, and an empty file."""
    root = tmp_path / "videos"
    for name in ("good", "bad"):
        (root / name).mkdir(parents=True)
    write_video(root / "good" / "a.mp4", num_frames=16)
    write_video(root / "good" / "b.avi", num_frames=8, codec="mpeg4")
    write_video(root / "bad" / "short.mp4", num_frames=5)
    whole = write_video(tmp_path / "whole.avi", num_frames=60, codec="mpeg4", gop=1).read_bytes()
    (root / "bad" / "torn.avi").write_bytes(whole[: len(whole) // 2])
    (root / "bad" / "text.mp4").write_text("not a video, whatever its name says\n" * 50)
    (root / "bad" / "empty.mkv").write_bytes(b"")
    return root


def read(report: Path) -> dict[str, dict[str, str]]:
    with open(report, newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_every_kind_of_bad_file_is_reported_with_its_reason(tree, tmp_path, capsys):
    report = tmp_path / "report.csv"
    assert main([str(tree), "--output", str(report), "--num-workers", "2"]) == 1
    rows = read(report)
    assert {path: row["problem"] for path, row in rows.items()} == {
        "bad/empty.mkv": "unreadable",
        "bad/short.mp4": "too short",
        "bad/text.mp4": "unreadable",
        "bad/torn.avi": "broken off",
    }
    assert list(rows) == sorted(rows)
    assert all(row["label"] == "bad" and row["split"] == "train" and row["detail"] for row in rows.values())
    assert rows["bad/short.mp4"]["num_frames"] == "5"
    assert 8 <= int(rows["bad/torn.avi"]["num_frames"]) < 60
    assert rows["bad/empty.mkv"]["num_frames"] == ""
    assert "6 videos checked: 1 broken off, 1 too short, 2 unreadable." in capsys.readouterr().err


def test_a_good_data_set_gives_an_empty_report_and_exit_code_0(tree, capsys):
    for path in (tree / "bad").iterdir():
        if path.name != "short.mp4":
            path.unlink()
    assert main([str(tree), "--num-frames", "5", "--num-workers", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "path,split,label,problem,num_frames,detail\n"
    assert "3 videos checked: nothing wrong." in captured.err


def test_missing_files_and_parts_of_files_of_a_csv_list(tree, tmp_path):
    # b.avi lasts 1 s at 8 frames a second.
    (tmp_path / "list.csv").write_text(
        "path,label,start,end\n"
        "videos/good/a.mp4,x,0,1\n"
        "videos/good/gone.mp4,x,,\n"
        "videos/good/b.avi,y,0.5,1\n"
        "videos/good/b.avi,y,5,\n"
    )
    report = tmp_path / "report.csv"
    assert main([str(tmp_path / "list.csv"), "--split", "test", "--output", str(report), "--num-workers", "1"]) == 1
    with open(report, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["split"], row["problem"], row["num_frames"]) for row in rows] == [
        ("videos/good/gone.mp4", "x", "test", "missing", ""),
        ("videos/good/b.avi", "y", "test", "too short", "4"),
        ("videos/good/b.avi", "y", "test", "unreadable", ""),
    ]


def test_the_command_on_a_named_data_set(tmp_path, write_video):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    for split in ("train", "test"):
        (lists / f"{split}list02.txt").write_text(f"Archery/v_{split}.avi\nYoYo/v_{split}_gone.avi\n")
        (tmp_path / "Archery").mkdir(exist_ok=True)
        write_video(tmp_path / "Archery" / f"v_{split}.avi", codec="mpeg4")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "modeling_mote.processing.check_videos",
            "ucf101",
            "--data-dir",
            ".",
            "--name",
            "split2",
        ]
        + ["--split", "test", "--output", "report.csv", "--num-workers", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "2/2" in done.stderr and "2 videos checked: 1 missing." in done.stderr and "Traceback" not in done.stderr
    rows = read(tmp_path / "report.csv")
    assert {path: (row["problem"], row["label"]) for path, row in rows.items()} == {
        "YoYo/v_test_gone.avi": ("missing", "YoYo")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no folder, no CSV file and no known data set"),
        (["ucf101"], "`data_dir` is missing"),
        (["moving_shapes"], "there are no files to check"),
        (["ucf101", "--data-dir", "nowhere"], "nowhere is not a folder"),
        (["{tree}", "--output", "{tree}/gone/report.csv"], "gone does not exist; make it first"),
        (["{tree}", "--num-frames", "0"], "must be at least 1"),
        (["{tree}", "--list-dir", "x"], "A folder of videos takes no list_dir."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(tree, capsys, arguments, message):
    assert main([argument.format(tree=tree) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_report_that_cannot_be_written_leaves_the_old_one(tree, tmp_path, capsys):
    folder = tmp_path / "reports"
    folder.mkdir()
    (folder / "report.csv").mkdir()  # a folder of that name cannot be replaced by a file
    assert main([str(tree), "--output", str(folder / "report.csv"), "--num-workers", "1"]) == 1
    assert [path.name for path in folder.iterdir()] == ["report.csv"]
    assert "error: " in capsys.readouterr().err


def kill_on_seven(number: int) -> Problem | None:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return Problem("odd", str(number)) if number % 2 else None


def test_a_video_that_kills_its_process_is_reported_and_the_others_go_on():
    results = dict(check_all(range(40), kill_on_seven, num_workers=3))
    assert sorted(results) == list(range(40))
    assert results[7].problem == "unreadable" and "kills the process" in results[7].detail
    assert all(results[n] == kill_on_seven(n) for n in range(40) if n != 7)


def test_real_clips(shared, tmp_path):
    """What the clips that break readers are called."""
    names = ("corrupted.mp4", "audio_only_nasa.mp3", "trunc_avi_SoccerJuggling.avi", "v_Punch_g03_c01.avi", "yoga.mp4")
    lines = [f"{shared / 'videos' / name},x" for name in names]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    report = tmp_path / "report.csv"
    assert main([str(tmp_path / "list.csv"), "--output", str(report), "--num-workers", "2"]) == 1
    problems = {Path(path).name: row["problem"] for path, row in read(report).items()}
    assert problems["audio_only_nasa.mp3"] == "unreadable" and problems["yoga.mp4"] == "missing"
    assert problems["trunc_avi_SoccerJuggling.avi"] == "broken off"
    assert "v_Punch_g03_c01.avi" not in problems
