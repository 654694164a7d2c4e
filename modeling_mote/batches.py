"""Batches of videos as Ray, Daft, `datasets` and pandas have them, and the columns of results beside them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from .processing.reading import VideoPart


class Scored(NamedTuple):
    """What one video, or part of one, gave.

    Attributes:
        spans: (start, end) in seconds of each of its n rows: of the video or part as it was asked for, or of windows.
        embeds: float32 [n, d], L2-normalised; None with an error.
        scores: float32 [n, c]; None with an error, and without labels.
        error: Why it could not be read.
        warning: What was wrong with it.
    """

    spans: list[tuple[float | None, float | None]]
    embeds: np.ndarray | None = None
    scores: np.ndarray | None = None
    error: str | None = None
    warning: str | None = None


def columns_of(batch: Any) -> dict[str, list[Any]]:
    """The columns of a batch as lists.

    Args:
        batch: A dict of columns, a `pyarrow.Table`, or a pandas `DataFrame`.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(batch, pa.Table):
        return batch.to_pydict()
    if hasattr(batch, "iloc"):
        return {name: batch[name].tolist() for name in batch.columns}
    if not isinstance(batch, Mapping):
        raise ValueError(
            f"A batch is a dict of columns, an Arrow table or a DataFrame; this is a {type(batch).__name__}."
        )
    return {name: list(batch[name]) for name in batch}


def parts_of(columns: Mapping[str, list[Any]], with_windows: bool) -> list[VideoPart]:
    """The videos, or parts of them, that a batch names.

    Args:
        columns: `path`, `bytes` or `video`, and maybe `start` and `end`; see `VideoScorer`.
        with_windows: Whether they are to be cut in windows, which parts are not.

    Raises:
        ValueError: If there is none of the first three columns, or there are parts to be cut in windows.
    """
    names = [name for name in ("video", "bytes", "path") if name in columns]
    if not names:
        raise ValueError(
            f"A batch needs a column path, bytes or video; this one has {', '.join(columns) or 'no column'}."
        )
    length = len(columns[names[0]])
    given = [columns.get(name, [None] * length) for name in ("start", "end")]
    times = [[None if time is None or time != time else float(time) for time in column] for column in given]
    if with_windows and any(time is not None for column in times for time in column):
        raise ValueError("Rows with start or end are parts of videos, which are not cut in windows: leave one out.")
    parts = []
    for row, (start, end) in enumerate(zip(*times, strict=True)):
        video = next((columns[name][row] for name in names if columns[name][row] is not None), None)
        path = columns["path"][row] if "path" in columns else None
        name = video if isinstance(video, str) else path or (video.get("path") if isinstance(video, Mapping) else None)
        parts.append(VideoPart({} if video is None else video, str(name or f"row {row}"), start, end))
    return parts


def rows_of(results: Sequence[Scored], with_windows: bool) -> tuple[list[int], dict[str, list[Any]]]:
    """Lay results out as rows.

    Args:
        results: One per row of a batch.
        with_windows: Whether a row becomes several, with times of their own.

    Returns:
        Which row of the batch each row comes from; and the columns `embedding`, `scores`, `error` and `warning`, with
        windows `start` and `end` too.
    """
    rows = [row for row, result in enumerate(results) for _ in result.spans]
    each = [results[row] for row in rows]
    embeds = [embed for result in results for embed in _per_row(result.embeds, result)]
    scores = [score for result in results for score in _per_row(result.scores, result)]
    columns: dict[str, list[Any]] = {"embedding": embeds, "scores": scores}
    columns |= {"error": [result.error for result in each], "warning": [result.warning for result in each]}
    if with_windows:
        spans = [span for result in results for span in result.spans]
        columns = {"start": [start for start, _ in spans], "end": [end for _, end in spans]} | columns
    return rows, columns


def _per_row(values: np.ndarray | None, result: Scored) -> Sequence[Any]:
    return [None] * len(result.spans) if values is None else list(values)


def with_columns(table: pa.Table, columns: Mapping[str, list[Any]], dim: int) -> pa.Table:
    """Add columns of results to a table, in the place of those of their names.

    Args:
        table: Rows.
        columns: As `rows_of` gives them, as long as the table.
        dim: Length of an embedding, d.
    """
    kinds = {"embedding": pa.list_(pa.float32(), dim), "scores": pa.list_(pa.float32())}
    kinds |= {"start": pa.float64(), "end": pa.float64()}
    for name, values in columns.items():
        field = pa.field(name, kinds.get(name, pa.string()))
        column = pa.array(values, field.type)
        place = table.schema.get_field_index(name)
        table = table.append_column(field, column) if place < 0 else table.set_column(place, field, column)
    return table


__all__ = ["Scored", "columns_of", "parts_of", "rows_of", "with_columns"]
