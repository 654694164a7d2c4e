"""A folder indexed, asked, changed, interrupted; and retrieval scored over captions."""

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from modeling_mote.processing import encode_classes
from modeling_mote.processing.builders.moving_shapes import encode_mp4, render_clip
from modeling_mote.processing.metrics import load_metric
from transformers import AutoProcessor

from modeling_mote import MoTEModel
from modeling_mote.feature_cache import load_with_metadata

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "search.py"
SHOWN = ["red bar", "green star", "blue square", "yellow moon", "purple cross"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("search_script", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(script, monkeypatch, capsys):
    """`call(*arguments, code=0)`: stdout and stderr of the script, run in here; or, for code None, its error."""

    def run(*arguments: object, code: int | None = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["search.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            script.main()
        out, err = capsys.readouterr()
        if code is None:
            assert isinstance(stop.value.code, str) and len(stop.value.code.splitlines()) == 1
            assert stop.value.code.startswith("error: ")
            return stop.value.code, err
        assert stop.value.code == code, stop.value.code
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
    tensors, metadata = load_with_metadata(index)
    return dict(zip(json.loads(metadata["paths"]), tensors["video_embeds"].clone(), strict=True))


@torch.no_grad()
def test_the_videos_that_a_text_describes(folder, shapes_model, tmp_path):
    index = tmp_path / "index.safetensors"
    making = subprocess.run(
        [sys.executable, SCRIPT, "index", folder, "--checkpoint", shapes_model, "--index", index],
        capture_output=True,
        text=True,
    )
    assert making.returncode == 1 and "Traceback" not in making.stderr  # one file can't be read
    assert f"not read: {folder / 'none.mp4'} cannot be opened" in making.stderr
    assert making.stdout == f"{index}: 5 of 6 videos; 6 new or changed, 0 dropped, 1 not read\n"
    assert "1 files without a video's suffix left out" in making.stderr

    model, processor = MoTEModel.from_pretrained(shapes_model), AutoProcessor.from_pretrained(shapes_model)
    for name, feature in stored(index).items():
        pixels = processor(videos=[str(folder / name)], return_tensors="pt")["pixel_values_videos"]
        expected = F.normalize(model.get_video_features(pixels).pooler_output, dim=-1)[0]
        torch.testing.assert_close(feature, expected, rtol=0, atol=1e-5)

    shutil.rmtree(folder)  # asking reads no video
    asking = subprocess.run(
        [sys.executable, SCRIPT, "query", "--index", index, "--json", "--top_k", "2"],
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
    command = ("index", folder, "--checkpoint", shapes_model, "--index", index, "--num_workers", 0)
    call(*command, code=1)
    before = stored(index)

    out, err = call(*command, code=1)  # what can't be read is said again, and not read again
    assert "0 new or changed, 0 dropped, 1 not read" in out and "not read: " in err and "video/s" not in err

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


def test_it_goes_on_after_a_kill(folder, shapes_model, tmp_path, call):
    index = tmp_path / "index.safetensors"
    os.mkfifo(folder / "zzz.mp4")  # whoever reads it waits for ever
    command = ("index", folder, "--checkpoint", shapes_model, "--index", index, "--num_workers", "0")
    options = ("--batch_size", "1", "--save_every", "0")
    process = subprocess.Popen([sys.executable, SCRIPT, *map(str, command), *options], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not index.is_file() or len(stored(index)) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    (folder / "zzz.mp4").unlink()
    film(folder / "zzz.mp4", "red moon")
    out, _ = call(*command, code=1)
    assert "6 of 7 videos; 1 new or changed, 0 dropped, 1 not read" in out
    assert not list(tmp_path.glob(".*partial"))


@pytest.fixture(scope="module")
def made(script, shapes_model, tmp_path_factory) -> Path:
    """An index of the five videos and the bad file, beside its folder."""
    root = tmp_path_factory.mktemp("made")
    for number, shown in enumerate(SHOWN):
        film(root / "videos" / f"{shown}.mp4", shown, number)
    (root / "videos" / "none.mp4").write_bytes(b"no video")
    with pytest.MonkeyPatch.context() as patch:
        options = ("--checkpoint", str(shapes_model), "--index", str(root / "index"), "--num_workers", "0")
        patch.setattr(sys, "argv", ["search.py", "index", str(root / "videos"), *options])
        with pytest.raises(SystemExit):
            script.main()
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
    cosines[:, :5] = encode_classes(model, processor, texts, "plain") @ torch.stack([features[n] for n in names[:5]]).T
    references = [[0], [0], [1], [2, 3], [5]]
    expected = load_metric("retrieval_recall").compute(predictions=cosines, references=references)
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
        message, _ = call("query", "red bar", "--index", made / "index", "--checkpoint", tmp_path / other, code=None)
        assert f"made with another model than {tmp_path / other} is now: index {made / 'videos'} again" in message
        options = ("--checkpoint", tmp_path / other, "--index", made / "index")
        message, _ = call("index", made / "videos", *options, code=None)
        assert f"made with another model, {shapes_model}: name another file" in message
        assert (made / "index").read_bytes() == before


def test_another_folder_is_refused(made, shapes_model, tmp_path, call):
    film(tmp_path / "others" / "red bar.mp4", "red bar", seed=9)
    message, _ = call("index", tmp_path / "others", "--checkpoint", shapes_model, "--index", made / "index", code=None)
    assert f"is of {made / 'videos'}, not of {tmp_path / 'others'}: name another file" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("query", "a", "--index", "nowhere"), "--index nowhere does not exist: make it with"),
        (("query", "a", "--index", "."), "--index . is a folder"),
        (("query", "a", "--index", __file__), f"--index {__file__} is no index, or a damaged one"),
        (("query", "a", "--index", "WEIGHTS"), "model.safetensors is no index, or a damaged one"),
        (("query", " ", "--index", "INDEX"), "is empty"),
        (("query", "a", "--index", "INDEX", "--prompts", "nothing"), "unknown prompt set 'nothing'"),
        (("query", "a", "--index", "INDEX", "--top_k", "0"), "--top_k must be at least 1"),
        (("query", "a", "--index", "INDEX", "--checkpoint", "no/such"), "no/such can't be loaded"),
        (("query", "a", "--index", "INDEX", "--checkpoint", "CLIP"), "has no temporal layers"),
        (("index", "nowhere", "--index", "x", "--checkpoint", "MODEL"), "nowhere is no folder"),
        (("index", ".", "--index", "x", "--checkpoint", "MODEL"), "holds no file with the suffix of a video"),
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
        message, err = call("index", folder, "--checkpoint", shapes_model, "--index", tmp_path / "index", code=None)
    assert f"{tmp_path / 'index'} can't be written" in message and "video/s" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"videos"}


def test_texts_from_standard_input(made, monkeypatch, call):
    monkeypatch.setattr(sys, "stdin", io.StringIO("green star\n\nyellow moon\n"))
    out, _ = call("query", "--index", made / "index", "--top_k", 1)
    assert [line.split("/")[-1] for line in out.splitlines()] == [
        *("green star", "green star.mp4", "yellow moon", "yellow moon.mp4")
    ]
