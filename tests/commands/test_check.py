"""`mote check`, on trees with every kind of bad file."""

import csv
from pathlib import Path

import pytest

from modeling_mote.commands.command_line import run_command


@pytest.fixture
def tree(tmp_path, write_video):
    """One folder per class: two good videos, one of 5 frames, one cut off, one that is no video, and an empty file."""
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


def check(*arguments: object) -> int:
    return run_command("check", [str(argument) for argument in arguments])


def read(report: Path) -> dict[str, dict[str, str]]:
    with open(report, newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def test_every_kind_of_bad_file_is_reported_with_its_reason(tree, tmp_path, capsys):
    (tree / "notes.txt").touch()
    (tree / "GreenBar").mkdir()
    report = tmp_path / "report.csv"
    assert check(tree, "--output", report, "--num_workers", 2) == 1
    rows = read(report)
    assert {path: row["problem"] for path, row in rows.items()} == {
        "bad/empty.mkv": "unreadable",
        "bad/short.mp4": "too short",
        "bad/text.mp4": "unreadable",
        "bad/torn.avi": "broken off",
        "notes.txt": "left out",
        "GreenBar": "empty folder",
    }
    bad = [row for path, row in rows.items() if path.startswith("bad")]
    assert all(row["label"] == "bad" and row["split"] == "train" and row["detail"] for row in bad)
    assert rows["bad/short.mp4"]["num_frames"] == "5" and rows["bad/empty.mkv"]["num_frames"] == ""
    assert 8 <= int(rows["bad/torn.avi"]["num_frames"]) < 60
    said = capsys.readouterr().err
    assert f"1 file (notes.txt) of {tree} without a video's suffix or a class left out" in said
    assert f"1 folder (GreenBar) of {tree} without a video left out" in said and "6/6" in said
    assert "6 videos checked: 1 broken off, 1 empty folder, 1 left out, 1 too short, 2 unreadable." in said


def test_a_good_data_set_gives_an_empty_report_and_exit_code_0(tree, capsys):
    for path in (tree / "bad").iterdir():
        if path.name != "short.mp4":
            path.unlink()
    assert check(tree, "--num-frames", 5, "--num_workers", 1) == 0
    captured = capsys.readouterr()
    assert captured.out == "path,split,label,problem,num_frames,detail\n"
    assert "3 videos checked: nothing wrong." in captured.err
    (tree / "notes.txt").touch()  # nothing is wrong with it
    assert check(tree, "--num-frames", 5, "--num_workers", 1) == 0
    assert "notes.txt,,,left out," in capsys.readouterr().out


def test_missing_files_and_parts_of_files_of_a_csv_list(tree, tmp_path):
    # b.avi lasts 1 s at 8 frames per second.
    (tmp_path / "list.csv").write_text(
        "path,label,start,end\n"
        "videos/good/a.mp4,x,0,1\n"
        "videos/good/gone.mp4,x,,\n"
        "videos/good/b.avi,y,0.5,1\n"
        "videos/good/b.avi,y,5,\n"
    )
    report = tmp_path / "report.csv"
    assert check(tmp_path / "list.csv", "--split", "test", "--output", report, "--num_workers", 0) == 1
    with open(report, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["split"], row["problem"], row["num_frames"]) for row in rows] == [
        ("videos/good/gone.mp4", "x", "test", "missing", ""),
        ("videos/good/b.avi", "y", "test", "too short", "4"),
        ("videos/good/b.avi", "y", "test", "unreadable", ""),
    ]


def test_a_part_of_a_benchmark_lacks_classes_as_training_will_say(tmp_path, write_video, capsys):
    (tmp_path / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    (tmp_path / "testlist02.txt").write_text("Archery/v_test.avi\nYoYo/v_test_gone.avi\n")
    (tmp_path / "Archery").mkdir()
    write_video(tmp_path / "Archery" / "v_test.avi", codec="mpeg4")
    options = ("--data_dir", tmp_path, "--data_name", "split2", "--split", "test", "--num_workers", 0)
    assert check("ucf101", *options, "--output", tmp_path / "report.csv") == 1
    with open(tmp_path / "report.csv", newline="") as file:
        rows = [(row["path"], row["label"], row["problem"]) for row in csv.DictReader(file)]
    assert rows[0] == ("YoYo/v_test_gone.avi", "YoYo", "missing")
    assert len(rows) == 1 + 99 and ("", "Apply Eye Makeup", "empty class") in rows
    assert "2 videos checked: 99 empty class, 1 missing." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder or list"),
        (["no/where.csv"], "no/where.csv: there is no such folder or list"),
        (["ucf101"], "`data_dir` is missing"),
        (["moving_shapes"], "there are no files to check"),
        (["ucf101", "--data_dir", "nowhere"], "--data_dir nowhere: there is no such folder"),
        (["{tree}", "--output", "{tree}/gone/report.csv"], "its folder does not exist; make it first"),
        (["{tree}", "--output", "{tree}/report.txt"], "must end in .csv"),
        (["{tree}", "--list_dir", "x"], "A folder of videos takes no list_dir."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(tree, capsys, arguments, message):
    assert check(*(argument.format(tree=tree) for argument in arguments)) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_report_that_cannot_be_written_leaves_the_old_one(tree, tmp_path, capsys):
    (tmp_path / "reports" / "report.csv").mkdir(parents=True)  # a folder cannot be replaced by a file
    assert check(tree, "--output", tmp_path / "reports" / "report.csv", "--num_workers", 0) == 1
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["report.csv"]
    assert "error: " in capsys.readouterr().err


def test_real_clips(shared, tmp_path):
    """What the clips that break readers are called."""
    names = ("corrupted.mp4", "audio_only_nasa.mp3", "trunc_avi_SoccerJuggling.avi", "v_Punch_g03_c01.avi", "yoga.mp4")
    lines = [f"{shared / 'videos' / name},x" for name in names]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    report = tmp_path / "report.csv"
    assert check(tmp_path / "list.csv", "--output", report, "--num_workers", 2) == 1
    problems = {Path(path).name: row["problem"] for path, row in read(report).items()}
    assert problems["audio_only_nasa.mp3"] == "unreadable" and problems["yoga.mp4"] == "missing"
    assert problems["trunc_avi_SoccerJuggling.avi"] == "broken off"
    assert "v_Punch_g03_c01.avi" not in problems


def test_videos_that_belong_to_no_data_set(write_video, tmp_path, capsys):
    (tmp_path / "flat").mkdir()
    good, short = write_video(tmp_path / "good.mp4"), write_video(tmp_path / "flat" / "short.mp4", num_frames=3)
    (tmp_path / "flat" / "notes.txt").write_text("none")
    assert check(str(good)) == 0
    assert check(str(tmp_path / "*.mp4"), str(short.parent)) == 1
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()[1:]))
    assert [(Path(row["path"]).name, row["problem"]) for row in rows] == [
        ("short.mp4", "too short"),
        ("notes.txt", "left out"),
    ]
