"""mote embed: what shards hold, and that every video is in them once, whatever happens on the way."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_mote.bulk import VideoScorer
from modeling_mote.bulk_run import embed_all
from modeling_mote.commands.command_line import run_command
from modeling_mote.processing.files import only_run
from modeling_mote.processing.listing import list_items
from modeling_mote.shards import SHARD_COLUMNS, list_shards, read_record, read_shard, read_shards

MOTE = (sys.executable, "-m", "modeling_mote")
LABELS = "red bar growing, blue star spinning"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_video) -> Path:
    """Nine clips in two folders, one of which is broken, and a file that is none."""
    folder = tmp_path_factory.mktemp("many") / "videos"
    for number in range(9):
        file = folder / ("below" if number % 2 else "") / f"{number}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, num_frames=8 + 4 * number, size=(32, 32), codec="mpeg4")
    (folder / "4.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("not a video either")
    return folder


@pytest.fixture
def videos(folder, tmp_path) -> Path:
    """A copy of the clips, which a test may change."""
    for file in folder.rglob("*.mp4"):
        (tmp_path / "videos" / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        os.link(file, tmp_path / "videos" / file.relative_to(folder))
    return tmp_path / "videos"


@pytest.fixture
def embed(shapes_model, capsys, monkeypatch):
    """`embed(*sources, output, *options, code=0)`: the command here; what it printed last, or the error."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        options = ["--model", str(shapes_model), "--device", "cpu", "--num_workers", "1"]
        assert run_command("embed", [*map(str, arguments), *options]) == code
        out, err = capsys.readouterr()
        return (out if code == 0 else err).splitlines()[-1]

    return run


def rows_in(output: Path) -> list[dict]:
    return [row for table in read_shards(output) for row in table.to_pylist()]


def assert_each_once(output: Path, videos: Path) -> list[dict]:
    """Every video is in the output once, as it is now; the rows."""
    rows = rows_in(output)
    states = {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in videos.rglob("*.mp4")}
    assert Counter(row["path"] for row in rows) == Counter(list(states))
    assert all(states[row["path"]] == (row["size"], row["mtime"]) for row in rows)
    return rows


def test_shards_hold_what_the_scorer_gives(embed, videos, tmp_path, shapes_model):
    output = tmp_path / "out"
    said = embed(videos, "--output", output, "--labels", LABELS, "--shard_rows", 4)
    assert said == f"{output}: 9 videos; 0 were there, 9 new or changed, of which 1 could not be read (column error)"
    rows = assert_each_once(output, videos)
    scorer = VideoScorer(str(shapes_model), LABELS, device="cpu")
    right = scorer({"path": [row["path"] for row in rows]})
    for index, row in enumerate(rows):
        assert (row["start"], row["end"], row["error"]) == (None, None, right["error"][index])
        assert (row["embedding"] is None) == (row["error"] is not None) == row["path"].endswith("/4.mp4")
        if row["error"] is None:
            np.testing.assert_allclose(row["embedding"], right["embedding"][index], atol=1e-6)
            np.testing.assert_allclose(row["scores"], right["scores"][index], atol=1e-6)
    record = read_record(output)
    assert record["labels"] == ["red bar growing", "blue star spinning"] and record["model"] == str(shapes_model)
    shard = pq.read_table(list_shards(output)[0])
    assert tuple(shard.column_names) == SHARD_COLUMNS and shard.schema.field("embedding").type.list_size == 64
    assert json.loads(shard.schema.metadata[b"mote"]) == record
    assert not [path for path in output.iterdir() if path.suffix == ".partial"]


def test_again_reads_what_is_new_changed_or_to_retry(embed, videos, tmp_path, write_video):
    output, command = tmp_path / "out", ("--output", tmp_path / "out", "--shard_rows", 4)
    embed(videos / "below", videos / "0.mp4", *command)
    before = {path: path.stat().st_mtime_ns for path in list_shards(output)}
    assert "; 0 were there" not in (said := embed(videos, *command)) and "5 were there, 4 new" in said
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())  # nothing done is touched
    assert "9 were there, 0 new or changed" in embed(videos, *command)

    os.replace(write_video(tmp_path / "new.mp4", num_frames=10, codec="mpeg4"), videos / "0.mp4")  # a new content
    os.utime(videos / "2.mp4")
    assert "7 were there, 2 new or changed, of which 0" in embed(videos, *command)
    assert_each_once(output, videos)
    assert "8 were there, 1 new or changed, of which 1" in embed(videos, *command, "--retry")
    rows = assert_each_once(output, videos)
    assert [row["path"] for row in rows if row["error"]] == [str(videos / "4.mp4")]
    (videos / "6.mp4").unlink()
    assert "8 videos; 8 were there, 0 new" in embed(videos, *command)  # a row of a file that is gone stays
    assert len(rows_in(output)) == 9
    assert "8 videos; 8 were there, 0 new" in embed(videos, *command, "--prune")
    assert_each_once(output, videos)


def test_windows_are_rows(embed, videos, tmp_path):
    output = tmp_path / "out"
    command = (videos, "--output", output, "--window", 2, "--stride", 1, "--shard_rows", 5)
    embed(*command)
    rows = rows_in(output)
    times = [(row["start"], row["end"]) for row in rows if row["path"] == str(videos / "8.mp4")]
    assert times == [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.0, 5.0)]
    assert {row["path"] for row in rows} == set(map(str, videos.rglob("*.mp4")))
    assert [(row["start"], row["embedding"]) for row in rows if row["error"]] == [(None, None)]
    for table in read_shards(output):  # the windows of a file are together
        others = {row["path"] for row in rows} - set(table["path"].to_pylist())
        assert len(others) + len(set(table["path"].to_pylist())) == 9
    assert "9 were there, 0 new" in embed(*command)
    os.utime(videos / "8.mp4")
    assert "8 were there, 1 new" in embed(*command) and len(rows_in(output)) == len(rows)


def test_lists_globs_and_urls(embed, videos, tmp_path):
    output = tmp_path / "out"
    (tmp_path / "list.csv").write_text(
        "path,label,start,end\nvideos/8.mp4,x,1,2.5\nvideos/8.mp4,x,,\nvideos/0.mp4,x,,\n"
    )
    pq.write_table(pa.table({"path": [str(videos / "2.mp4")]}), tmp_path / "list.parquet")
    memory = fsspec.filesystem("memory")
    for name in ("a/6.mp4", "a/b/0.mp4", "a/notes.txt"):
        source = videos / Path(name).name
        memory.pipe(f"/bucket/{name}", source.read_bytes() if source.exists() else b"text")
    sources = (tmp_path / "list.csv", tmp_path / "list.parquet", videos / "below" / "*.mp4", "memory://bucket/a")
    assert "10 videos; 0 were there, 10 new or changed, of which 0" in embed(*sources, "--output", output)
    rows = {(row["path"], row["start"], row["end"]): row for row in rows_in(output)}
    assert set(rows) == {
        *((str(videos / "8.mp4"), *times) for times in ((1.0, 2.5), (None, None))),
        *((str(videos / name), None, None) for name in ("0.mp4", "2.mp4", *(f"below/{n}.mp4" for n in (1, 3, 5, 7)))),
        *((f"memory:///bucket/a/{name}", None, None) for name in ("6.mp4", "b/0.mp4")),
    }
    same = rows[str(videos / "0.mp4"), None, None], rows["memory:///bucket/a/b/0.mp4", None, None]
    np.testing.assert_allclose(same[0]["embedding"], same[1]["embedding"], atol=1e-6)
    assert same[1]["size"] == (videos / "0.mp4").stat().st_size and same[1]["mtime"]
    assert "10 were there" in embed(*sources, "--output", output)
    memory.pipe("/bucket/a/b/0.mp4", (videos / "8.mp4").read_bytes())
    assert "9 were there, 1 new" in embed(*sources, "--output", output) and len(rows_in(output)) == 10


def test_an_engine_that_fails_leaves_whole_shards(shapes_model, videos, tmp_path):
    """What came before the failure is kept, and nothing of it is done again."""
    scorer, items = VideoScorer(str(shapes_model), device="cpu", batch_size=2), list_items([str(videos)])
    asked = []

    def fail(scorer, items):
        asked.append(items["path"].to_pylist())
        for number, rows in enumerate(scorer.tables(items)):
            if number == 2:
                raise OSError("the network is gone")
            yield rows

    for left in (9, 5, 1):
        if left > 1:
            with pytest.raises(OSError, match="the network is gone"):
                embed_all(scorer, items, tmp_path / "out", engine=fail, shard_rows=3)
        else:
            embed_all(scorer, items, tmp_path / "out", engine=fail)
        assert len(asked[-1]) == left
    assert_each_once(tmp_path / "out", videos)


def test_a_table_of_ones_own_will_do(shapes_model, videos, tmp_path):
    """Columns of no type, as those are that hold nothing, and others beside them."""
    paths = sorted(map(str, videos.rglob("*.mp4")))
    nothing = {name: pa.nulls(len(paths)) for name in ("size", "mtime", "start", "end")}
    items = pa.table({"label": paths, "path": paths, **nothing})
    scorer = VideoScorer(str(shapes_model), device="cpu")
    assert embed_all(scorer, items, tmp_path / "out").before == 0
    assert embed_all(scorer, items, tmp_path / "out").before == 9 == len(rows_in(tmp_path / "out"))


def test_one_run_at_a_time(embed, videos, tmp_path):
    with only_run(tmp_path / "out"):
        said = embed(videos, "--output", tmp_path / "out", code=1)
    assert said == f"error: Another run is writing to {tmp_path / 'out'}: wait for it, or choose another folder."


def test_other_settings_and_damage_are_said(embed, videos, tmp_path):
    output = tmp_path / "out"
    embed(videos, "--output", output, "--labels", LABELS)
    there = {path.name: path.read_bytes() for path in output.iterdir()}
    for options, what in (
        (["--labels", "red bar growing"], "other labels"),
        ([], "other labels"),
        (["--labels", LABELS, "--window", 2], "another window"),
    ):
        said = embed(videos, "--output", output, *options, code=1)
        assert said == (
            f"error: {output} was made with {what} than this run has, as its embeddings.json says: "
            "choose another folder."
        )
    assert {path.name: path.read_bytes() for path in output.iterdir()} == there
    shard = list_shards(output)[0]
    content = bytearray(shard.read_bytes())
    for damaged in (content[: len(content) // 2], b"", content.replace(b"part", b"parT")[:-9]):
        shard.write_bytes(damaged)
        said = embed(videos, "--output", output, "--labels", LABELS, code=1)
        assert f"{shard} is no shard of embeddings, or a damaged one" in said and "makes its rows again" in said
    shard.unlink()
    assert "0 were there, 9 new" in embed(videos, "--output", output, "--labels", LABELS)
    (output / "embeddings.json").write_text("{")
    assert "embeddings.json is damaged" in embed(videos, "--output", output, "--labels", LABELS, code=1)
    (output / "embeddings.json").unlink()
    assert "and no embeddings.json" in embed(videos, "--output", output, "--labels", LABELS, code=1)


def test_a_flipped_bit_of_a_shard_is_seen(embed, videos, tmp_path):
    embed(videos, "--output", tmp_path / "out")
    shard = list_shards(tmp_path / "out")[0]
    whole, draw = shard.read_bytes(), np.random.default_rng(0)
    right = pq.read_table(shard)
    for place in draw.integers(4, len(whole) - 8, 12):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(draw.integers(8))
        shard.write_bytes(damaged)
        try:
            assert read_shard(shard).to_pylist() == right.to_pylist()  # in what nobody reads, such as statistics
        except ValueError as error:
            assert "is no shard of embeddings, or a damaged one" in str(error)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["nowhere.csv"], "List nowhere.csv does not exist"),
        (["memory://nowhere/*.mp4"], "memory://nowhere/*.mp4 holds no file with the suffix of a video"),
        (["memory://nowhere/x.mp4"], "memory://nowhere/x.mp4 does not exist"),
        (["nosuch://a/b.mp4"], "nosuch://a/b.mp4 can't be listed"),
        (["{tmp}/bad.csv"], "bad.csv needs a column path; it has file, label"),
        (["{tmp}/times.csv"], "times.csv, row 2: start 3.0 and end 2.0 must be seconds"),
        (["{tmp}/words.csv"], "words.csv: start and end must be numbers of seconds"),
        (["{tmp}/empty.csv"], "empty.csv, row 1: the path is empty"),
        (["{tmp}/no.parquet"], "no.parquet can't be read"),
        (["x.mp4", "--stride", "1"], "--stride needs --window"),
        (["x.mp4", "--address", "auto"], "--address is of a Ray cluster: add --engine ray"),
        (["x.mp4", "--output", "{tmp}/bad.csv"], "bad.csv is a file: name a folder"),
    ],
)
def test_what_makes_no_sense_is_said(embed, tmp_path, sources, message):
    (tmp_path / "bad.csv").write_text("file,label\na.mp4,x\n")
    (tmp_path / "times.csv").write_text("path,start,end\na.mp4,1,2\na.mp4,3,2\n")
    (tmp_path / "words.csv").write_text("path,start\na.mp4,soon\n")
    (tmp_path / "empty.csv").write_text("path,label\n,x\n")
    (tmp_path / "no.parquet").write_text("no")
    assert message in embed("--output", tmp_path / "out", *(each.format(tmp=tmp_path) for each in sources), code=1)
    assert not list_shards(tmp_path / "out")


def test_without_ray_the_engine_says_what_to_install(embed, videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = embed(videos, "--output", tmp_path / "out", "--engine", "ray", code=1)
    assert said == 'error: The engine ray needs Ray: pip install "mote-transformers[ray]".'


def readers(process: int, seconds: float = 1.0) -> list[int]:
    """Processes that a process has had for so long: those that read all the time, not one that reads a file again."""
    try:
        children = psutil.Process(process).children(recursive=True)
        return [child.pid for child in children if time.time() - child.create_time() > seconds]
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
def test_killed_again_and_again(folder, shapes_model, tmp_path):
    """At random moments, in any process: at the end, every video is there once, and nothing done was done again."""
    kills, count = int(os.environ.get("MOTE_TEST_KILLS", 4)), int(os.environ.get("MOTE_TEST_CLIPS", 600))
    videos, output, draw = tmp_path / "videos", tmp_path / "out", random.Random(0)
    videos.mkdir()
    for number in range(count):
        os.link(folder / ("4.mp4" if number % 20 == 7 else "below/1.mp4"), videos / f"{number:05}.mp4")
    command = (*MOTE, "embed", videos, "--model", shapes_model, "--output", output, "--device", "cpu")
    options = ("--num_workers", "2", "--shard_rows", str(count // 40), "--labels", LABELS)
    done: dict[str, int] = {}
    for number in range(kills + 1):
        process = subprocess.Popen([*map(str, command), *options], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 900
        wanted = len(done) + max(1, 40 // (kills + 2))  # shards
        while process.poll() is None and (number == kills or len(list_shards(output)) < wanted):
            assert time.monotonic() < deadline
            if number == kills and draw.random() < 0.05 and (running := readers(process.pid)):
                os.kill(draw.choice(running), signal.SIGKILL)  # which costs nothing
            time.sleep(0.05)
        time.sleep(draw.random() * 0.3)
        if number < kills:
            os.kill(process.pid, signal.SIGKILL)
        code = process.wait(timeout=900)
        assert code == (0 if number == kills else -signal.SIGKILL)
        now = {shard.name: shard.stat().st_mtime_ns for shard in list_shards(output)}
        assert all(now[name] == changed for name, changed in done.items())
        done = now
    rows = assert_each_once(output, videos)
    assert sum(row["error"] is not None for row in rows) == len(range(7, count, 20))
    assert all("kills" not in row["error"] for row in rows if row["error"])
    deadline = time.monotonic() + 10
    while leftovers := [path for path in output.iterdir() if "partial" in path.name]:
        assert time.monotonic() < deadline, leftovers
