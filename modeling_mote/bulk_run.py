"""Embeddings of very many videos, each once, whatever is killed on the way: `mote embed`.

>>> embed_all(VideoScorer("org/mote-vitb16"), list_items(["my_videos"]), "features")

What is done is known from the shards alone. They are written by this process, which holds the folder's lock: an
engine, here or on other machines, only hands it rows. So every row is there once, also if workers outlive a run that
was killed. A run that goes on where another one stopped reads again what was in no shard yet.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from .bulk import VideoScorer
from .processing.files import only_run
from .processing.listing import ITEM_SCHEMA
from .shards import (
    RECORD_NAME,
    list_shards,
    other_settings,
    read_record,
    read_shard,
    shard_number,
    shard_path,
    shard_schema,
    write_record,
    write_shard,
)

SHARD_ROWS = 4096  # 8 MB at d = 512
SHARD_SECONDS = 60.0  # what a kill costs at most, beside the rows that are being computed
FILE_STATE = ["path", "size", "mtime"]


class Embedded(NamedTuple):
    """What a run did.

    Attributes:
        listed: Videos, or parts, that were to be in the output.
        before: Of these, how many were there from runs before.
        replaced: Files whose older rows were taken out: they have changed since, could not be read, or are gone.
        failed: How many of the new ones could not be read.
    """

    listed: int
    before: int
    replaced: int
    failed: int


Engine = Callable[[VideoScorer, pa.Table], Iterator[pa.Table]]


def embed_all(
    scorer: VideoScorer,
    items: pa.Table,
    output: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    shard_rows: int = SHARD_ROWS,
    shard_seconds: float = SHARD_SECONDS,
    retry: bool = False,
    prune: bool = False,
    show_progress: bool = False,
) -> Embedded:
    """Embed videos into a folder of shards: those that it does not have yet.

    Rows of files that are not among the items stay as they are, but for `prune`.

    Args:
        scorer: What embeds and scores.
        items: The videos, as `list_items` lists them.
        output: The folder; made if there is none. See `shards`.
        engine: What runs the scorer over the items that are to do, and gives the rows in any order, those of one item
            together; `run_here` by default.
        shard_rows: A shard is written when there are so many rows,
        shard_seconds: or so many seconds after its first row.
        retry: Read again what could not be read.
        prune: Take out the rows of files that are not among the items.
        show_progress: Draw a bar.

    Returns:
        What was done.

    Raises:
        ValueError: If another run writes to the folder now, or it holds rows of another model or other options, or a
            damaged shard; a `CheckpointError` for the model.
        OSError: If it can't be written.
    """
    with only_run(output):
        record = scorer.record()
        _check_same(output, record)
        items = items.select(ITEM_SCHEMA.names).cast(ITEM_SCHEMA)
        items = items.append_column("item", pa.array(range(len(items)), pa.int64()))
        done = _Done(output, record)
        replaced = done.drop_stale(items, retry, prune)
        todo = done.missing(items)
        write_record(output, record)
        failed = 0
        with (
            _ShardWriter(output, record, shard_rows, shard_seconds) as shards,
            tqdm(total=len(todo), unit="video", disable=not (show_progress and len(todo))) as bar,
        ):
            for rows in (engine or run_here)(scorer, todo):
                shards.add(rows)
                failed += len(rows) - rows["error"].null_count
                bar.update(pc.count_distinct(rows["item"]).as_py())
    return Embedded(len(items), len(items) - len(todo), replaced, failed)


def _check_same(output: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Refuse to mix rows of two models, or of other options."""
    if not Path(output, RECORD_NAME).exists():
        if shards := list_shards(output):
            raise ValueError(f"{output} holds {shards[0].name} and no {RECORD_NAME}: choose another folder.")
        return
    if other := other_settings(read_record(output), record):
        raise ValueError(
            f"{output} was made with {other} than this run has, as its {RECORD_NAME} says: choose another folder."
        )


class _Done:
    """What the shards of a folder hold: a row per row of theirs, without the numbers."""

    def __init__(self, folder: str | os.PathLike[str], record: dict[str, Any]) -> None:
        self.folder, self.record = folder, record
        # A video is done if it has rows: in windows they have their own times.
        self.key = FILE_STATE if record["window"] is not None else [*FILE_STATE, "start", "end"]
        tables = [self._read(path) for path in list_shards(folder)]
        self.rows = pa.concat_tables(tables) if tables else None

    def _read(self, path: Path) -> pa.Table:
        table = read_shard(path, [*ITEM_SCHEMA.names, "error"], self.record).replace_schema_metadata()
        table = table.append_column("shard", pa.repeat(shard_number(path), len(table)))
        return table.append_column("row", pa.array(range(len(table)), pa.int64()))

    def missing(self, items: pa.Table) -> pa.Table:
        """The items that have no row."""
        if self.rows is None or not len(self.rows):
            return items
        return _joined(items, self.rows, self.key, "left anti")

    def drop_stale(self, items: pa.Table, retry: bool, prune: bool) -> int:
        """Take rows of files that have changed, with `retry` those with errors, and with `prune` those of files that
        are not among the items, out of their shards.

        Returns:
            Number of files whose rows were dropped.
        """
        if self.rows is None or not len(self.rows):
            return 0
        named = _joined(self.rows, items, ["path"], "left semi")
        stale = _joined(named, items, FILE_STATE, "left anti")
        if retry:
            stale = pa.concat_tables([stale, named.filter(pc.is_valid(named["error"]))])
        if prune:
            stale = pa.concat_tables([stale, _joined(self.rows, items, ["path"], "left anti")])
        for number in pc.unique(stale["shard"]).to_pylist():
            path = shard_path(self.folder, number)
            rows = stale.filter(pc.equal(stale["shard"], number))["row"]
            table = read_shard(path)
            kept = table.filter(pc.invert(pc.is_in(pa.array(range(len(table)), pa.int64()), rows.combine_chunks())))
            write_shard(path, kept) if len(kept) else path.unlink()
        self.rows = _joined(self.rows, stale, ["shard", "row"], "left anti")
        return pc.count_distinct(stale["path"]).as_py()


def _joined(left: pa.Table, right: pa.Table, keys: list[str], kind: str) -> pa.Table:
    """The rows of a table that another has ("left semi") or lacks ("left anti"); null equals null."""

    def filled(table: pa.Table) -> pa.Table:
        columns = [table[name] if name == "path" else pc.fill_null(table[name], -1) for name in keys]
        return pa.table(columns, names=[f"key {name}" for name in keys])

    numbered = filled(left).append_column("place", pa.array(range(len(left)), pa.int64()))
    joined = numbered.join(filled(right), [f"key {name}" for name in keys], join_type=kind)
    return left.take(joined["place"].combine_chunks().sort())


class _ShardWriter:
    """Rows → shards; what is left is written when the block ends, however it ends."""

    def __init__(
        self, folder: str | os.PathLike[str], record: dict[str, Any], shard_rows: int, shard_seconds: float
    ) -> None:
        self.folder, self.schema = folder, shard_schema(record)
        self.shard_rows, self.shard_seconds = shard_rows, shard_seconds
        shards = list_shards(folder)
        self.number = shard_number(shards[-1]) + 1 if shards else 0
        self.tables: list[pa.Table] = []
        self.since = 0.0

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self.write()

    def add(self, rows: pa.Table) -> None:
        """Take rows, and write a shard if it is time."""
        if not self.tables:
            self.since = time.monotonic()
        self.tables.append(rows.select(self.schema.names).cast(self.schema))
        if sum(map(len, self.tables)) >= self.shard_rows or time.monotonic() - self.since >= self.shard_seconds:
            self.write()

    def write(self) -> None:
        """Write a shard of the rows that there are."""
        if self.tables:
            write_shard(shard_path(self.folder, self.number), pa.concat_tables(self.tables))
            self.number += 1
            self.tables = []


# ------------------------------------------------------------------------------------------------------------ engines


def run_here(scorer: VideoScorer, items: pa.Table) -> Iterator[pa.Table]:
    """The engine of one machine: this process with the model, and the scorer's processes that read.

    Args:
        scorer: What embeds and scores.
        items: Columns of `ITEM_SCHEMA` and `item`.

    Yields:
        Rows of an item, or several, with the columns of the items and of the results.
    """
    yield from scorer.tables(items)


__all__ = ["SHARD_ROWS", "SHARD_SECONDS", "Embedded", "Engine", "embed_all", "run_here"]
