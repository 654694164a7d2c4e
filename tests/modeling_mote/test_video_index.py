"""Indexes over shards: made, grown, changed, shrunk, damaged; exact ones and those in lists, against all cosines."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from modeling_mote import video_index
from modeling_mote.nearest_rows import list_kind
from modeling_mote.processing.files import only_run
from modeling_mote.shards import RECORD_FORMAT, list_shards, shard_path, shard_schema, write_record, write_shard
from modeling_mote.video_index import Hit, build_index, merge_windows_of_videos, open_index

DIM = 16
RECORD = {
    "format": RECORD_FORMAT,
    "model": "/models/a",
    "key": "a",
    "dim": DIM,
    "labels": None,
    "descriptions": {},
    "prompts": None,
    "window": None,
    "stride": None,
    "reading": {},
    "versions": {},
}
LISTS = {"exact_rows": 500, "beside_rows": 50}  # as 100,000 and 10,000 are for real ones


def unit(rows: int, seed: int) -> np.ndarray:
    """Rows around 20 centres, float32 [rows, d]."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, DIM))
    vectors = centres[draw.integers(20, size=rows)] + 0.5 * draw.normal(size=(rows, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def put(folder: Path, number: int, vectors: np.ndarray, name: str = "v", windows: bool = False, **record) -> None:
    """A shard: a row per video, and one of a file that could not be read; or, with windows, all of one video."""
    record = RECORD | record
    write_record(folder, record)
    names = [f"/videos/{name}{number}-{0 if windows else row}.mp4" for row in range(len(vectors))]
    starts = [float(row) if windows else None for row in range(len(vectors))]
    table = {
        "path": [*names, f"/videos/broken{number}.mp4"],
        "start": [*starts, None],
        "end": [*(None if start is None else start + 4 for start in starts), None],
        "embedding": [*vectors.tolist(), None],
        "error": [*[None] * len(names), "cannot be opened"],
    }
    schema = shard_schema(record)
    columns = {column.name: table.get(column.name, [None] * (len(names) + 1)) for column in schema}
    write_shard(shard_path(folder, number), pa.table(columns, schema=schema))


def alive(index: Path) -> dict[str, np.ndarray]:
    """{path: embedding} of what is to be found, read from the shards."""
    opened = open_index(index)
    found = {}
    for shard in opened.contents.shards:
        paths = opened.rows["path"].slice(shard.first, shard.rows).to_pylist()
        found |= dict(zip(paths, opened.shard_vectors(shard), strict=True))
    return found


def best(vectors: dict[str, np.ndarray], query: np.ndarray, count: int) -> list[str]:
    cosines = {path: float(vector @ query) for path, vector in vectors.items()}
    return sorted(cosines, key=lambda path: -cosines[path])[:count]


def test_a_small_index_is_exact_and_follows_its_shards(tmp_path):
    features, index = tmp_path / "features", tmp_path / "my.index"
    parts = {number: unit(30, number) for number in range(3)}
    for number, vectors in parts.items():
        put(features, number, vectors)
    built = build_index(index, [features])
    assert (built.added, built.removed, built.remade, built.recall) == (90, 0, "", None)
    assert built.contents.lists is None and built.contents.num_failed == 3
    assert build_index(index)[1:4] == (0, 0, "")  # of the folders of the last build; nothing to do
    assert {file.name for file in index.iterdir()} == {".lock", "index.json", "rows-1.parquet", "exact-1.npy"}

    put(features, 3, unit(20, 3))  # grown
    put(features, 1, unit(25, 7), name="other")  # changed
    shard_path(features, 0).unlink()  # gone
    built = build_index(index)
    assert (built.added, built.removed) == (45, 60)
    expected = {f"/videos/other1-{row}.mp4": vector for row, vector in enumerate(unit(25, 7))}
    expected |= {f"/videos/v2-{row}.mp4": vector for row, vector in enumerate(parts[2])}
    expected |= {f"/videos/v3-{row}.mp4": vector for row, vector in enumerate(unit(20, 3))}
    opened = open_index(index)
    for query in unit(5, 50):
        hits = opened.search(query, top_k=7)
        assert [hit.path for hit in hits] == best(expected, query, 7)
        np.testing.assert_allclose(
            [hit.score for hit in hits], [expected[hit.path] @ query for hit in hits], rtol=1e-5
        )
        assert {hit[1:3] for hit in hits} == {(None, None)}
    assert len(opened.search(query, top_k=1000)) == 75
    with pytest.raises(ValueError, match="is a vector of 16 numbers"):
        opened.search(query[:3])


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder with an index in lists, of 2,000 rows in four shards."""
    pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp("large")
    for number in range(4):
        put(folder / "features", number, unit(500, number))
    built = build_index(folder / "my.index", [folder / "features"], **LISTS)
    assert built.contents.lists["kind"] == "RR16,IVF128,SQ8" and built.contents.listed_rows == 2000
    assert min(built.recall) >= 0.95
    return folder


@pytest.fixture
def copy(large, tmp_path) -> Path:
    copy = shutil.copytree(large, tmp_path / "copy")
    build_index(copy / "my.index", [copy / "features"], **LISTS)  # its shards lie elsewhere: it is made anew
    return copy


def rebuild(copy: Path, **options: int) -> video_index.Built:
    return build_index(copy / "my.index", [copy / "features"], **LISTS | options)


def recall(index: Path) -> float:
    expected, opened = alive(index), open_index(index)
    shares = [
        len(set(best(expected, query, 10)) & {hit.path for hit in opened.search(query, 10)}) / 10
        for query in unit(40, 77)
    ]
    return float(np.mean(shares))


def test_lists_find_nearly_all(large):
    assert recall(large / "my.index") >= 0.95


def test_lists_are_kept_while_rows_come_and_go(copy):
    index = copy / "my.index"
    lists = next(index.glob("lists-*"))
    put(copy / "features", 4, unit(30, 4), name="new")
    shard_path(copy / "features", 2).unlink()
    built = rebuild(copy)
    assert (built.added, built.removed, built.remade, built.recall) == (30, 500, "", None)
    assert next(index.glob("lists-*")) == lists  # untouched: the new rows are beside it, the dead ones left out
    assert len(np.load(next(index.glob("exact-*")))) == 30
    expected = alive(index)
    assert len(expected) == 1530 and not any("/v2-" in path for path in expected)
    opened = open_index(index)
    query = unit(500, 2)[0]  # of a row that is gone
    assert not any("/v2-" in hit.path for hit in opened.search(query, 50))
    assert opened.search(unit(30, 4)[3], 1)[0].path == "/videos/new4-3.mp4"
    assert recall(index) >= 0.95

    put(copy / "features", 5, unit(100, 5), name="more")  # too many to stay beside the lists
    built = rebuild(copy)
    assert (built.added, built.removed, built.remade) == (100, 0, "") and built.recall is not None
    assert built.contents.listed_rows == 2130 and built.contents.num_alive == 1630
    assert next(index.glob("lists-*")) != lists and len(np.load(next(index.glob("exact-*")))) == 0
    assert open_index(index).search(unit(100, 5)[9], 1)[0].path == "/videos/more5-9.mp4"
    assert recall(index) >= 0.95


def test_too_much_change_makes_it_anew(copy):
    for number in (1, 2):
        shard_path(copy / "features", number).unlink()
    built = rebuild(copy)
    assert built.remade == "50% of the rows in its lists are gone" and built.contents.num_rows == 1000
    assert recall(copy / "my.index") >= 0.95
    for number in range(10, 15):
        put(copy / "features", number, unit(500, number))
    assert rebuild(copy).remade == "it has grown 3.5-fold"
    for number in (0, *range(10, 15)):
        shard_path(copy / "features", number).unlink()
    put(copy / "features", 20, unit(5, 20))
    for number in (3,):
        put(copy / "features", number, unit(100, 3))
    built = rebuild(copy)
    assert built.remade == "it has 105 rows now, too few for lists" and built.contents.lists is None
    assert recall(copy / "my.index") == 1.0
    put(copy / "features", 21, unit(600, 21))
    assert rebuild(copy).remade == "it has 705 rows now, enough for lists"


def test_very_many_rows_are_kept_smaller(tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    assert list_kind(10_000_000, 512) == "RR512,IVF16384,SQ8" and list_kind(20_000_000, 512) == "RR512,IVF16384,PQ128"
    monkeypatch.setattr("modeling_mote.nearest_rows.COARSE_ROWS", 1000)
    put(tmp_path / "features", 0, unit(1500, 0))
    built = build_index(tmp_path / "my.index", [tmp_path / "features"], **LISTS)
    assert built.contents.lists["kind"] == "RR16,IVF128,PQ4" and min(built.recall) > 0.5


def test_windows_that_touch_are_one_answer(tmp_path):
    draw = np.random.default_rng(0)
    still = np.repeat(unit(1, 1), 10, 0) + 0.001 * draw.normal(size=(10, DIM))
    moving = np.concatenate([still[:3], unit(4, 2), still[:3]])
    for number, rows in ((0, still), (1, moving)):
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        put(tmp_path / "features", number, rows, windows=True, window=4.0, stride=1.0)
    build_index(tmp_path / "my.index", [tmp_path / "features"])
    hits = open_index(tmp_path / "my.index").search(unit(1, 1)[0], 3)
    assert {hit[:3] for hit in hits} == {
        ("/videos/v0-0.mp4", 0.0, 13.0),
        ("/videos/v1-0.mp4", 0.0, 6.0),
        ("/videos/v1-0.mp4", 7.0, 13.0),
    }


def test_merging():
    hits = [
        Hit("a", 4.0, 8.0, 0.30),
        Hit("b", 4.0, 8.0, 0.30),
        Hit("a", 8.0, 12.0, 0.29),  # touches
        Hit("a", 2.0, 6.0, 0.27),  # overlaps, but is less alike
        Hit("a", 13.0, 17.0, 0.26),  # apart
    ]
    assert merge_windows_of_videos(hits) == [Hit("a", 4.0, 12.0, 0.30), hits[1], hits[3], hits[4]]
    assert merge_windows_of_videos([Hit("a", 5.0, None, 0.3), Hit("a", 9.0, 10.0, 0.3)]) == [Hit("a", 5.0, None, 0.3)]


@pytest.mark.parametrize("exact_rows", [100, 1_000_000])
def test_groups_of_duplicates(tmp_path, exact_rows):
    if exact_rows == 100:
        pytest.importorskip("faiss")
    vectors = unit(400, 0)
    near = vectors[[7, 7, 11]] + np.array([[1e-3], [-1e-3], [3e-3]]) * np.random.default_rng(1).normal(size=(3, DIM))
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    put(tmp_path / "features", 0, vectors)
    put(tmp_path / "features", 1, near, name="copy")
    build_index(tmp_path / "my.index", [tmp_path / "features"], exact_rows=exact_rows)
    everything = np.concatenate([vectors, near])
    cosines = everything @ everything.T - np.eye(403)
    least = 0.9985
    assert (cosines[:400, :400] < least).all()
    groups = open_index(tmp_path / "my.index").duplicates(least)
    assert sorted(sorted(hit.path for hit in group) for group in groups) == [
        ["/videos/copy1-0.mp4", "/videos/copy1-1.mp4", "/videos/v0-7.mp4"],
        ["/videos/copy1-2.mp4", "/videos/v0-11.mp4"],
    ]
    assert groups[0][0].score == pytest.approx(cosines[[7, 400, 401]].max(), abs=2e-3)


def test_two_models_are_not_mixed(copy, tmp_path):
    put(tmp_path / "other", 0, unit(5, 0), key="b")
    for sources, message in (
        ([tmp_path / "other"], "was made with another model, or another release, than what index"),
        ([copy / "features", tmp_path / "other"], "another release, than .*features: make an index of each"),
    ):
        before = (copy / "my.index" / "index.json").read_bytes()
        with pytest.raises(ValueError, match=message):
            build_index(copy / "my.index", sources, **LISTS)
        assert (copy / "my.index" / "index.json").read_bytes() == before
    shutil.copy(shard_path(tmp_path / "other", 0), shard_path(copy / "features", 9))
    with pytest.raises(ValueError, match="part-00000009.parquet was made with another model"):
        rebuild(copy)
    assert recall(copy / "my.index") >= 0.95
    # Labels are no matter: the embeddings are the same.
    put(tmp_path / "labelled", 0, unit(5, 0), name="labelled", labels=["a"], prompts=["{}"])
    shard_path(copy / "features", 9).unlink()
    assert build_index(copy / "my.index", [copy / "features", tmp_path / "labelled"], **LISTS).added == 5
    # What is not named any more goes; the other folder's number changes, its rows stay.
    built = build_index(copy / "my.index", [tmp_path / "labelled", copy / "features"], **LISTS)
    assert (built.added, built.removed) == (0, 0)
    built = build_index(copy / "my.index", [copy / "features"], **LISTS)
    assert (built.added, built.removed, built.remade) == (0, 5, "")


def test_damage_is_noticed_and_mended_by_a_build(copy):
    index = copy / "my.index"
    put(copy / "features", 4, unit(30, 4))
    rebuild(copy)
    draw = np.random.default_rng(0)
    for file in sorted(index.glob("[!.]*")):
        whole = file.read_bytes()
        flips = [0, len(whole) - 1, *draw.integers(0, len(whole), 6).tolist()]
        damaged = []
        for place in flips:
            content = bytearray(whole)
            content[place] ^= 1 << int(draw.integers(8))
            damaged.append(bytes(content))
        for content in (*damaged, whole[: len(whole) // 2], b"", whole + b"x"):
            file.write_bytes(content)
            try:
                open_index(index)
            except ValueError as error:
                assert str(file) in str(error) and "build the index again" in str(error)
            else:  # white space of JSON says nothing
                assert file.name == "index.json" and json.loads(content) == json.loads(whole)
        file.write_bytes(whole)
    lists = next(index.glob("lists-*"))
    lists.unlink()
    with pytest.raises(ValueError, match=r"lists-.*faiss is missing: build the index again"):
        open_index(index)
    with pytest.raises(ValueError, match="is missing"):
        build_index(index)
    assert "is missing" in rebuild(copy).remade
    assert recall(index) >= 0.95
    shard = shard_path(copy / "features", 4)
    whole, state = shard.read_bytes(), shard.stat()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="part-00000004.parquet is no shard of embeddings, or a damaged one"):
        rebuild(copy)
    shard.write_bytes(whole)
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert recall(index) >= 0.95


def test_two_builds_at_once_and_folders_that_are_none(copy, tmp_path):
    with only_run(copy / "my.index"), pytest.raises(ValueError, match="Another run is writing to"):
        rebuild(copy)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no index and holds a.txt: choose another folder"):
        build_index(tmp_path / "notes", [copy / "features"])
    (tmp_path / "old").write_text("")
    with pytest.raises(ValueError, match="is a file, as older releases made"):
        open_index(tmp_path / "old")
    with pytest.raises(ValueError, match="is a file, as older releases made"):
        build_index(tmp_path / "old", [copy / "features"])
    with pytest.raises(FileNotFoundError, match="does not exist: make it with"):
        open_index(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no embeddings.json"):
        build_index(tmp_path / "new", [tmp_path / "notes"])


def _build_slowly(folder: Path) -> None:
    write = video_index.write_whole

    def wait(*arguments) -> None:
        (folder / "waits").touch()
        time.sleep(600)
        write(*arguments)

    video_index.write_whole = wait
    build_index(folder / "my.index", [folder / "features"], **LISTS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_build_leaves_what_was_there(copy):
    index = copy / "my.index"
    opened = open_index(index)
    put(copy / "features", 4, unit(100, 4), name="new")
    process = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(copy,))
    process.start()
    while not (copy / "waits").exists():  # all files of its generation are written
        assert process.is_alive()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert len(list(index.glob("lists-*"))) == 2
    assert open_index(index).contents == opened.contents
    assert rebuild(copy).added == 100
    assert len(list(index.glob("lists-*"))) == len(list(index.glob("rows-*"))) == 1
    # Whoever had it open goes on with what he opened.
    assert opened.search(unit(500, 0)[0], 1)[0].path == "/videos/v0-0.mp4"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["faiss", "torch"])
def test_faiss_and_torch_in_one_process(large, first):
    """Each brings an OpenMP of its own; whichever is loaded first, both compute."""
    second = {"faiss": "torch", "torch": "faiss"}[first]
    script = f"""
import {first}, {second}
import numpy, torch
from modeling_mote.video_index import open_index
torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
a = torch.ones(300, 300) @ torch.ones(300, 300)
index = open_index({str(large / "my.index")!r})
query = numpy.zeros((64, {DIM}), "float32"); query[:, 0] = 1
rows = index.nearest(query, 5)[1]
assert (rows == rows[0]).all() and (torch.ones(300, 300) @ a == 90000).all()
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout == "fine\n", done.stderr


def test_an_index_moves_with_its_features(tmp_path):
    index = tmp_path / "my.index"
    put(index / "features", 0, unit(5, 0))
    build_index(index, [index / "features"])
    moved = index.rename(tmp_path / "moved.index")
    put(moved / "features", 1, unit(5, 1))
    assert build_index(moved).added == 5 and len(list_shards(moved / "features")) == 2
