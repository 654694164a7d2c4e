"""What a run over many videos is to read: a row per video, or part of one, with its size and time of change."""

import glob
import math
import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from pyarrow import csv, parquet

from .sources import VIDEO_SUFFIXES, find_videos, is_url, is_video_name
from .video_source import HTTP

LIST_SUFFIXES = (".csv", ".parquet")
ITEM_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        ("size", pa.int64()),
        ("mtime", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
    ]
)
# How the file systems of fsspec call the time of a change, the best first.
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")


class Item(NamedTuple):
    """A video to read, or a part of one.

    Attributes:
        path: Absolute path, or URL.
        size: Bytes; None if the place does not say.
        mtime: Time of the last change, in nanoseconds since 1970; None if the place does not say.
        start: Where the part starts, in seconds; None for the video's beginning.
        end: Where it ends; None for the video's end.
    """

    path: str
    size: int | None = None
    mtime: int | None = None
    start: float | None = None
    end: float | None = None


def list_items(sources: Sequence[str]) -> pa.Table:
    """List the videos that sources name, each once, in order.

    Args:
        sources: Video files; folders (read with the folders in them) and globs, on this machine or, as URLs, wherever
            fsspec reaches (`s3://bucket/folder`, `hf://datasets/owner/name/*.mp4`); http(s) URLs of files; and lists,
            CSV or Parquet files with a column `path`, relative to the list, and maybe `start` and `end` in seconds,
            `size` and `mtime`.

    Returns:
        A table of `ITEM_SCHEMA`, with the fields of `Item`.

    Raises:
        FileNotFoundError: If a source is not there, or holds no video.
        ValueError: If a list makes no sense; the message names it, and the row.
    """
    items = list(dict.fromkeys(item for source in sources for item in _list(source)))
    columns = list(zip(*items, strict=True)) or [()] * len(ITEM_SCHEMA)
    try:
        arrays = [pa.array(column, field.type) for column, field in zip(columns, ITEM_SCHEMA, strict=True)]
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{error.object!r} has a name that is not UTF-8, which a table can't hold: rename it."
        ) from error
    return pa.table(arrays, schema=ITEM_SCHEMA)


def _list(source: str) -> Iterator[Item]:
    if source.lower().endswith(LIST_SUFFIXES):
        yield from _read_list(Path(source).expanduser())
    elif is_url(source) and not source.startswith(HTTP):
        yield from _find_remote(source)
    else:
        yield from (_with_state(file) for file in find_videos([source]).files)


def _with_state(file: str) -> Item:
    """A file of this machine with its state; a link that leads nowhere, and an http(s) URL, have none."""
    if is_url(file):
        return Item(file)
    path = os.path.abspath(file)
    try:
        found = os.stat(path)
    except OSError:  # whoever reads it says so
        return Item(path)
    return Item(path, found.st_size, found.st_mtime_ns)


def _find_remote(source: str) -> Iterator[Item]:
    """The videos of a URL: of a folder, a glob, or the one file."""
    try:
        system, place = fsspec.core.url_to_fs(source)
        if glob.has_magic(source):
            found = system.glob(place, detail=True)
        elif system.isdir(place):
            found = system.find(place, detail=True)
        else:
            found = {place: system.info(place)}
    except (ImportError, ValueError) as error:
        raise ValueError(f"{source} can't be listed ({error}).") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source} does not exist.") from error
    except Exception as error:  # each file system has its own
        raise OSError(f"{source} can't be listed ({type(error).__name__}: {error}).") from error
    files = {name: info for name, info in sorted(found.items()) if info["type"] == "file"}
    if len(files) != 1 or glob.has_magic(source):
        files = {name: info for name, info in files.items() if is_video_name(name)}
    if not files:
        raise FileNotFoundError(f"{source} holds no file with the suffix of a video ({' '.join(VIDEO_SUFFIXES)}).")
    for name, info in files.items():
        yield Item(system.unstrip_protocol(name), info.get("size"), _nanoseconds(info))


def _nanoseconds(info: dict[str, Any]) -> int | None:
    """The time of the last change in what a file system says of a file."""
    for name in _TIMES:
        time = info.get(name)
        if isinstance(time, datetime):
            return round(time.timestamp() * 1e9)
        if isinstance(time, (int, float)):
            return round(time * 1e9)
    return None


def _read_list(path: Path) -> Iterator[Item]:
    """The items of a CSV or Parquet file."""
    try:
        table = csv.read_csv(path) if path.suffix.lower() == ".csv" else parquet.read_table(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"List {path} does not exist.") from error
    except pa.ArrowException as error:
        raise ValueError(f"List {path} can't be read ({str(error).splitlines()[0]}).") from error
    if "path" not in table.column_names:
        raise ValueError(f"List {path} needs a column path; it has {', '.join(table.column_names) or 'no column'}.")
    names = [name for name in ITEM_SCHEMA.names if name in table.column_names]
    has_state = {"size", "mtime"} <= set(names)
    try:
        columns = [table[name].cast(ITEM_SCHEMA.field(name).type).to_pylist() for name in names]
    except pa.ArrowException as error:
        raise ValueError(
            f"List {path}: start and end must be numbers of seconds, size and mtime whole numbers ({error})."
        ) from error
    beside = os.path.abspath(path.parent)
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        item = Item(**dict(zip(names, values, strict=True)))
        if not item.path:
            raise ValueError(f"List {path}, row {number}: the path is empty.")
        if not 0 <= (item.start or 0) < (math.inf if item.end is None else item.end):
            raise ValueError(
                f"List {path}, row {number}: start {item.start} and end {item.end} must be seconds, "
                "with 0 <= start < end."
            )
        place = (
            item.path if is_url(item.path) else os.path.normpath(os.path.join(beside, os.path.expanduser(item.path)))
        )
        state = item if has_state else _with_state(place)
        yield Item(place, state.size, state.mtime, item.start, item.end)


__all__ = ["ITEM_SCHEMA", "LIST_SUFFIXES", "Item", "list_items"]
