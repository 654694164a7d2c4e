"""`mote search`: folders and shards indexed, asked, changed, interrupted; duplicates; recall over captions."""

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

from modeling_mote import MoTEModel
from modeling_mote.commands.command_line import run_command
from modeling_mote.processing import MoTEVideoProcessor, encode_classes, encode_texts
from modeling_mote.processing.builders.moving_shapes import encode_mp4, render_clip
from modeling_mote.processing.files import only_run
from modeling_mote.processing.metrics.retrieval import retrieval_recall
from modeling_mote.shards import list_shards, read_shards
from modeling_mote.video_index import Contents, open_index

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
    found, opened = {}, open_index(index)
    for shard in opened.contents.shards:
        paths = opened.rows["path"].slice(shard.first, shard.rows).to_pylist()
        found |= dict(zip(paths, torch.tensor(opened.shard_vectors(shard)), strict=True))
    return found


def embedded(index: Path) -> list[str]:
    """Paths that were read for an index, whether it is built yet or not."""
    try:
        return [path for table in read_shards(index / "features", ["path"]) for path in table["path"].to_pylist()]
    except FileNotFoundError:  # none yet; or one was taken out while they were read
        return []


@pytest.mark.slow
@torch.no_grad()
def test_the_videos_that_a_text_describes(folder, shapes_model, tmp_path):
    index = tmp_path / "my.index"
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
        pixels = processor(videos=[name], return_tensors="pt")["pixel_values_videos"]
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
        assert Path(best["video"]).stem == answer["text"] and best["score"] > second["score"]
        assert best["start"] is best["end"] is None
        text = encode_classes(model, processor, [answer["text"]])[0]
        feature = stored(index)[best["video"]]
        assert best["score"] == pytest.approx(float(feature @ text), abs=1e-5)


def test_only_what_changed_is_read(folder, shapes_model, tmp_path, call):
    index = tmp_path / "my.index"
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
    assert f"no longer there, dropped: {folder / 'yellow moon.mp4'}" in err
    after = stored(index)
    gone, new = {f"{folder}/yellow moon.mp4"}, {f"{folder}/none.mp4", f"{folder}/new/one.mp4"}
    assert set(after) == before.keys() - gone | new
    for name in ("red bar.mp4", "below/blue square.mp4", "purple cross.mp4"):
        assert torch.equal(after[f"{folder}/{name}"], before[f"{folder}/{name}"])
    changed = f"{folder}/green star.mp4"
    assert not torch.allclose(after[changed], before[changed], atol=1e-3)
    out, _ = call("query", "red moon", "--index", index, "--top_k", 2)
    assert {line.split("  ")[2] for line in out.splitlines()[1:]} == new

    moved = index.rename(tmp_path / "moved.index")  # with its embeddings
    out, _ = call("index", folder, "--model", shapes_model, "--index", moved)
    assert "6 of 6 videos; 0 new or changed" in out


@pytest.mark.slow
def test_it_goes_on_after_a_kill_and_after_ctrl_c(folder, shapes_model, tmp_path, call):
    index = tmp_path / "my.index"
    command = ("index", folder, "--model", shapes_model, "--index", index, "--num_workers", "0")
    options = ("--batch_size", "1", "--save_every", "0")
    for number in range(400):  # enough to be interrupted in
        os.link(folder / "red bar.mp4", folder / f"zz {number:03}.mp4")
    found = 0
    for sign, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = subprocess.Popen([*MOTE, *map(str, command), *options], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(embedded(index)) < found + 3:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in errors
        found = len(embedded(index))
        assert 3 <= found == len(set(embedded(index))) < 406
    assert errors.splitlines()[-1].endswith("error: interrupted")
    for path in folder.glob("zz *.mp4"):
        if str(path) not in embedded(index):
            path.unlink()
    listed = len(list(folder.rglob("*.mp4")))
    out, errors = call(*command, code=1)
    assert f"{listed - 1} of {listed} videos; " in out and listed - found <= 6, errors
    assert len(stored(index)) == listed - 1
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
    features = {Path(path).name: feature for path, feature in stored(made / "index").items()}
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
        before = (made / "index" / "index.json").read_bytes()
        message, _ = call("query", "red bar", "--index", made / "index", "--model", tmp_path / other, code=None)
        assert f"made with another model than {tmp_path / other} is now, or by another release" in message
        options = ("--model", tmp_path / other, "--index", made / "index")
        message, _ = call("index", made / "videos", *options, code=None)
        assert "was made with another model, or another release, than this run has" in message
        assert (made / "index" / "index.json").read_bytes() == before


def test_another_folder_is_refused(made, shapes_model, tmp_path, call):
    film(tmp_path / "others" / "red bar.mp4", "red bar", seed=9)
    message, _ = call("index", tmp_path / "others", "--model", shapes_model, "--index", made / "index", code=None)
    assert f"Index {made / 'index'} is of other videos, such as {made / 'videos'}" in message
    assert len(stored(made / "index")) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("query", "a", "--index", "nowhere"), "Index nowhere does not exist: make it with"),
        (("query", "a", "--index", "."), "Index . does not exist: make it with"),
        (("query", "a", "--index", __file__), f"Index {__file__} is a file, as older releases made: remove it"),
        (("query", "a", "--index", "VIDEOS"), "videos does not exist: make it with"),
        (("query", "a", "--video", "b.mp4", "--index", "INDEX"), "Give a text or --video, not both"),
        (("query", "--video", "b.mp4", "--index", "INDEX"), "b.mp4 does not exist"),
        (("query", "--video", "BROKEN", "--index", "INDEX"), "none.mp4 cannot be opened"),
        (("build", "x", "--from", "nowhere"), "--from nowhere: there is no such folder; make it with `mote embed`"),
        (("build", "x", "--from", "VIDEOS"), "holds no embeddings.json: make it with `mote embed`"),
        (("build", "x"), "Index x is not there, or damaged: name the folders of embeddings to make it from"),
        (("build", "VIDEOS", "--from", "FEATURES"), "videos is no index and holds "),
        (("duplicates", "x"), "Index x does not exist"),
        (("query", " ", "--index", "INDEX"), "is empty"),
        (("query", "zumba", "--index", "INDEX"), "label 'zumba' holds no word that the tokenizer knows"),
        (("query", "a", "--index", "INDEX", "--prompts", "nothing"), "unknown prompt set 'nothing'"),
        (("query", "a", "--index", "INDEX", "--model", "no/such"), "no/such can't be loaded"),
        (("query", "a", "--index", "INDEX", "--model", "CLIP"), "is a bare CLIP"),
        (("index", "nowhere", "--index", "x", "--model", "MODEL"), "nowhere does not exist"),
        (("index", ".", "--index", "x", "--model", "MODEL"), "holds no file with the suffix of a video"),
        (("index", "VIDEOS", "--index", "no/x", "--model", "MODEL"), "the folder it is to lie in does not exist"),
        (("index", "VIDEOS", "--index", "VIDEOS", "--model", "MODEL"), "videos is no index and holds "),
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
        "BROKEN": made / "videos" / "none.mp4",
        "FEATURES": made / "index" / "features",
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
    assert {path.name for path in tmp_path.iterdir()} <= {"videos", "index"}
    assert not list((tmp_path / "index").glob("[!.]*.*"))


def test_texts_from_standard_input(made, monkeypatch, call):
    monkeypatch.setattr(sys, "stdin", io.StringIO("green star\n\nyellow moon\n"))
    out, _ = call("query", "--index", made / "index", "--top_k", 1)
    assert [line.split("/")[-1] for line in out.splitlines()] == [
        *("green star", "green star.mp4", "yellow moon", "yellow moon.mp4")
    ]


def test_an_index_of_other_reading_code_is_refused(made, tmp_path, call):
    index = shutil.copytree(made / "index", tmp_path / "my.index")
    contents = Contents.read(index)
    contents.record["key"] = "of another release"
    contents.write(index)
    message, _ = call("query", "red bar", "--index", index, code=None)
    assert "or by another release" in message


def test_two_runs_do_not_share_an_index(folder, shapes_model, tmp_path, call):
    with only_run(tmp_path / "index" / "features"):
        message, _ = call("index", folder, "--model", shapes_model, "--index", tmp_path / "index", code=None)
    assert f"Another run is writing to {tmp_path / 'index' / 'features'}: wait for it" in message
    assert embedded(tmp_path / "index") == []


def test_captions_that_say_the_same(made, tmp_path, call):
    """A caption of another case, and one of unknown words, are two texts of their own."""
    (tmp_path / "captions.csv").write_text("path,caption\nred bar.mp4,a red bar\nred bar.mp4,A red BAR\n")
    result = json.loads(
        call("recall", "--index", made / "index", "--captions", tmp_path / "captions.csv", "--json")[0]
    )
    assert result["num_texts"] == 2 and result["text_to_video_r1"] == 1.0


def test_by_video_and_duplicates(made, tmp_path, call):
    """A video is nearest to itself; a copy under another name is its duplicate."""
    copy = tmp_path / "copy.mp4"
    shutil.copy(made / "videos" / "blue square.mp4", copy)
    out, _ = call("query", "--video", copy, made / "videos" / "red bar.mp4", "--index", made / "index", "--json")
    first, second = (json.loads(line) for line in out.splitlines())
    assert first["video"] == str(copy) and [len(each["videos"]) for each in (first, second)] == [5, 5]
    for answer, name in ((first, "blue square"), (second, "red bar")):
        assert answer["videos"][0]["video"] == str(made / "videos" / f"{name}.mp4")
        assert answer["videos"][0]["score"] == pytest.approx(1, abs=1e-5)
    features = stored(made / "index")
    cosines = torch.stack([*features.values()]) @ features[str(made / "videos" / "red bar.mp4")]
    assert [each["score"] for each in second["videos"]] == pytest.approx(cosines.sort().values.flip(0), abs=1e-5)

    index = shutil.copytree(made / "index", tmp_path / "my.index")
    copies = [made / "videos", copy]
    call("index", *copies, "--model", open_index(index).record["model"], "--index", index, "--num_workers", 0, code=1)
    out, _ = call("duplicates", index, "--least", 0.9999, "--json")
    [group] = [json.loads(line)["videos"] for line in out.splitlines()]
    assert {each["video"] for each in group} == {str(copy), str(made / "videos" / "blue square.mp4")}
    out, _ = call("duplicates", index, "--least", 0.9999)
    assert out.startswith("2 alike\n  1.0000  ") and out.endswith("1 groups\n")


def test_shards_of_windows(made, shapes_model, tmp_path, call):
    """`mote embed` by windows, and an index built of that and brought up to date."""
    features, index = tmp_path / "features", tmp_path / "my.index"
    long = tmp_path / "long.mp4"
    draw = np.random.default_rng(0)
    parts = [render_clip(*shown.split(), "moving left", draw) for shown in ("red bar", "green star")]
    frames = [np.concatenate([part] * (32 // len(part) + 1))[:32] for part in parts]
    long.write_bytes(encode_mp4(np.concatenate(frames), fps=8))  # four seconds each

    def embed(*videos: Path) -> None:
        options = ["--model", str(shapes_model), "--num_workers", "0", "--window", "2", "--stride", "1"]
        with warnings.catch_warnings():
            assert run_command("embed", [*map(str, videos), "--output", str(features), *options]) == 0

    embed(long)
    out, _ = call("build", index, "--from", features)
    rows = sum(len(table) for table in read_shards(features))
    assert out == f"{index}: {rows} rows; {rows} came, 0 went\nexact: every row is compared\n"
    out, _ = call("query", "green star", "--index", index, "--top_k", 1, "--json")
    [best] = json.loads(out)["videos"]
    assert best["video"] == str(long) and best["start"] >= 3 and best["end"] <= 8
    out, _ = call("query", "green star", "--index", index, "--top_k", 1)
    assert out.splitlines()[1].endswith(f"{long}  {best['start']:g}-{best['end']:g} s")

    embed(made / "videos" / "none.mp4", made / "videos" / "purple cross.mp4")
    out, _ = call("build", index)
    assert "0 went; 1 files could not be read" in out
    assert len(list_shards(features)) == 2 and str(made / "videos" / "purple cross.mp4") in stored(index)
