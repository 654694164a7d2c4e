"""The user's own videos, listed in CSV files: `path,label` and, for parts of a file, `start` and `end` in seconds."""

import csv
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..label_sets import LabelSet, read_label_file
from .clip_list import Clip, ClipListBuilder, ClipListConfig


@dataclass
class VideoListConfig(ClipListConfig):
    """CSV files, one a split.

    Attributes:
        files: {split: CSV file}. `path` is relative to `data_dir`, by default the folder of the first CSV file.
        label_file: Classes and their order (see `read_label_file`); the labels in the files, sorted, by default.
    """

    files: dict[str, str] = field(default_factory=dict)
    label_file: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.files and not self.data_dir:
            self.data_dir = str(Path(next(iter(self.files.values()))).expanduser().parent)

    @property
    def title(self) -> str:
        """What messages call the data set."""
        return " and ".join(self.files.values())

    def split_names(self) -> tuple[str, ...]:
        """Return the splits of `files`."""
        if not self.files:
            raise ValueError("`files` is empty; give {split: CSV file}, for example {'train': 'train.csv'}.")
        return tuple(self.files)

    @cached_property
    def _rows(self) -> dict[str, list[dict[str, str]]]:
        return {split: _read_rows(Path(self.files[split]).expanduser()) for split in self.wanted_splits}

    def read_label_set(self) -> LabelSet:
        """Return the classes of `label_file`, or the labels in the files, sorted."""
        if self.label_file is not None:
            return read_label_file(self.label_file)
        return LabelSet(
            Path(next(iter(self.files.values()))).stem,
            tuple(sorted({row["label"] for rows in self._rows.values() for row in rows})),
        )

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return the clips of the CSV files."""
        return {
            split: [self._clip(row, f"{self.files[split]}, line {number}") for number, row in enumerate(rows, start=2)]
            for split, rows in self._rows.items()
        }

    def _clip(self, row: dict[str, str], where: str) -> Clip:
        if not row["path"]:
            raise ValueError(f"{where}: the path is empty.")
        try:
            start, end = (float(row[column]) if row.get(column) else None for column in ("start", "end"))
        except ValueError as error:
            raise ValueError(f"{where}: start and end must be numbers of seconds, or empty.") from error
        if not 0 <= (start or 0) < (math.inf if end is None else end):
            raise ValueError(f"{where}: start {start} and end {end} must be seconds with 0 <= start < end.")
        return Clip(Path(row["path"]).as_posix(), self.label(row["label"], where), start, end)


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file with the columns path and label, each value stripped."""
    if not path.is_file():
        raise FileNotFoundError(f"List {path} does not exist; give a CSV file with the columns path and label.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [column.strip() for column in reader.fieldnames or ()]
            if "path" not in columns or "label" not in columns:
                raise ValueError(
                    f"List {path} must begin with the line path,label or path,label,start,end; it begins with "
                    f"{','.join(columns)!r}."
                )
            reader.fieldnames = columns
            return [
                {column: (value or "").strip() for column, value in row.items() if isinstance(column, str)}
                for row in reader
            ]
    except UnicodeDecodeError as error:
        raise ValueError(f"List {path} is not UTF-8 text; save it as UTF-8.") from error


class VideoList(ClipListBuilder):
    """`VideoList(files={"train": "train.csv"})`: the user's own CSV lists."""

    BUILDER_CONFIG_CLASS = VideoListConfig
    config: VideoListConfig
