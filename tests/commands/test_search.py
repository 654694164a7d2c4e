"""`mote search`: a folder indexed, asked, changed, interrupted, damaged; and retrieval scored over captions."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoProcessor

from modeling_mote import MoTEModel, video_index
from modeling_mote.commands.command_line import run_command
from modeling_mote.feature_cache import load_tensors
from modeling_mote.processing import MoTEVideoProcessor, encode_classes, encode_texts
from modeling_mote.processing.builders.moving_shapes import encode_mp4, render_clip
from modeling_mote.processing.files import only_writer
from modeling_mote.processing.metrics.retrieval import retrieval_recall

MOTE = [sys.executable, "-m", "modeling_mote", "search"]
SHOWN = ["red bar", "green star", "blue square", "yellow moon", "purple cross"]


@pytest.fixture
def call(capsys):
    """`call(*arguments, code=0)`: stdout and stderr of the command, run in here; or, for code None, its error."""

    def run(*arguments: object, code: int | None = 0) -> tuple[str, str]:
        capsys.readouterr()
        with warnings.catch_warnings():
            given = run_command("search", [str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        if code is None:
            said = err.splitlines()[-1]
            assert given == 1 and said.startswith("error: "), err
            return said, err
        assert given == code, err
        return out, err

    return run


def film(path: Path, shown: str, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    color, shape = shown.split()
    path.write_bytes(encode_mp4(render_clip(color, shape, "moving left", np.random.default_rng(seed)), fps=8))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Five videos, one of them in a folder below, and a file that is none."""
    for number, shown in enumerate(SHOWN):
        film(tmp_path / "videos" / ("below" if number == 2 else "") / f"{shown}.mp4", shown, number)
    (tmp_path / "videos" / "none.mp4").write_bytes(b"no video")
    (tmp_path / "videos" / "notes.txt").write_text("not a video either")
    return tmp_path / "videos"


def stored(index: Path) -> dict[str, torch.Tensor]:
    """{path: feature} in an index."""
    tensors, metadata = load_tensors(index)
    return dict(zip(json.loads(metadata["names"]), tensors["video_embeds"].clone(), strict=True))


@pytest.mark.slow
@torch.no_grad()
def test_the_videos_that_a_text_describes(folder, shapes_model, tmp_path):
    index = tmp_path / "index.safetensors"
    making = subprocess.run(
        [*MOTE, "index", folder, "--model", shapes_model, "--index", index],
        capture_output=True,
        text=True,
    )
    assert making.returncode == 1 and "Traceback" not in making.stderr  # one file can't be read
    assert f"not read: {folder / 'none.mp4'} cannot be opened" in making.stderr
    assert making.stdout == f"{index}: 5 of 6 videos; 6 new or changed, 0 dropped, 1 not read\n"
    assert "notes.txt) without a video's suffix left out" in making.stderr

    model, processor = MoTEModel.from_pretrained(shapes_model), AutoProcessor.from_pretrained(shapes_model)
    for name, feature in stored(index).items():
        pixels = processor(videos=[str(folder / name)], return_tensors="pt")["pixel_values_videos"]
        expected = F.normalize(model.get_video_features(pixels).pooler_output, dim=-1)[0]
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-5)

    shutil.rmtree(folder)  # asking reads no video
    asking = subprocess.run(
        [*MOTE, "query", "--index", index, "--json", "--top_k", "2"],
        capture_output=True,
        text=True,
        input="".join(f"{shown}\n\n" for shown in SHOWN),
    )
    assert asking.returncode == 0, asking.stderr
    answers = [json.loads(line) for line in asking.stdout.splitlines()]
    assert [answer["text"] for answer in answers] == SHOWN
    for answer in answers:
        best, second = answer["videos"]
        assert Path(best["path"]).stem == answer["text"] and best["cosine"] > second["cosine"]
        text = encode_classes(model, processor, [answer["text"]])[0]
        feature = stored(index)[Path(best["path"]).relative_to(folder).as_posix()]
        assert best["cosine"] == pytest.approx(float(feature @ text), abs=1e-5)


def test_only_what_changed_is_read(folder, shapes_model, tmp_path, call):
    index = tmp_path / "index.safetensors"
    command = ("index", folder, "--model", shapes_model, "--index", index, "--num_workers", 0)
    call(*command, code=1)
    before = stored(index)

    out, err = call(*command, code=1)  # what can't be read is tried again: the disk may have been at fault
    assert "1 new or changed, 0 dropped, 1 not read" in out and "not read: " in err

    kept = folder / "red bar.mp4"  # other content in the same size and time: only a reader would notice
    state = kept.stat()
    kept.write_bytes(b"x" * state.st_size)
    os.utime(kept, ns=(state.st_atime_ns, state.st_mtime_ns))
    film(folder / "green star.mp4", "cyan triangle")
    film(folder / "none.mp4", "red moon")
    film(folder / "new" / "one.mp4", "red moon", seed=1)
    (folder / "yellow moon.mp4").unlink()
    out, err = call(*command)
    assert "6 of 6 videos; 3 new or changed, 1 dropped, 0 not read" in out
    assert "no longer there, dropped: yellow moon.mp4" in err
    after = stored(index)
    assert set(after) == before.keys() - {"yellow moon.mp4"} | {"none.mp4", "new/one.mp4"}
    for name in ("red bar.mp4", "below/blue square.mp4", "purple cross.mp4"):
        assert torch.equal(after[name], before[name])
    assert not torch.allclose(after["green star.mp4"], before["green star.mp4"], atol=1e-3)

    moved = folder.rename(tmp_path / "elsewhere")
    out, _ = call("index", moved, *command[2:])
    assert "0 new or changed" in out
    out, _ = call("query", "red moon", "--index", index, "--top_k", 2)
    assert {line.split("  ")[2] for line in out.splitlines()[1:]} == {
        str(moved / "none.mp4"),
        str(moved / "new" / "one.mp4"),
    }


def test_it_goes_on_after_a_kill_and_after_ctrl_c(folder, shapes_model, tmp_path, call):
    index = tmp_path / "index.safetensors"
    command = ("index", folder, "--model", shapes_model, "--index", index, "--num_workers", "0")
    options = ("--batch_size", "1", "--save_every", "0")
    for number in range(400):  # enough to be interrupted in
        os.link(folder / "red bar.mp4", folder / f"zz {number:03}.mp4")
    found = 0
    for sign, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = subprocess.Popen([*MOTE, *map(str, command), *options], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not index.is_file() or len(stored(index)) < found + 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in errors
        assert found + 3 <= len(stored(index)) < 405
        found = len(stored(index))
    assert errors.splitlines()[-1].endswith("error: interrupted")
    for path in folder.glob("zz *.mp4"):
        if path.name not in stored(index):
            path.unlink()
    out, _ = call(*command, code=1)
    assert f"{found} of {found + 1} videos; 1 new or changed, 0 dropped, 1 not read" in out or "new or changed" in out
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_files_globs_and_folders_in_one_index(folder, shapes_model, tmp_path, call):
    index = tmp_path / "index"
    sources = (folder / "red bar.mp4", folder / "below", folder / "y*.mp4")
    call("index", *sources, "--model", shapes_model, "--index", index, "--num_workers", 0)
    assert list(stored(index)) == [
        str(folder / name) for name in ("red bar.mp4", "below/blue square.mp4", "yellow moon.mp4")
    ]
    out, _ = call("query", "blue square", "--index", index, "--top_k", 1)
    assert out.endswith(f"{folder / 'below' / 'blue square.mp4'}\n")


def test_a_reading_process_that_dies_costs_its_file(folder, shapes_model, tmp_path, call, monkeypatch):
    """In a fork, which inherits the trap."""
    read = MoTEVideoProcessor.read

    def read_or_die(self, video, *args, **kwargs):
        if "green" in str(video):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, video, *args, **kwargs)

    monkeypatch.setattr(MoTEVideoProcessor, "read", read_or_die)
    options = ("--model", shapes_model, "--index", tmp_path / "index", "--num_workers", 2)
    out, err = call("index", folder, *options, code=1)
    assert "4 of 6 videos; 6 new or changed, 0 dropped, 2 not read" in out
    assert "green star.mp4 can't be read: reading it kills the process (signal SIGKILL)" in err


def test_an_error_is_not_remembered(folder, shapes_model, tmp_path, call, monkeypatch):
    options = ("--model", shapes_model, "--index", tmp_path / "index", "--num_workers", 0)
    (folder / "none.mp4").unlink()
    read = MoTEVideoProcessor.read

    def fail(self, video, *args, **kwargs):
        if "green" in str(video):
            raise OSError(5, "Input/output error", str(video))
        return read(self, video, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MoTEVideoProcessor, "read", fail)
        assert "4 of 5 videos" in call("index", folder, *options, code=1)[0]
    assert "5 of 5 videos; 1 new or changed, 0 dropped, 0 not read" in call("index", folder, *options)[0]


@pytest.fixture(scope="module")
def made(shapes_model, tmp_path_factory) -> Path:
    """An index of the five videos and the bad file, beside its folder."""
    root = tmp_path_factory.mktemp("made")
    for number, shown in enumerate(SHOWN):
        film(root / "videos" / f"{shown}.mp4", shown, number)
    (root / "videos" / "none.mp4").write_bytes(b"no video")
    options = ["--model", str(shapes_model), "--index", str(root / "index"), "--num_workers", "0"]
    with warnings.catch_warnings():
        assert run_command("search", ["index", str(root / "videos"), *options]) == 1
    return root


def test_recall_over_captions(made, shapes_model, tmp_path, call):
    rows = [
        ("red bar.mp4", "a red bar"),
        ("red bar.mp4", "red bar, moving"),  # a video with two captions
        (str(made / "videos" / "green star.mp4"), "green star"),  # a path as `query` prints it
        ("blue square.mp4", "a shape"),  # a caption of two videos
        ("yellow moon.mp4", "a shape"),
        ("none.mp4", "purple cross"),  # could not be read: never found
    ]
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *rows])
    command = ("recall", "--index", made / "index", "--captions", tmp_path / "captions.csv")
    result = json.loads(call(*command, "--json")[0])

    model, processor = MoTEModel.from_pretrained(shapes_model), AutoProcessor.from_pretrained(shapes_model)
    names = [*(f"{shown}.mp4" for shown in SHOWN), "none.mp4"]
    texts = ["a red bar", "red bar, moving", "green star", "a shape", "purple cross"]
    features = stored(made / "index")
    cosines = np.full((5, 6), np.nan)
    cosines[:, :5] = encode_texts(model, processor, texts, "plain") @ torch.stack([features[n] for n in names[:5]]).T
    references = [[0], [0], [1], [2, 3], [5]]
    expected = retrieval_recall(cosines, references)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result["text_to_video_r10"] == 0.8 and result["video_to_text_r10"] == 0.8
    assert (result["num_texts"], result["num_videos"], result["num_videos_described"]) == (5, 6, 5)
    assert (result["num_videos_unread"], result["prompts"]) == (1, "plain")

    out, _ = call(*command, "--prompts", "a video of {}.", "{}")
    assert out.startswith(
        "5 texts, 6 videos, 5 with a text and 1 could not be read; prompts ['a video of {}.', '{}']\n"
    )
    assert "| text to video | " in out and "| video to text | " in out


def test_another_model_is_refused(made, shapes_model, tmp_path, call):
    model, processor = MoTEModel.from_pretrained(shapes_model), AutoProcessor.from_pretrained(shapes_model)
    processor.save_pretrained(tmp_path / "other")
    processor.video_processor.num_frames = 4
    processor.save_pretrained(tmp_path / "frames")
    model.save_pretrained(tmp_path / "frames")
    with torch.no_grad():  # the text tower is the same: only the videos' features are off
        model.temporal_model.position_embedding.weight[0, 0] += 1
    model.save_pretrained(tmp_path / "other")
    for other in ("other", "frames"):
        before = (made / "index").read_bytes()
        message, _ = call("query", "red bar", "--index", made / "index", "--model", tmp_path / other, code=None)
        assert f"made with another model than {tmp_path / other} is now, or by another release" in message
        options = ("--model", tmp_path / other, "--index", made / "index")
        message, _ = call("index", made / "videos", *options, code=None)
        assert f"made with another model, {shapes_model}, or by another release" in message
        assert (made / "index").read_bytes() == before


def test_another_folder_is_refused(made, shapes_model, tmp_path, call):
    film(tmp_path / "others" / "red bar.mp4", "red bar", seed=9)
    message, _ = call("index", tmp_path / "others", "--model", shapes_model, "--index", made / "index", code=None)
    assert f"is of {made / 'videos'}, not of {tmp_path / 'others'}: name another file" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("query", "a", "--index", "nowhere"), "--index nowhere does not exist: make it with"),
        (("query", "a", "--index", "."), "--index . is a folder"),
        (("query", "a", "--index", __file__), f"Index {__file__} is no index, or a damaged one"),
        (("query", "a", "--index", "WEIGHTS"), "model.safetensors is no index, or a damaged one"),
        (("query", " ", "--index", "INDEX"), "is empty"),
        (("query", "zumba", "--index", "INDEX"), "label 'zumba' holds no word that the tokenizer knows"),
        (("query", "a", "--index", "INDEX", "--prompts", "nothing"), "unknown prompt set 'nothing'"),
        (("query", "a", "--index", "INDEX", "--model", "no/such"), "no/such can't be loaded"),
        (("query", "a", "--index", "INDEX", "--model", "CLIP"), "is a bare CLIP"),
        (("index", "nowhere", "--index", "x", "--model", "MODEL"), "nowhere does not exist"),
        (("index", ".", "--index", "x", "--model", "MODEL"), "holds no file with the suffix of a video"),
        (("index", "VIDEOS", "--index", "no/x", "--model", "MODEL"), "its folder does not exist"),
        (("recall", "--index", "INDEX", "--captions", "nowhere.csv"), "nowhere.csv does not exist"),
        (("recall", "--index", "INDEX", "--captions", "a,b\n1,2"), "must begin with the line path,caption"),
        (("recall", "--index", "INDEX", "--captions", "path,caption\nx.mp4,a"), "line 2: x.mp4 is not in the index"),
        (("recall", "--index", "INDEX", "--captions", "path,caption\nred bar.mp4,"), "line 2: the caption is empty"),
        (("recall", "--index", "INDEX", "--captions", "path,caption\nred bar.mp4,a,b"), "double quotes"),
        (("recall", "--index", "INDEX", "--captions", "path,caption\n"), "has no caption"),
    ],
)
def test_bad_input_is_one_sentence(made, shapes_model, clip_folder, tmp_path, monkeypatch, call, arguments, message):
    monkeypatch.chdir(tmp_path)
    stands = {
        "INDEX": made / "index",
        "MODEL": shapes_model,
        "CLIP": clip_folder,
        "VIDEOS": made / "videos",
        "WEIGHTS": shapes_model / "model.safetensors",
    }
    given = [stands.get(argument, argument) for argument in arguments]
    if "\n" in str(given[-1]):
        (tmp_path / "captions.csv").write_text(given[-1])
        given[-1] = tmp_path / "captions.csv"
    assert message in call(*given, code=None)[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"captions.csv"}


def test_an_index_that_cannot_be_written(folder, shapes_model, tmp_path, call, full_disk):
    with full_disk(100):
        message, err = call("index", folder, "--model", shapes_model, "--index", tmp_path / "index", code=None)
    assert message and "video/s" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"videos"}


def test_texts_from_standard_input(made, monkeypatch, call):
    monkeypatch.setattr(sys, "stdin", io.StringIO("green star\n\nyellow moon\n"))
    out, _ = call("query", "--index", made / "index", "--top_k", 1)
    assert [line.split("/")[-1] for line in out.splitlines()] == [
        *("green star", "green star.mp4", "yellow moon", "yellow moon.mp4")
    ]


def test_a_flipped_bit_and_a_torn_file_are_noticed(made, tmp_path, call):
    whole = (made / "index").read_bytes()
    draw = np.random.default_rng(0)
    for place in [len(whole) - 1, *draw.integers(8, len(whole), 12)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(draw.integers(8))
        (tmp_path / "index").write_bytes(damaged)
        with pytest.raises(ValueError, match="is no index, or a damaged one"):
            video_index.Index.read(tmp_path / "index")
    (tmp_path / "index").write_bytes(whole[: len(whole) // 2])
    assert "is no index, or a damaged one" in call("query", "red bar", "--index", tmp_path / "index", code=None)[0]


def test_an_index_of_other_reading_code_is_refused(made, call, monkeypatch):
    monkeypatch.setattr("modeling_mote.feature_cache.reading_version", lambda: "of another release")
    message, _ = call("query", "red bar", "--index", made / "index", code=None)
    assert "or by another release" in message


def test_two_runs_do_not_share_an_index(folder, shapes_model, tmp_path, call):
    with only_writer(tmp_path / "index"):
        message, _ = call("index", folder, "--model", shapes_model, "--index", tmp_path / "index", code=None)
    assert f"Another run is writing to {tmp_path / 'index'}: wait for it" in message
    assert not (tmp_path / "index").exists()


def test_captions_that_say_the_same(made, tmp_path, call):
    """A caption of another case, and one of unknown words, are two texts of their own."""
    (tmp_path / "captions.csv").write_text("path,caption\nred bar.mp4,a red bar\nred bar.mp4,A red BAR\n")
    result = json.loads(
        call("recall", "--index", made / "index", "--captions", tmp_path / "captions.csv", "--json")[0]
    )
    assert result["num_texts"] == 2 and result["text_to_video_r1"] == 1.0
