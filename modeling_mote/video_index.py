"""An index over the embeddings of many videos: made from shards, kept up to date with them, and asked by vectors.

>>> build_index("my.index", ["features"])  # the folder of `mote embed`; again, for what has changed in it
>>> open_index("my.index").search(query, top_k=5)

    my.index/index.json        what made the embeddings, which shards are in it, checksums of the other files
    my.index/rows-3.parquet    path, start, end of every row, by number
    my.index/lists-2.faiss     the rows in lists (`nearest_rows`), from 100,000 rows on
    my.index/exact-3.npy       the rows that are in no list: all of a small index, the newest of a large one

No file is changed: a build writes new ones, and index.json last, whole or not at all. So a build that is killed leaves
the index of before, and whoever has it open goes on with the files that he opened. A row of the lists whose shard is
gone is dead: it is left out of answers, and out of the lists when they are next written.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .nearest_rows import (
    EXACT_ROWS,
    Recall,
    RecallQueries,
    RowLists,
    best_of,
    exact_nearest,
    gather_sample,
    training_rows,
)
from .processing.files import LOCK_NAME, only_run, whole_file, write_whole
from .shards import list_shards, other_settings, read_record, read_shard

INDEX_NAME = "index.json"
INDEX_FORMAT = 2  # 1 was one safetensors file
FEATURES_NAME = "features"  # in an index that has its embeddings to itself, their folder
BESIDE_ROWS = 10_000  # rows beside the lists, compared one by one (2 ms per query); more are put into them
DEAD_SHARE = 0.25  # of the lists' rows; more, and they are made anew
GROWN = 3  # times the rows that the lists' number was chosen for; more, and they are made anew
MERGE_WITHIN = 0.02  # windows of one video that touch are one answer if their cosines are so close
MOST_FETCHED = 64  # rows per answer wanted that are looked at for windows to merge

_BLOCK = 1 << 26  # bytes per checksum
_QUERIES_AT_ONCE = 256  # compared with all rows beside the lists: 100 MB


class Hit(NamedTuple):
    """A video, or a part of one, that was found.

    Attributes:
        path: Absolute path, or URL.
        start: Seconds; None for a whole video.
        end: Seconds; None for a whole video.
        score: The cosine of its embedding to the query's; the largest of those that were merged.
    """

    path: str
    start: float | None
    end: float | None
    score: float


class IndexedShard(NamedTuple):
    """A shard whose rows are in an index.

    Attributes:
        folder: Number of its folder among the sources.
        name: Of its file.
        size: Bytes.
        changed: Time of its last change, nanoseconds.
        first: Number of its first row in the index.
        rows: Rows of it that have an embedding.
        failed: Rows of it that have none: files that could not be read.
    """

    folder: int
    name: str
    size: int
    changed: int
    first: int = 0
    rows: int = 0
    failed: int = 0

    @property
    def state(self) -> tuple[int, str, int, int]:
        """What differs if the shard does."""
        return self[:4]


@dataclass
class Contents:
    """What index.json says.

    Attributes:
        record: What made the embeddings, see `shards.write_record`; without what concerns labels.
        sources: Folders of shards: absolute, or relative to the index if they lie in it.
        shards: Those whose rows are alive.
        num_rows: Rows that have a number, dead ones too.
        lists: None, or of the lists: `kind`, `probes`, `rows` (those numbered below are in them), `chosen_for` (rows
            that their number was chosen for), and `recall`, see `Recall`.
        generation: Counts the builds; in the names of files.
        files: {"rows" | "exact" | "lists": {"name", "size", "checksums"}}.
    """

    record: dict[str, Any]
    sources: list[str]
    shards: list[IndexedShard] = field(default_factory=list)
    num_rows: int = 0
    lists: dict[str, Any] | None = None
    generation: int = 0
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def listed_rows(self) -> int:
        """Rows numbered below this are in lists; the others are compared one by one."""
        return 0 if self.lists is None else self.lists["rows"]

    @property
    def num_alive(self) -> int:
        """Rows that can be found."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_failed(self) -> int:
        """Rows of the shards that have no embedding."""
        return sum(shard.failed for shard in self.shards)

    def shard_file(self, index: Path, shard: IndexedShard) -> Path:
        """Where a shard lies."""
        return index / self.sources[shard.folder] / shard.name

    def write(self, index: Path) -> None:
        """Write index.json, with a checksum.

        Raises:
            OSError: If it can't be written.
        """
        content = asdict(self) | {"format": INDEX_FORMAT}
        content["shards"] = [list(shard) for shard in self.shards]
        write_whole(index / INDEX_NAME, json.dumps(content | {"checksum": _json_checksum(content)}) + "\n")

    @classmethod
    def read(cls, index: Path) -> "Contents":
        """Read index.json.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it is damaged, or of another release.
        """
        path = index / INDEX_NAME
        if index.is_file():
            raise ValueError(f"Index {index} is a file, as older releases made: remove it and make a folder of it.")
        if not path.is_file():
            raise FileNotFoundError(
                f"Index {index} does not exist: make it with `mote search build` or `mote search index`."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            checksum = content.pop("checksum")
            if checksum != _json_checksum(content):
                raise ValueError("its checksum differs")
            release = content.pop("format")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: remove it, and build the index again from its features.") from error
        if release != INDEX_FORMAT:
            raise ValueError(f"{path} has format {release}, this release reads {INDEX_FORMAT}: build the index again.")
        return cls(**content | {"shards": [IndexedShard(*shard) for shard in content["shards"]]})


class Built(NamedTuple):
    """What a build did.

    Attributes:
        contents: Of the index now.
        added: Rows that came.
        removed: Rows that went.
        remade: Why everything was made anew; empty if it was not.
        recall: Of the lists, if they were written; None if they are as they were, or if there are none.
    """

    contents: Contents
    added: int
    removed: int
    remade: str
    recall: Recall | None


# ------------------------------------------------------------------------------------------------------------ building


def build_index(
    path: str | os.PathLike[str],
    sources: Sequence[str | os.PathLike[str]] | None = None,
    *,
    exact_rows: int = EXACT_ROWS,
    beside_rows: int = BESIDE_ROWS,
    show_progress: bool = False,
) -> Built:
    """Make an index of shards, or bring it up to date with them: what is new is added, what is gone is removed.

    Args:
        path: The folder of the index; made if there is none.
        sources: Folders of `mote embed`, all of one model; those of the last build by default. Rows of folders that
            are not named any more are removed.
        exact_rows: From so many rows on, they are put into lists.
        beside_rows: Rows beside the lists; more are put into them.
        show_progress: Draw a bar.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If a source is not there.
        ValueError: If a source is of another model than the index or another source, holds a damaged shard, or changes
            meanwhile; if another run writes to the index now, or the folder is none.
        ImportError: If faiss is needed and not installed.
        OSError: If the index can't be written.
    """
    path = Path(path)
    if check_place(path) is None and sources is None:
        raise ValueError(f"Index {path} is not there, or damaged: name the folders of embeddings to make it from.")
    for source in sources or ():
        read_record(source)  # what is none is known before there is a folder
    with only_run(path):
        builder = _Builder(path, sources, show_progress)
        built = builder.build(exact_rows, beside_rows)
        _remove_unused(path, built.contents)
    return built


def check_place(path: Path) -> Contents | None:
    """Refuse a place for an index that holds something else.

    Args:
        path: Where the index is, or is to be.

    Returns:
        What its index.json says; None if there is none, or a damaged one.

    Raises:
        ValueError: If it is a file, or a folder of something else.
    """
    if path.is_file():
        raise ValueError(f"Index {path} is a file, as older releases made: remove it, or name another folder.")
    own = {INDEX_NAME, LOCK_NAME, FEATURES_NAME}
    names = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    foreign = [name for name in names if not (name in own or name.startswith(".") or _is_data(name))]
    if foreign and INDEX_NAME not in names:
        raise ValueError(f"{path} is no index and holds {foreign[0]}: choose another folder for the index.")
    try:
        return Contents.read(path)
    except (FileNotFoundError, ValueError):
        return None


def _is_data(name: str) -> bool:
    return name.startswith(("rows-", "lists-", "exact-"))


def _remove_unused(path: Path, contents: Contents) -> None:
    used = {file["name"] for file in contents.files.values()}
    for file in path.iterdir():
        if _is_data(file.name) and file.name not in used:
            file.unlink(missing_ok=True)


class _Builder:
    """One build: from what the shards hold and what the index holds to the index that is to be."""

    def __init__(self, path: Path, sources: Sequence[str | os.PathLike[str]] | None, show_progress: bool) -> None:
        self.path, self.show_progress = path, show_progress
        self.old, self.damage = self._open_old(can_remake=sources is not None)
        if sources is not None:
            self.sources = [_relative(path, source) for source in sources]
        else:
            assert self.old is not None  # it was there a moment ago
            self.sources = self.old.contents.sources
        self.records = [read_record(path / source) for source in self.sources]
        self.record = self._common_record()
        self.known: dict[tuple[str, str, int, int], IndexedShard] = {}
        if self.old is not None:
            contents = self.old.contents
            self.known = {_identity(contents.sources, shard): shard for shard in contents.shards}

    def _open_old(self, can_remake: bool) -> tuple["VideoIndex | None", str]:
        """The index of before; if it is damaged, none and why."""
        if not (self.path / INDEX_NAME).exists():
            return None, ""
        try:
            return open_index(self.path), ""
        except ValueError as error:
            if not can_remake:
                raise
            return None, str(error)

    def _common_record(self) -> dict[str, Any]:
        """What made all embeddings; those of two models, or of two choices of frames, are refused."""
        records = [_without_labels(record) for record in self.records]
        for source, record in zip(self.sources[1:], records[1:], strict=True):
            if other := other_settings(records[0], record):
                raise ValueError(
                    f"{self.path / source} was made with {other} than {self.path / self.sources[0]}: make an index of "
                    "each."
                )
        if self.old is not None and (other := other_settings(self.old.contents.record, records[0])):
            raise ValueError(
                f"{self.path / self.sources[0]} was made with {other} than what index {self.path} holds: choose "
                "another folder for its index."
            )
        return records[0]

    def build(self, exact_rows: int, beside_rows: int) -> Built:
        """Decide what can stay, and write what can't."""
        kept, new = self._compare()
        before = 0 if self.old is None else self.old.contents.num_alive
        alive = sum(shard.rows for shard in kept)
        added, removed, total = sum(shard.rows for shard, _ in new), before - alive, alive
        total += added
        anew = self._why_anew(kept, total, exact_rows)
        if self.old is not None and anew is None:
            if not new and len(kept) == len(self.known) and self.sources == self.old.contents.sources:
                return Built(self.old.contents, 0, 0, "", None)
            listed, said = self.old.contents.listed_rows, self.old.contents.lists
            staying = [shard for shard in kept if shard.first < listed]
            into_lists = said is not None and total - sum(shard.rows for shard in staying) > beside_rows
        else:
            listed, said, staying, into_lists = 0, None, [], total >= exact_rows
        moving = [(shard, self._old_rows(shard)) for shard in kept if shard not in staying] + new
        shards, table = _numbered(sorted(moving, key=lambda each: each[0].state), listed)
        lists = None
        if into_lists:
            lists, said = self._new_lists(shards) if said is None else self._grown_lists(staying, shards, said)
        exact = [] if into_lists else [self._vectors(shard) for shard in shards]
        tables = [table] if listed == 0 or self.old is None else [self.old.rows.slice(0, listed).cast(_ROWS), table]
        contents = self._write(staying + shards, pa.concat_tables(tables), exact, lists, said)
        return Built(contents, added, removed, anew or "", Recall(*said["recall"]) if lists and said else None)

    def _compare(self) -> tuple[list[IndexedShard], list[tuple[IndexedShard, pa.Table]]]:
        """The shards that the index has, and those that it lacks with their rows."""
        kept, lacking = [], []
        for number, source in enumerate(self.sources):
            for file in list_shards(self.path / source):
                state = file.stat()
                shard = IndexedShard(number, file.name, state.st_size, state.st_mtime_ns)
                same = self.known.get(_identity(self.sources, shard))
                kept.append(same._replace(folder=number)) if same else lacking.append(shard)
        return kept, [self._described(shard) for shard in lacking]

    def _described(self, shard: IndexedShard) -> tuple[IndexedShard, pa.Table]:
        """A shard with its numbers of rows, and the rows."""
        table = _read_unchanged(self._file(shard), shard, [*_ROWS.names, "error"], self.records[shard.folder])
        rows = table.filter(pc.is_null(table["error"])).select(_ROWS.names).cast(_ROWS)
        return shard._replace(rows=len(rows), failed=len(table) - len(rows)), rows

    def _old_rows(self, shard: IndexedShard) -> pa.Table:
        assert self.old is not None
        return self.old.rows.slice(shard.first, shard.rows).cast(_ROWS)

    def _why_anew(self, kept: Sequence[IndexedShard], total: int, exact_rows: int) -> str | None:
        """Why nothing of the index can stay; "" if there is none yet, and None if it can."""
        if self.old is None:
            return self.damage
        lists = self.old.contents.lists
        if lists is None:
            return f"it has {total:,} rows now, enough for lists" if total >= exact_rows else None
        alive = sum(shard.rows for shard in kept if shard.first < lists["rows"])
        if total < exact_rows:
            return f"it has {total:,} rows now, too few for lists"
        if alive < (1 - DEAD_SHARE) * lists["rows"]:
            return f"{1 - alive / lists['rows']:.0%} of the rows in its lists are gone"
        if total > GROWN * lists["chosen_for"]:
            return f"it has grown {total / lists['chosen_for']:.1f}-fold"
        return None

    def _new_lists(self, shards: Sequence[IndexedShard]) -> tuple[RowLists, dict[str, Any]]:
        """Lists of all rows, and what index.json says of them."""
        total = sum(shard.rows for shard in shards)
        sample, numbers = gather_sample(self._all_vectors(shards, "sampled"), total, training_rows(total))
        lists = RowLists.train(sample, total)
        queries = RecallQueries(sample, numbers)
        first = 0
        for vectors in self._all_vectors(shards, "put into lists"):
            lists.add(vectors, first)
            queries.see(vectors, first)
            first += len(vectors)
        recall = queries.choose_probes(lists)
        said = {"kind": lists.kind, "probes": lists.probes, "rows": total, "chosen_for": total, "recall": recall}
        return lists, said

    def _grown_lists(
        self, staying: Sequence[IndexedShard], shards: Sequence[IndexedShard], said: dict[str, Any]
    ) -> tuple[RowLists, dict[str, Any]]:
        """The lists without their dead rows and with those of more shards, and what index.json says of them."""
        assert self.old is not None
        file = self.path / self.old.contents.files["lists"]["name"]
        lists = RowLists.open(file, said["kind"], said["probes"], mapped=False)
        lists.remove(np.flatnonzero(~_alive(staying, said["rows"])))
        first = said["rows"]
        for vectors in self._all_vectors(shards, "put into lists"):
            lists.add(vectors, first)
            first += len(vectors)
        return lists, said | {"rows": first}

    def _all_vectors(self, shards: Sequence[IndexedShard], doing: str) -> Iterator[np.ndarray]:
        bar = tqdm(shards, unit="shard", desc=doing, disable=not self.show_progress)
        return (self._vectors(shard) for shard in bar)

    def _vectors(self, shard: IndexedShard) -> np.ndarray:
        """The embeddings of a shard, float32 [rows, d]; from the index, if they are in no list."""
        same = self.known.get(_identity(self.sources, shard))
        if same is not None and self.old is not None and same.first >= self.old.contents.listed_rows:
            return self.old.shard_vectors(same)
        return _read_vectors(self._file(shard), shard, self.record["dim"], self.records[shard.folder])

    def _file(self, shard: IndexedShard) -> Path:
        return self.path / self.sources[shard.folder] / shard.name

    def _write(
        self,
        shards: list[IndexedShard],
        rows: pa.Table,
        exact: Sequence[np.ndarray],
        lists: RowLists | None,
        said: dict[str, Any] | None,
    ) -> Contents:
        """Write the files of a generation, and index.json last."""
        generation = 1 + max(map(_generation, self.path.iterdir()))  # damaged ones have theirs too
        contents = Contents(self.record, self.sources, shards, len(rows), said, generation)
        vectors = np.concatenate([np.empty((0, self.record["dim"]), np.float32), *exact])
        writers: dict[str, Callable[[Path], None]] = {
            "rows.parquet": lambda file: pq.write_table(rows, file, compression="zstd", use_dictionary=["path"]),
            "exact.npy": lambda file: _save_vectors(file, vectors),
        }
        if lists is not None:
            writers["lists.faiss"] = lists.write
        elif said is not None and self.old is not None:
            contents.files["lists"] = self.old.contents.files["lists"]
        for kind, write in writers.items():
            role, _, suffix = kind.partition(".")
            name = f"{role}-{generation}.{suffix}"
            with whole_file(self.path / name) as partial:
                write(partial)
                contents.files[role] = {
                    "name": name,
                    "size": partial.stat().st_size,
                    "checksums": _checksums(partial),
                }
        contents.write(self.path)
        return contents


_ROWS = pa.schema([("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())])


def _relative(index: Path, source: str | os.PathLike[str]) -> str:
    """How an index names a folder of shards: so that both can be moved, if one lies in the other."""
    inside = Path(os.path.abspath(source))
    base = Path(os.path.abspath(index))
    return inside.relative_to(base).as_posix() if inside.is_relative_to(base) else str(inside)


def _without_labels(record: Mapping[str, Any]) -> dict[str, Any]:
    """What an embedding depends on: not the labels that were scored beside it."""
    return {**record, "labels": None, "descriptions": {}, "prompts": None}


def _identity(sources: Sequence[str], shard: IndexedShard) -> tuple[str, str, int, int]:
    """What tells a shard from others, and from what it was before: its folder may have got another number."""
    return (sources[shard.folder], *shard.state[1:])


def _read_unchanged(
    file: Path, shard: IndexedShard, columns: Sequence[str], record: Mapping[str, Any] | None = None
) -> pa.Table:
    """Columns of a shard, which must be as it was when it was listed."""
    try:
        table = read_shard(file, columns, record)
        state = file.stat()
    except FileNotFoundError:
        state = None
    if state is None or (state.st_size, state.st_mtime_ns) != (shard.size, shard.changed):
        raise ValueError(f"{file} changed since the index was made, or meanwhile: build it again.")
    return table


def _read_vectors(file: Path, shard: IndexedShard, dim: int, record: Mapping[str, Any] | None = None) -> np.ndarray:
    """The embeddings of a shard, float32 [rows, d]."""
    table = _read_unchanged(file, shard, ["embedding", "error"], record)
    column = table.filter(pc.is_null(table["error"]))["embedding"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    if len(vectors) != shard.rows or not np.isfinite(vectors).all():
        raise ValueError(f"{file} has rows without an embedding and without an error: remove it.")
    return np.ascontiguousarray(vectors)


def _numbered(described: Sequence[tuple[IndexedShard, pa.Table]], first: int) -> tuple[list[IndexedShard], pa.Table]:
    """The shards with their rows numbered from `first` on, and the rows."""
    shards = []
    for shard, _ in described:
        shards.append(shard._replace(first=first))
        first += shard.rows
    return shards, pa.concat_tables([_ROWS.empty_table(), *(table for _, table in described)])


def _alive(shards: Sequence[IndexedShard], num_rows: int) -> np.ndarray:
    """Which of the rows numbered below `num_rows` belong to shards, bool [num_rows]."""
    alive = np.zeros(num_rows, bool)
    for shard in shards:
        alive[shard.first : shard.first + shard.rows] = True
    return alive


def _generation(file: Path) -> int:
    number = file.stem.rpartition("-")[2]
    return int(number) if _is_data(file.name) and number.isdigit() else 0


def _save_vectors(file: Path, vectors: np.ndarray) -> None:
    with open(file, "wb") as stream:
        np.save(stream, vectors, allow_pickle=False)


def _checksums(file: Path) -> list[int]:
    """CRC-32 of every 64 MB of a file."""

    def checksum(place: int) -> int:
        with open(file, "rb") as stream:
            stream.seek(place)
            return zlib.crc32(stream.read(_BLOCK))

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(checksum, range(0, max(file.stat().st_size, 1), _BLOCK)))


def _json_checksum(content: Mapping[str, Any]) -> int:
    """CRC-32 of what JSON gives back of a content."""
    return zlib.crc32(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())


# -------------------------------------------------------------------------------------------------------------- asking


class VideoIndex:
    """An index that is open: its files were compared with their checksums, and are mapped.

    Attributes:
        path: Its folder.
        contents: What index.json says.
        rows: Path, start and end of every row, by number.
        exact: float32 [n, d]: the rows behind those in lists.
    """

    def __init__(
        self, path: Path, contents: Contents, rows: pa.Table, exact: np.ndarray, lists: RowLists | None
    ) -> None:
        self.path, self.contents, self.rows, self.exact, self._lists = path, contents, rows, exact, lists
        alive = _alive(contents.shards, contents.listed_rows)
        self._alive = None if alive.all() else alive
        self._has_parts = rows["start"].null_count < len(rows) or rows["end"].null_count < len(rows)

    @property
    def record(self) -> dict[str, Any]:
        """What made the embeddings, see `shards.write_record`."""
        return self.contents.record

    def search(self, query: np.ndarray, top_k: int = 10) -> list[Hit]:
        """The videos, or parts of them, nearest to a query, best first.

        Windows of one video that touch or overlap are one answer, if their cosines differ by 0.02 at most.

        Args:
            query: float32 [d], L2-normalised.
            top_k: Answers wanted.

        Raises:
            ValueError: For a query of another length.
        """
        if query.shape != (self.record["dim"],):
            raise ValueError(f"A query for {self.path} is a vector of {self.record['dim']} numbers.")
        alive = self.contents.num_alive
        count = 4 * top_k if self._has_parts else top_k
        while True:
            scores, rows = self.nearest(query[None], min(count, alive))
            hits = merge_windows_of_videos(self._hits(scores[0], rows[0]))
            if count >= min(alive, MOST_FETCHED * top_k) or not self._has_parts:
                return hits[:top_k]
            if len(hits) >= top_k and scores[0, -1] < hits[top_k - 1].score - MERGE_WITHIN:  # the next belong to none
                return hits[:top_k]
            count *= 4

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows nearest to queries.

        Args:
            queries: float32 [q, d], L2-normalised.
            count: k, how many are wanted.

        Returns:
            Cosines float32 [q, k'] and row numbers int64 [q, k'], the best first, with k' <= 2 k; -inf and -1 if there
            are not so many.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = exact_nearest(queries, self.exact, count)
        rows = rows + self.contents.listed_rows
        if self._lists is not None:
            listed_scores, listed = self._lists.nearest(queries, count, self._alive)
            scores, rows = best_of(np.hstack([scores, listed_scores]), np.hstack([rows, listed]), count)
        return scores, rows

    def _hits(self, scores: np.ndarray, rows: np.ndarray) -> list[Hit]:
        # Value by value: `take` would make one dictionary of all the paths first, 4 ms for a million.
        columns = {name: self.rows[name] for name in self.rows.column_names}
        return [
            Hit(**{name: column[row].as_py() for name, column in columns.items()}, score=score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            if row >= 0
        ]

    def duplicates(self, least: float, show_progress: bool = False) -> list[list[Hit]]:
        """Groups of videos, or parts of them, that look nearly the same.

        Two rows of different videos belong together if their cosine is at least `least`, and so do rows that others
        tie together. In lists, pairs are found as `search` finds them: nearly all.

        Args:
            least: The cosine, above 0.
            show_progress: Draw a bar.

        Returns:
            Groups of two or more, the most alike first; a score is the largest cosine to another video.

        Raises:
            ValueError: If the shards changed since the index was made, as the rows are read from there.
        """
        paths = self.rows["path"].combine_chunks().dictionary_encode().indices.to_numpy()
        groups = _Groups()
        best = np.full(len(paths), -1.0)
        for shard in tqdm(self.contents.shards, unit="shard", disable=not show_progress):
            vectors = self.shard_vectors(shard)
            for begin in range(0, len(vectors), _QUERIES_AT_ONCE):
                one, other, scores = self._alike(vectors[begin : begin + _QUERIES_AT_ONCE], least)
                one += shard.first + begin
                chosen = paths[one] != paths[other]
                one, other, scores = one[chosen], other[chosen], scores[chosen]
                for rows in (one, other):
                    np.maximum.at(best, rows, scores)
                for pair in zip(one.tolist(), other.tolist(), strict=True):
                    groups.tie(*pair)
        found = []
        for rows in groups.all():
            order = np.array(sorted(rows, key=lambda row: (-best[row], row)))
            found.append(merge_windows_of_videos(self._hits(best[order], order)))
        return sorted(found, key=lambda group: -group[0].score)

    def _alike(self, queries: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of a cosine of at least `least`: number of the query, row, cosine."""
        cosines = queries @ self.exact.T
        one, other = np.nonzero(cosines >= least)
        found = [(one, other + self.contents.listed_rows, cosines[one, other])]
        if self._lists is not None:
            found.append(self._lists.above(queries, least, self._alive))
        one, other, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return one, other, scores

    def shard_vectors(self, shard: IndexedShard) -> np.ndarray:
        """The embeddings of a shard, float32 [rows, d]: those in lists, which are rounded there, from its file.

        Raises:
            ValueError: If the file is not what it was when the index was made.
        """
        place = shard.first - self.contents.listed_rows
        if place >= 0:
            return np.ascontiguousarray(self.exact[place : place + shard.rows])
        return _read_vectors(self.contents.shard_file(self.path, shard), shard, self.record["dim"])


def open_index(path: str | os.PathLike[str]) -> VideoIndex:
    """Open an index.

    Args:
        path: Its folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is none, or a file of it is missing or damaged, if only by one bit.
        ImportError: If it needs faiss, and that is not installed.
    """
    path = Path(path)
    contents = Contents.read(path)
    try:
        return _open_files(path, contents)
    except FileNotFoundError:  # a build has replaced it since
        contents = Contents.read(path)
    try:
        return _open_files(path, contents)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing: {_REMAKE}") from error


_REMAKE = "build the index again, naming its folders of features."


def _open_files(path: Path, contents: Contents) -> VideoIndex:
    for file in contents.files.values():
        place = path / file["name"]
        if place.stat().st_size != file["size"] or _checksums(place) != file["checksums"]:
            raise ValueError(f"{place} is damaged: {_REMAKE}")
    files = {role: path / file["name"] for role, file in contents.files.items()}
    rows = pq.read_table(files["rows"], read_dictionary=["path"])
    exact = np.load(files["exact"], mmap_mode="r", allow_pickle=False)
    said, lists = contents.lists, None
    if said is not None:
        lists = RowLists.open(files["lists"], said["kind"], said["probes"])
    return VideoIndex(path, contents, rows, exact, lists)


def merge_windows_of_videos(hits: Sequence[Hit]) -> list[Hit]:
    """Make one of hits of one video that touch or overlap, if their cosines differ by `MERGE_WITHIN` at most.

    Args:
        hits: The best first.

    Returns:
        The best first; each from the earliest start to the latest end of those that it stands for, with the best
        one's score.
    """
    merged: list[Hit] = []
    places: dict[str, list[int]] = {}
    for hit in hits:
        of_video = places.setdefault(hit.path, [])
        for place in of_video:
            found = merged[place]
            if found.score - hit.score <= MERGE_WITHIN and _touch(found, hit):
                merged[place] = _spanning(found, hit)
                break
        else:
            of_video.append(len(merged))
            merged.append(hit)
    return merged


def _touch(one: Hit, other: Hit) -> bool:
    return (one.start or 0.0) <= _end(other) and (other.start or 0.0) <= _end(one)


def _end(hit: Hit) -> float:
    return np.inf if hit.end is None else hit.end


def _spanning(best: Hit, other: Hit) -> Hit:
    """A hit from the earlier start to the later end of two, with the first one's score."""
    starts, ends = (best.start, other.start), (best.end, other.end)
    return best._replace(
        start=None if None in starts else min(starts),  # type: ignore[type-var]
        end=None if None in ends else max(ends),  # type: ignore[type-var]
    )


class _Groups:
    """Numbers that are tied together (union-find)."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def tie(self, one: int, other: int) -> None:
        """Put two numbers, with all that are tied to them, into one group."""
        one, other = self._top(one), self._top(other)
        self._above[max(one, other)] = min(one, other)

    def all(self) -> list[list[int]]:
        """The groups."""
        groups: dict[int, list[int]] = {}
        for number in sorted(self._above):
            groups.setdefault(self._top(number), []).append(number)
        return list(groups.values())

    def _top(self, number: int) -> int:
        above = self._above.setdefault(number, number)
        while above != self._above[above]:
            above = self._above[above]
        while number != above:  # the next way up is short
            self._above[number], number = above, self._above[number]
        return above


__all__ = [
    "FEATURES_NAME",
    "Built",
    "Contents",
    "Hit",
    "IndexedShard",
    "VideoIndex",
    "build_index",
    "check_place",
    "merge_windows_of_videos",
    "open_index",
]
