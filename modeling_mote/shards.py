"""Embeddings of many videos on disk: Parquet files, the shards, and `embeddings.json`, which says what made them.

    DIR/embeddings.json          what made the rows: model, labels, sampling, versions (see `write_record`)
    DIR/part-00000000.parquet    rows; the number grows, and a gap means nothing
    DIR/part-00000001.parquet

One row per video, or per window of a video (`SHARD_COLUMNS`, in this order):

| column | type | what |
|---|---|---|
| path | string | absolute path or URL |
| size | int64 or null | bytes; null if the place does not say |
| mtime | int64 or null | time of the last change, nanoseconds since 1970; null if the place does not say |
| start, end | float64 or null | seconds; both null for a whole video, end null for a part up to the video's end |
| embedding | fixed_size_list<float>[d] or null | L2-normalised video feature, without modulation; null with an error |
| scores | list<float> or null | a score per label, as the pipeline's, in the order of `labels` in embeddings.json |
| error | string or null | why the file could not be read; `embedding` and `scores` are null then |
| warning | string or null | what was wrong with it, such as that it breaks off |

A shard is there whole or not at all. It carries the text of embeddings.json in its own metadata (key `mote`), and
checksums of its pages. All rows of a file are in one shard. A file that could not be read is one row with an error.
Shards are not changed, but for one case: if a file has changed, its rows are taken out of their shard, which is then
replaced by a smaller one of the same name, before new rows are written. So a reader that keeps something per shard
compares the shard's size and time of change.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .processing.files import whole_file, write_whole

RECORD_NAME = "embeddings.json"
RECORD_FORMAT = 1  # counts up if a reader of this version could not read what is written
SHARD_COLUMNS = ("path", "size", "mtime", "start", "end", "embedding", "scores", "error", "warning")
# What rows depend on: two runs write to one folder only if these are equal.
SETTINGS = (
    "format",
    "merge_tokens",
    "key",
    "dim",
    "labels",
    "descriptions",
    "prompts",
    "scoring",
    "window",
    "stride",
    "reading",
)
REQUIRED = ("format", "model", "key", "dim")  # of a record; what else it lacks is taken for null

_SHARD_NAME = re.compile(r"part-(\d+)\.parquet")
_METADATA_KEY = b"mote"


def shard_schema(record: Mapping[str, Any]) -> pa.Schema:
    """The columns of a shard, with the record in its metadata.

    Args:
        record: What made the rows, with `dim`, the length d of an embedding; see `write_record`.
    """
    kinds = {
        "path": pa.field("path", pa.string(), nullable=False),
        "size": pa.int64(),
        "mtime": pa.int64(),
        "start": pa.float64(),
        "end": pa.float64(),
        "embedding": pa.list_(pa.float32(), record["dim"]),
        "scores": pa.list_(pa.float32()),
        "error": pa.string(),
        "warning": pa.string(),
    }
    fields = [kind if isinstance(kind, pa.Field) else pa.field(name, kind) for name, kind in kinds.items()]
    return pa.schema(fields, metadata={_METADATA_KEY: json.dumps(dict(record), sort_keys=True).encode()})


def write_record(folder: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write `embeddings.json`.

    Args:
        folder: The folder of the shards.
        record: `format` (`RECORD_FORMAT`), `model` (its folder, absolute, or Hub id), `key` (fingerprint of what an
            embedding depends on, see `feature_cache.video_features_key`), `dim` (d), `labels` (a list, or null),
            `descriptions` ({label: texts} of those that are described), `prompts` (templates, or null without labels),
            `scoring` (what of the model's config scores depend on, such as its calibration, or null without labels),
            `window` and `stride` (seconds, or null for whole videos), `reading` (the reading options that differ from
            the processor's own) and `versions` (of packages and of the reading code, by name).

    Raises:
        OSError: If it can't be written.
    """
    write_whole(Path(folder, RECORD_NAME), json.dumps(dict(record), indent=2, sort_keys=True) + "\n")


def read_record(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What made the shards of a folder; see `write_record`.

    Raises:
        FileNotFoundError: If the folder or its record is not there.
        ValueError: If the record is damaged, or of a later release.
    """
    path = Path(folder, RECORD_NAME)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {RECORD_NAME}: make it with `mote embed`.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(record, dict) and all(name in record for name in REQUIRED)
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"{path} is damaged: write it again from a shard's metadata, or make the folder anew.")
    if record["format"] != RECORD_FORMAT:
        raise ValueError(
            f"{path} has format {record['format']}, this release reads {RECORD_FORMAT}: use that release."
        )
    return record


def list_shards(folder: str | os.PathLike[str]) -> list[Path]:
    """The shards of a folder, in order of their numbers."""
    found = [path for path in Path(folder).glob("part-*.parquet") if _SHARD_NAME.fullmatch(path.name)]
    return sorted(found, key=shard_number)


def shard_number(path: Path) -> int:
    """The number in a shard's name."""
    named = _SHARD_NAME.fullmatch(path.name)
    assert named is not None
    return int(named[1])


def read_shard(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None, record: Mapping[str, Any] | None = None
) -> pa.Table:
    """The rows of one shard.

    Args:
        path: The shard.
        columns: Names of those that are wanted; all by default.
        record: What must have made it, if that is known; see `read_record`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no shard, is damaged, or was made by something else than the record says.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            own = json.loads((file.schema_arrow.metadata or {})[_METADATA_KEY])
            table = file.read(columns=list(columns) if columns is not None else None)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is no shard of embeddings, or a damaged one ({reason}): remove it, and `mote embed` makes its "
            "rows again."
        ) from error
    if record is not None and (other := other_settings(own, record)):
        raise ValueError(f"{path} was made with {other} than {RECORD_NAME} beside it says: remove one of them.")
    return table


def read_shards(folder: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a folder, one shard after another.

    Args:
        folder: The folder.
        columns: Names of those that are wanted; all by default.

    Yields:
        A table per shard, in order of their numbers.

    Raises:
        FileNotFoundError, ValueError: As `read_record` and `read_shard`.
    """
    record = read_record(folder)
    for path in list_shards(folder):
        yield read_shard(path, columns, record)


def write_shard(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: Where; `part-<number>.parquet`.
        table: The rows, of `shard_schema`.

    Raises:
        OSError: If it can't be written.
    """
    with whole_file(path) as partial:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            use_dictionary=["path", "error", "warning"],
            write_page_checksum=True,
        )


def shard_path(folder: str | os.PathLike[str], number: int) -> Path:
    """The place of a shard."""
    return Path(folder, f"part-{number:08d}.parquet")


def other_settings(record: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first of `SETTINGS` that two records differ in, as "another window"; empty if they agree."""
    words = {
        "key": "another model, or another release,",
        "dim": "another model",
        "labels": "other labels",
        "descriptions": "other descriptions of labels",
        "prompts": "other prompts",
        "scoring": "another calibration or modulation",
        "reading": "another choice of frames",
    }
    for name in SETTINGS:
        if record.get(name) != other.get(name):
            return words.get(name, f"another {name}")
    return ""


__all__ = [
    "RECORD_FORMAT",
    "RECORD_NAME",
    "SETTINGS",
    "SHARD_COLUMNS",
    "list_shards",
    "other_settings",
    "read_record",
    "read_shard",
    "read_shards",
    "shard_number",
    "shard_path",
    "shard_schema",
    "write_record",
    "write_shard",
]
