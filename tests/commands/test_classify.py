"""`mote classify` as users run it: a video, a folder with bad files, a long video in flat memory, an interruption."""

import contextlib
import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, pipeline

from modeling_mote import MoTEForVideoClassification, MoTEModel
from modeling_mote.commands.command_line import run_command
from modeling_mote.processing import ExampleSet, MoTEProcessor, MoTEVideoProcessor, classify_windows, encode_classes
from modeling_mote.processing.files import only_writer
from modeling_mote.video_scores import COLUMNS, KEPT_THUMBNAILS, thin_thumbnails

ROOT = Path(__file__).resolve().parents[2]
MOTE = [sys.executable, "-m", "modeling_mote"]
LABELS = ["left", "right", "still"]


@pytest.fixture(scope="module")
def model(clip_folder, tmp_path_factory) -> str:
    """A MoTE of 4 frames with random temporal layers, whose training classes have features of another prompt."""
    folder = tmp_path_factory.mktemp("mote") / "model"
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mote = MoTEModel.from_pretrained(clip_folder, num_frames=4)
        with torch.no_grad():
            for weight in mote.temporal_model.parameters():
                weight += 0.1 * torch.randn_like(weight)
    mote.set_training_classes(LABELS, encode_classes(mote, tokenizer, LABELS, "plain"))
    mote.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    videos = MoTEVideoProcessor(size={"shortest_edge": 128}, crop_size=crop, num_frames=4, short_video="loop")
    MoTEProcessor(videos, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classify(model):
    return pipeline("zero-shot-video-classification", model=model, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_video) -> Path:
    """Five videos, of which one breaks off and one is none, and a text."""
    root = tmp_path_factory.mktemp("videos")
    (root / "below" / "further").mkdir(parents=True)
    for number, name in enumerate(["b.mp4", "a, with comma.mkv", "below/further/c.avi"]):
        write_video(root / name, num_frames=20 + number, size=(40, 40 + 8 * number), codec="mpeg4")
    whole = write_video(root / "cut.mkv", num_frames=60, codec="mpeg4", gop=4).read_bytes()
    (root / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (root / "below" / "none.mp4").write_text("no video")
    (root / "list.txt").write_text("of videos")
    return root


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
    finished = subprocess.run([*MOTE, "classify", *map(str, arguments)], capture_output=True, text=True)
    assert finished.returncode == code, finished.stderr
    assert "Traceback" not in finished.stderr
    return finished


@pytest.fixture
def call(capsys):
    """`call(*arguments)`: exit code, stdout and stderr of the command, run in this process."""

    def main(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with warnings.catch_warnings():
            code = run_command("classify", [str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return main


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- whole videos -------------------------------------------------------------------------------------------------


def test_a_label_file_describes_labels(call, model, classify, folder, tmp_path):
    (tmp_path / "labels.csv").write_text("name,description\nfirst_one,left\nfirst_one,right\nstill,\n")
    output, described = tmp_path / "scores.json", {"first one": ["left", "right"], "still": None}
    given = [folder / "b.mp4", "--model", model, "--labels_file", tmp_path / "labels.csv", "--output", output]
    code, printed, errors = call(*given)
    assert code == 0 and "first one" in printed and "first_one → first one" in errors
    found = json.loads(output.read_text())
    assert found["labels"] == {"first one": ["left", "right"], "still": []}
    expected = classify(str(folder / "b.mp4"), candidate_labels=described)
    (video,) = found["videos"]
    assert [row["label"] for row in video["scores"]] == [row["label"] for row in expected]
    assert [row["score"] for row in video["scores"]] == pytest.approx([row["score"] for row in expected], abs=1e-5)

    (tmp_path / "labels.csv").write_text("name,description\nfirst_one,still right\nstill,\n")
    assert "scored before" not in call(*given)[2]  # other texts: nothing that was kept fits
    assert json.loads(output.read_text())["videos"][0]["scores"] != video["scores"]
    assert "1 of 1 videos were scored before" in call(*given)[2]
    _, _, errors = call(*given, "--window", 1, "--output", tmp_path / "windows.json")
    windows = json.loads((tmp_path / "windows.json").read_text())["videos"][0]["windows"]
    assert all(set(window["scores"]) == {"first one", "still"} for window in windows)


def test_one_video(classify, model, folder, tmp_path):
    video, output = folder / "b.mp4", tmp_path / "scores.csv"
    finished = run(video, "--labels", "left, right , still", "--model", model, "--output", output, "--top_k", 2)
    expected = classify(str(video), candidate_labels=LABELS, top_k=2)
    head, *lines = finished.stdout.splitlines()
    assert head.split() == ["video", "score", "label"]
    assert [line.split()[-2:] for line in lines] == [[f"{row['score']:.3f}", row["label"]] for row in expected]
    assert output.read_text().splitlines()[0] == "video,start,end,label,score,similarity,error,warning"
    rows = rows_of(output)
    assert [(row["video"], row["label"]) for row in rows] == [(str(video), row["label"]) for row in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([row["score"] for row in expected], abs=1e-6)
    assert not any(row[name] for row in rows for name in ("start", "end", "error", "warning"))
    assert "video" in finished.stderr and "100%" in finished.stderr  # the progress bar


@pytest.fixture(scope="module")
def calibrated(model, tmp_path_factory) -> str:
    """The model, whose sets of any coverage up to 0.9 hold a label whose probability is 0.12 or more."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    sure = -math.log(0.12)
    config["calibration"] = {
        "temperature": 1.0,
        "sigmoid": [1.0, 0.0],
        "known": [0.0] * 5 + [1.0],
        "residuals": [sure, sure + 1],
        "ranks": [9, 10],
        "num_clips": 10,
        "num_labels": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_sets_of_labels_are_whole(call, calibrated, folder, tmp_path):
    labels = [f"{first} {second}" for first in LABELS[:2] for second in (*LABELS, "of")]
    given = [folder / "b.mp4", "--model", calibrated, "--labels", ", ".join(labels), "--output", tmp_path / "set.json"]
    options = {"candidate_labels": labels, "coverage": 0.8}
    expected = pipeline("zero-shot-video-classification", model=calibrated, device="cpu")(given[0], **options)
    assert len(expected) > 5  # the labels that are shown without a set
    code, printed, _ = call(*given, "--coverage", 0.8)
    assert code == 0 and len(printed.splitlines()) == 1 + len(expected)
    (video,) = json.loads((tmp_path / "set.json").read_text())["videos"]
    assert [row["label"] for row in video["scores"]] == [row["label"] for row in expected]
    assert len(call(*given, "--coverage", 0.8, "--top_k", 2)[1].splitlines()) == 3
    assert len(call(*given)[1].splitlines()) == 6


def test_no_label_may_be_left(call, calibrated, folder, tmp_path):
    given = [folder / "b.mp4", "--model", calibrated, "--labels", "left, right", "--output", tmp_path / "none.csv"]
    code, printed, errors = call(*given, "--threshold", 0.99)
    assert code == 0 and "no label is left" in printed and "error" not in printed + errors
    assert rows_of(tmp_path / "none.csv") == [
        {name: str(folder / "b.mp4") if name == "video" else "" for name in COLUMNS}
    ]


def test_a_folder_with_bad_files(classify, model, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("left\nright\nstill\n")
    options = ["--labels_file", tmp_path / "labels.txt", "--num_workers", 2, "--batch_size", 2]
    finished = run(folder, "--model", model, "--output", tmp_path / "scores.json", *options, code=1)
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["labels"] == LABELS and result["model"] == model and result["window"] is None
    videos = {row.pop("video"): row for row in result["videos"]}
    assert list(videos) == ["a, with comma.mkv", "b.mp4", "below/further/c.avi", "below/none.mp4", "cut.mkv"]
    bad, cut = videos.pop("below/none.mp4"), videos["cut.mkv"]
    assert "none.mp4 cannot be opened as a video" in bad["error"] and "scores" not in bad
    assert "cut.mkv breaks off after" in cut["warning"]
    for name, row in videos.items():
        assert row["error"] is None and (row["warning"] is None) == (name != "cut.mkv")
        with pytest.warns(UserWarning) if name == "cut.mkv" else contextlib.nullcontext():
            expected = classify(str(folder / name), candidate_labels=LABELS)
        assert [score["label"] for score in row["scores"]] == [score["label"] for score in expected]
        assert [score["score"] for score in row["scores"]] == pytest.approx([s["score"] for s in expected], abs=1e-5)
    assert "below/none.mp4" in finished.stdout and "cannot be opened as a video" in finished.stdout
    assert "1 of 5 files could not be read" in finished.stderr
    assert "1 file (" in finished.stderr and "list.txt) without a video's suffix left out" in finished.stderr
    assert finished.stderr.count("cut.mkv breaks off after") == 1


def test_bad_files_are_rows_of_the_csv(call, model, folder, tmp_path):
    options = ["--labels", "left,right", "--model", model, "--num_workers", 0]
    code, _, _ = call(folder, *options, "--output", tmp_path / "x.csv")
    rows = rows_of(tmp_path / "x.csv")
    assert code == 1 and len(rows) == 9
    (bad,) = [row for row in rows if row["error"]]
    assert bad["video"] == "below/none.mp4" and not bad["label"] and not bad["score"]
    assert {row["video"] for row in rows if row["warning"]} == {"cut.mkv"}


def test_all_read(call, model, folder):
    code, printed, errors = call(folder / "below" / "further", "--labels", "left", "--model", model)
    assert code == 0 and "1.000  left" in printed and "could not be read" not in errors
    assert "One label alone always has the score 1" in errors


def test_without_labels_the_classes_are_those_of_the_training(call, model, folder, tmp_path):
    """By the features of the training, which had other prompts than the pipeline has."""
    video = folder / "b.mp4"
    code, _, errors = call(video, "--model", model, "--output", tmp_path / "x.csv")
    assert code == 0 and "3 classes that the model was trained on" in errors
    closed = MoTEForVideoClassification.from_pretrained(model).eval()
    inputs = MoTEProcessor.from_pretrained(model)(videos=[str(video)], return_tensors="pt")
    with torch.no_grad():
        expected = closed(**inputs).logits.softmax(-1)[0].tolist()
    scores = {row["label"]: float(row["score"]) for row in rows_of(tmp_path / "x.csv")}
    assert scores == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-6)
    call(video, "--model", model, "--output", tmp_path / "y.csv", "--labels", ",".join(LABELS))
    assert scores != pytest.approx({r["label"]: float(r["score"]) for r in rows_of(tmp_path / "y.csv")}, abs=1e-4)


def test_examples_are_a_folder_per_label_or_a_saved_set(call, model, classify, folder, tmp_path, write_video):
    root, noise = tmp_path / "few", np.random.default_rng(0)
    for name, color in (("left", 40), ("right_turn", 210)):
        for number in range(3):
            (root / name).mkdir(parents=True, exist_ok=True)
            frames = (color + noise.normal(0, 12, (8, 40, 40, 3))).clip(0, 255).astype(np.uint8)
            write_video(root / name / f"{number}.mp4", frames=frames)
    (root / "left" / "notes.txt").write_text("of clips")
    bright = write_video(tmp_path / "bright.mp4", frames=np.full((8, 40, 40, 3), 205, np.uint8))
    out = tmp_path / "x.csv"
    code, _, errors = call(bright, "--model", model, "--examples", root, "--output", out)
    assert code == 0
    assert "6 example videos of 2 of the 2 labels" in errors
    assert "right_turn → right turn" in errors and "left/notes.txt" in errors
    given = {"left": sorted((root / "left").glob("*.mp4")), "right turn": sorted((root / "right_turn").glob("*.mp4"))}
    examples = ExampleSet.from_videos(classify, given)
    expected = {row["label"]: row["score"] for row in classify(str(bright), list(given), examples=examples)}
    scores = {row["label"]: float(row["score"]) for row in rows_of(out)}
    assert max(scores, key=scores.__getitem__) == "right turn"
    assert scores == pytest.approx(expected, abs=1e-4)
    examples.save(tmp_path / "few.safetensors")
    saved = ("--model", model, "--examples", tmp_path / "few.safetensors")
    call(bright, *saved, "--output", tmp_path / "y.csv")
    assert {r["label"]: float(r["score"]) for r in rows_of(tmp_path / "y.csv")} == pytest.approx(scores, abs=1e-4)
    code, _, errors = call(root / "left" / "0.mp4", *saved, "--window", 2, "--labels", "left,right turn,archery")
    assert code == 0 and "6 example videos of 2 of the 3 labels" in errors and "their scores flatter" in errors
    # Other examples are another run: what was kept is not taken.
    (root / "left" / "0.mp4").unlink()
    assert "were scored before" not in call(bright, "--model", model, "--examples", root, "--output", out)[2]
    assert "1 of 1 videos were scored before" in call(bright, "--model", model, "--examples", root, "--output", out)[2]
    (root / "left" / "1.mp4").write_bytes(b"no video")
    code, _, errors = call(bright, "--model", model, "--examples", root)
    assert code == 1 and re.search(r"error: an example can't be read: .*left/1\.mp4", errors)
    code, _, errors = call(
        bright, "--model", model, "--examples", tmp_path / "few.safetensors", "--labels", "left,archery"
    )
    assert code == 1 and "label 'right turn' is not among the 2 candidate labels" in errors


def test_the_table_is_aligned(call, model, tmp_path, write_video):
    for name in ("short.mp4", "a file with quite a long name, as files from cameras have.mp4", "柔道の試合.mp4"):
        write_video(tmp_path / name, num_frames=5, codec="mpeg4")
    _, printed, _ = call(tmp_path, "--labels", "a label that goes on and on, still", "--model", model)
    head, *lines = printed.splitlines()

    def column(line: str, text: str) -> int:  # as a terminal counts
        return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in line[: line.index(text)])

    assert len(lines) == 6
    assert {column(line, "0.") for line in lines} == {column(head, "score")}
    labels = [column(line, "a label" if "a label" in line else "still") for line in lines]
    assert set(labels) == {column(head, "label")}


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_file_names_of_any_bytes(call, model, tmp_path, write_video):
    write_video(tmp_path / "x.mp4", num_frames=5, codec="mpeg4")
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / "x.mp4").rename(tmp_path / name)
    assert call(tmp_path, "--model", model, "--output", tmp_path / "x.csv")[0] == 0
    assert b"caf\xe9.mp4" in (tmp_path / "x.csv").read_bytes()


# --- windows ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory, write_video) -> Path:
    """20.5 s of two scenes in turn."""
    draw = np.random.default_rng(0)
    scenes = draw.integers(0, 255, (2, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    frames = [np.roll(scenes[index // 40 % 2], index, axis=1) for index in range(164)]
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=frames, codec="mpeg4")


def test_windows_of_a_long_video(classify, model, long, tmp_path):
    options = ["--labels", ",".join(LABELS), "--model", model, "--window", 3, "--stride", 0.5, "--top_k", 2]
    finished = run(long, *options, "--output", tmp_path / "x.json", "--timeline", tmp_path / "x.png")
    (result,) = json.loads((tmp_path / "x.json").read_text())["videos"]
    expected = list(classify_windows(classify, long, LABELS, window=3, stride=0.5))
    assert [(each["start"], each["end"]) for each in result["windows"]] == [(e["start"], e["end"]) for e in expected]
    for each, other in zip(result["windows"], expected, strict=True):
        assert each["scores"] == pytest.approx(dict(list(other["scores"].items())[:2]), abs=1e-5)
    segments = result["segments"]
    assert set(segments[0]) == {"start", "end", "label", "score", "similarity"}
    assert (segments[0]["start"], segments[-1]["end"]) == (0, 20.5)
    for one, following in zip(segments, segments[1:], strict=False):
        assert one["end"] == following["start"] and one["label"] != following["label"]
    assert finished.stdout.splitlines()[0].split() == ["video", "start", "end", "score", "label"]
    assert len(finished.stdout.splitlines()) == 1 + len(segments)
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 100
    assert "long.mp4" in finished.stderr


def test_windows_of_a_folder_as_csv(call, model, folder, tmp_path):
    options = ["--labels", "left,right", "--model", model, "--window", 1, "--output", tmp_path / "x.csv"]
    code, _, errors = call(folder, *options)
    rows = rows_of(tmp_path / "x.csv")
    assert code == 1 and len({row["video"] for row in rows}) == 5
    assert [row["video"] for row in rows if row["error"]] == ["below/none.mp4"]
    assert {row["video"] for row in rows if row["warning"]} == {"cut.mkv"} and "cut.mkv breaks off" in errors
    whole = [row for row in rows if row["video"] == "b.mp4"]
    assert float(whole[0]["start"]) == 0 and float(whole[-1]["end"]) == 2.5
    assert all(row["label"] in ("left", "right") and 0.5 <= float(row["score"]) <= 1 for row in whole)


def test_smoothing(call, model, long, tmp_path):
    options = ["--labels", ",".join(LABELS), "--model", model, "--window", 2, "--output", tmp_path / "x.json"]
    curves = []
    for more in ([], ["--smooth", 5]):
        assert call(long, *options, *more)[0] == 0
        (result,) = json.loads((tmp_path / "x.json").read_text())["videos"]
        curves.append([each["scores"]["left"] for each in result["windows"]])
    assert np.abs(np.diff(curves[1])).sum() < 0.8 * np.abs(np.diff(curves[0])).sum()


def test_thumbnails_of_a_long_video_are_thinned():
    windows = list(thin_thumbnails({"start": n, "thumbnail": n} for n in range(5000)))
    kept = [each["thumbnail"] for each in windows if each["thumbnail"] is not None]
    assert KEPT_THUMBNAILS // 2 <= len(kept) <= KEPT_THUMBNAILS + 1
    assert len(set(np.diff(kept))) == 1 and len(windows) == 5000


@pytest.mark.slow  # graphs are exported
def test_an_engine_scores_as_pytorch_does_and_says_so(call, model, long, folder, tmp_path):
    pytest.importorskip("onnxscript", reason="engines need the extra export")

    def scores(*options: object) -> tuple[list[float], str]:
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        code, _, errors = call(*options, "--model", model, "--labels", "left, right, still", "--output", output)
        assert code == 0
        (video,) = json.loads(output.read_text())["videos"]
        if "windows" in video:
            return [score for window in video["windows"] for score in window["scores"].values()], errors
        return [row["similarity"] for row in video["scores"]], errors

    for video in ([folder / "b.mp4"], [long, "--window", 2]):
        plain, errors = scores(*video)
        assert "runs the image tower" not in errors
        found, errors = scores(*video, "--engine", "onnxruntime")
        assert found == pytest.approx(plain, abs=1e-5)
        assert "onnxruntime runs the image tower: on 4 frames checked, it moves no cosine by more than" in errors
        assert "Fastest here: " in scores(*video, "--fast")[1]
    output = tmp_path / "kept.csv"
    given = [folder / "b.mp4", "--model", model, "--labels", "left, right, still", "--output", output]
    call(*given)
    assert "scored before" in call(*given)[2] and "scored before" not in call(*given, "--engine", "onnxruntime")[2]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(model, tmp_path, write_video):
    """Peak memory of a process, for a video and one of ten times its length: its frames alone would add 106 MB."""
    # A child's peak counts from that of the process that starts it, so it is one as small as this.
    measure = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    measure += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    peaks = []
    frame = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for seconds in (30, 300):
        frames = [np.roll(frame, index, axis=1) for index in range(8 * seconds)]
        video = write_video(tmp_path / f"{seconds}.mp4", frames=frames, codec="mpeg4")
        options = ["--model", model, "--window", "4", "--stride", "0.5", "--timeline", tmp_path / "x.png"]
        finished = subprocess.run(
            [sys.executable, "-c", measure, *MOTE, "classify", video, *options], capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        peaks.append(int(finished.stdout.split()[-1]) / (1 << (20 if sys.platform == "darwin" else 10)))  # MB
    assert peaks[1] < peaks[0] + 20, peaks


def test_the_commands_of_the_page_on_long_videos(call, model, long, folder, tmp_path, monkeypatch):
    """`docs/long_videos.md`, with files under the names that it uses."""
    page = (ROOT / "docs" / "long_videos.md").read_text(encoding="utf-8")
    for word, known in (("serving", "left"), ("celebrating", "right"), ("resting", "still")):
        page = page.replace(word, known)  # the tiny tokenizer knows no other
    for name, target in (("match.mp4", long), ("my_videos", folder / "below" / "further"), ("mote-vitb16", model)):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "labels.txt").write_text("left\nright\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)
    commands = [block for language, block in blocks if not language and block.startswith("mote ")]
    snippets = [block for language, block in blocks if language == "python"]
    assert len(commands) >= 1 and len(snippets) == 1
    for block in commands:
        for command in block.replace("\\\n", " ").strip().splitlines():
            mote, name, *arguments = shlex.split(command)
            assert (mote, name) == ("mote", "classify")
            assert call(*arguments)[0] == 0
    exec(compile(snippets[0], "long_videos.md", "exec"), {})
    assert {"match.json", "match.png", "segments.csv", "timeline.png"} <= {file.name for file in tmp_path.iterdir()}


# --- bad arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"video": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
        ({"model": "/no/such/model"}, "--model /no/such/model: there is no such folder"),
        ({"labels": " "}, "no label was given"),
        ({"labels": "left,left"}, "label 'left' was given twice"),
        ({"labels": "left;right"}, "are one label, as they have no comma"),
        ({"labels": '["left", "right"]'}, "look like JSON"),
        ({"labels": "left, Left"}, "labels 'left' and 'Left' are one to the text tower"),
        ({"labels": "left, zumba"}, "label 'zumba' holds no word that the tokenizer knows"),
        ({"labels": "left polka, left zumba"}, "labels 'left polka' and 'left zumba' are one to the text tower"),
        ({"labels": "left, " + "x" * 100_000}, "has 100000 letters: at most 1000 are taken"),
        ({"labels_file": "x.txt"}, "--labels and --labels_file exclude each other"),
        ({"labels": None, "labels_file": "nowhere.txt"}, "Label file nowhere.txt does not exist"),
        ({"examples": "nowhere"}, "--examples nowhere: there is no such folder or file"),
        ({"output": "x.xlsx"}, "--output x.xlsx must end in .csv or .json"),
        ({"output": "/nowhere/x.csv"}, "its folder does not exist"),
        ({"timeline": "x.png"}, "--timeline needs --window"),
        ({"stride": 2}, "--stride needs --window"),
        ({"window": 2, "timeline": "x.mp4"}, "--timeline x.mp4 must end in .png"),
        ({"window": 0}, "argument --window: 0 is out of range: it must be at least 0.001"),
        ({"window": "nan"}, "argument --window: nan is out of range"),
        ({"window": 2, "stride": -1}, "argument --stride: -1 is out of range"),
        ({"window": 2, "smooth": -1}, "argument --smooth: -1 is out of range"),
        ({"top_k": 0}, "argument --top_k: 0 is out of range: it must be at least 1"),
        ({"batch_size": 0}, "argument --batch_size: 0 is out of range"),
        ({"num_workers": -1}, "argument --num_workers: -1 is out of range"),
        ({"device": "toaster"}, "Device toaster does not work here"),
        ({"engine": "tensorrt"}, "argument --engine: invalid choice: 'tensorrt'"),
        ({"engine": "onnxruntime", "fast": "true"}, "--fast chooses the engine: leave it or --engine out"),
    ],
)
def test_bad_arguments(call, model, folder, arguments, message):
    given = {"video": folder / "b.mp4", "model": model, "labels": "left,right"} | arguments
    video = given.pop("video")
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    code, printed, errors = call(video, *options)
    *_, sentence = errors.splitlines()
    assert code == (2 if message.startswith("argument") else 1)
    assert not printed and sentence.startswith("error: ") and message in sentence and len(sentence) < 300


def test_a_timeline_draws_one_video(call, model, folder):
    code, _, errors = call(folder, "--model", model, "--window", 1, "--timeline", "x.png")
    assert code == 1 and "--timeline draws one video" in errors


def test_a_model_without_training_classes_needs_labels(call, model, clip_folder, folder, tmp_path):
    mote = MoTEModel.from_pretrained(clip_folder, num_frames=4)
    mote.temporal_model.load_state_dict(MoTEModel.from_pretrained(model).temporal_model.state_dict())
    mote.save_pretrained(tmp_path / "classless")
    MoTEProcessor.from_pretrained(model).save_pretrained(tmp_path / "classless")
    code, _, errors = call(folder / "b.mp4", "--model", tmp_path / "classless")
    assert code == 1 and "has no training classes: name labels" in errors


def test_an_untrained_model_is_refused(call, model, clip_folder, folder, tmp_path):
    MoTEModel.from_pretrained(clip_folder, num_frames=4).save_pretrained(tmp_path / "untrained")
    MoTEProcessor.from_pretrained(model).save_pretrained(tmp_path / "untrained")
    for untrained in (tmp_path / "untrained", clip_folder):
        code, _, errors = call(folder / "b.mp4", "--labels", "left, right", "--model", untrained)
        assert code == 1 and "train it first" in errors


def test_a_folder_without_videos(call, model, tmp_path):
    (tmp_path / "text.txt").touch()
    code, _, errors = call(tmp_path, "--model", model)
    assert code == 1 and "holds no file with the suffix of a video" in errors


def test_nothing_is_half_written(call, model, folder, tmp_path, full_disk):
    (tmp_path / "x.csv").write_text("older\n")
    with full_disk(64):
        code, _, errors = call(folder / "b.mp4", "--model", model, "--output", tmp_path / "x.csv")
    assert code == 1 and "error: " in errors
    assert [file.name for file in tmp_path.iterdir()] == ["x.csv"] and (tmp_path / "x.csv").read_text() == "older\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_that_cannot_be_written_is_known_before_the_work(call, model, folder, tmp_path, count_calls):
    (tmp_path / "locked").mkdir(mode=0o500)
    with count_calls("CLIPEncoderLayer") as calls:
        code, _, errors = call(folder, "--model", model, "--output", tmp_path / "locked" / "x.csv")
    assert code == 1 and "x.csv" in errors and not calls[0]


# --- going on -----------------------------------------------------------------------------------------------------


def scored(call, video: object, *options: object) -> tuple[str, str]:
    code, printed, errors = call(video, *options)
    assert code in (0, 1)
    return printed, errors


def test_a_rerun_scores_what_is_new(call, model, folder, tmp_path, write_video, count_calls):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        write_video(videos / f"{number}.mp4", num_frames=8 + number)
    (videos / "none.mp4").write_text("no video")
    options = ["--labels", "left, right", "--model", model, "--num_workers", 0, "--batch_size", 1]
    output = tmp_path / "x.csv"
    first, _ = scored(call, videos, *options, "--output", output)
    before = rows_of(output)

    with count_calls("CLIPVisionEmbeddings") as calls:
        again, errors = scored(call, videos, *options, "--output", output)
        assert not calls[0] and again == first and rows_of(output) == before
        assert "3 of 4 videos were scored before" in errors and "none.mp4 cannot be opened" in again

        write_video(videos / "none.mp4", num_frames=9)  # what could not be read is tried again
        write_video(videos / "1.mp4", num_frames=30)  # and what has changed
        _, errors = scored(call, videos, *options, "--output", output)
        assert calls[0] == 2 and "2 of 4 videos were scored before" in errors
        assert [row["video"] for row in rows_of(output)] == [f"{n}.mp4" for n in "001122"] + ["none.mp4"] * 2

        _, errors = scored(call, videos, *options[2:], "--labels", "left, right, still", "--output", output)
        assert calls[0] == 6 and "scored before" not in errors and len(rows_of(output)) == 12

        _, errors = scored(call, videos, *options, "--top_k", 1, "--output", output)
        assert calls[0] == 10 and len(rows_of(output)) == 4


def test_what_a_killed_run_left_is_taken(call, model, folder, tmp_path, count_calls):
    output = tmp_path / "x.json"
    options = ["--labels", "left, right", "--model", model, "--output", output, "--num_workers", 0]
    scored(call, folder / "below" / "further" / "c.avi", *options)
    progress = tmp_path / "x.json.progress"
    progress.write_text(progress.read_text() + '["/a/torn line')
    output.unlink()
    with count_calls("CLIPVisionEmbeddings") as calls:
        scored(call, folder / "below" / "further" / "c.avi", *options)
    assert not calls[0] and len(json.loads(output.read_text())["videos"][0]["scores"]) == 2
    assert "torn line" not in progress.read_text()


def test_two_runs_do_not_share_an_output(call, model, folder, tmp_path):
    with only_writer(tmp_path / "x.csv"):
        code, _, errors = call(folder / "b.mp4", "--model", model, "--output", tmp_path / "x.csv")
    assert code == 1 and f"Another run is writing to {tmp_path / 'x.csv'}: wait for it" in errors
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.slow
def test_after_ctrl_c_what_was_scored_is_there(model, tmp_path, write_video):
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(4):
        write_video(videos / f"{number}.mp4", num_frames=8)
    for number in range(4, 400):  # enough to be interrupted in
        os.link(videos / "0.mp4", videos / f"{number:03}.mp4")
    output = tmp_path / "x.csv"
    command = [*MOTE, "classify", videos, "--labels", "left,right", "--model", model, "--output", output]
    process = subprocess.Popen([*map(str, command), "--batch_size", "1"], stderr=subprocess.PIPE, text=True)
    progress, deadline = tmp_path / "x.csv.progress", time.monotonic() + 120
    while not progress.exists() or progress.read_text().count("\n") < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1].endswith("error: interrupted")
    done = {row["video"] for row in rows_of(output)}
    assert 3 <= len(done) < 400
    assert not list(tmp_path.glob(".*"))


def test_a_reading_process_that_dies_costs_its_file(call, model, folder, tmp_path, monkeypatch):
    """In a fork, which inherits the trap; the file before it and those after it are scored."""
    read = MoTEVideoProcessor.read

    def read_or_die(self, video, *args, **kwargs):
        if str(video).endswith("b.mp4"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, video, *args, **kwargs)

    monkeypatch.setattr(MoTEVideoProcessor, "read", read_or_die)
    code, printed, errors = call(folder, "--model", model, "--num_workers", 2, "--output", tmp_path / "x.csv")
    rows = rows_of(tmp_path / "x.csv")
    assert code == 1 and "2 of 5 files could not be read" in errors
    (dead,) = [row["error"] for row in rows if row["video"] == "b.mp4"]
    assert "b.mp4 can't be read: reading it kills the process (signal SIGKILL)" in dead
    assert {row["video"] for row in rows if row["score"]} == {"a, with comma.mkv", "below/further/c.avi", "cut.mkv"}


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_long_video_that_is_scored_whole_says_so(call, model, long, folder):
    _, _, errors = call(long, "--model", model)
    assert "scored whole: 4 frames spread over 20 s" in errors and "--window scores it piece by piece" in errors
    assert "scored whole" not in call(long, "--model", model, "--window", 4)[2]
    assert "scored whole" not in call(folder / "b.mp4", "--model", model)[2]


def test_names_in_a_label_file_become_words(call, model, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("left_still\nrightStill\nleft\n")
    options = ["--model", model, "--labels_file", tmp_path / "labels.txt", "--output", tmp_path / "x.json"]
    _, printed, errors = call(folder / "b.mp4", *options)
    assert "Class names are read as words: left_still → left still, rightStill → right Still." in errors
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["labels"] == ["left still", "right Still", "left"]
    assert result["renamed"] == {"left_still": "left still", "rightStill": "right Still"}
    _, words, _ = call(folder / "b.mp4", "--model", model, "--labels", "left still, right Still, left")
    assert words == printed


def test_typed_names_of_folders_are_pointed_out(call, model, folder):
    _, _, errors = call(folder / "b.mp4", "--model", model, "--labels", "left_still, right")
    assert "label 'left_still' holds no word that the tokenizer knows: did you mean 'left still'?" in errors
    _, _, errors = call(folder / "b.mp4", "--model", model, "--labels", "left-still-right, right")
    assert (
        "Labels are read as they are written: did you mean 'left still right' rather than 'left-still-right'?"
        in errors
    )
    assert "did you mean" not in call(folder / "b.mp4", "--model", model)[2]


def test_files_globs_and_folders_together(call, model, folder, tmp_path):
    sources = (folder / "b.mp4", folder / "below", folder / "*.mkv")
    code, _, _ = call(*sources, "--model", model, "--output", tmp_path / "x.csv")
    names = list(dict.fromkeys(row["video"] for row in rows_of(tmp_path / "x.csv")))
    relative = [Path(name).relative_to(folder).as_posix() for name in names]
    assert code == 1
    assert relative == ["b.mp4", "below/further/c.avi", "below/none.mp4", "a, with comma.mkv", "cut.mkv"]
