"""The user's own videos, listed in CSV files: `path,label` and, for parts of a file, `start` and `end` in seconds."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..label_sets import LabelSet, read_label_file
from .clip_list import Clip, ClipListBuilder, ClipListConfig, read_lines


@dataclass
class VideoListConfig(ClipListConfig):
    """CSV files, one per split.

    Attributes:
        files: {split: CSV file}. `path` is relative to `data_dir`, by default the folder of the first CSV file.
        label_file: Classes and their order (see `read_label_file`); by default the words of the labels in them.
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

    @property
    def classes_are_found(self) -> bool:
        """Without a label file, the classes are the labels in the lists."""
        return self.label_file is None

    def split_names(self) -> tuple[str, ...]:
        """Return the splits of `files`."""
        if not self.files:
            raise ValueError("`files` is empty; give {split: CSV file}, for example {'train': 'train.csv'}.")
        return tuple(self.files)

    def read_label_set(self) -> LabelSet:
        """Return the classes of `label_file`, or the words of the labels in the files, sorted by label."""
        if self.label_file is not None:
            return read_label_file(self.label_file)
        labels = {row["label"] for split in self.wanted_splits for _, row in _read_rows(self.files[split])}
        return LabelSet.from_names(Path(self.files[self.wanted_splits[0]]).stem, sorted(labels))

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return the clips of the CSV files."""
        return {
            split: [self._clip(where, row) for where, row in _read_rows(self.files[split])]
            for split in self.wanted_splits
        }

    def _clip(self, where: str, row: dict[str, str]) -> Clip:
        if not row["path"]:
            raise ValueError(f"{where}: the path is empty.")
        try:
            start, end = (float(row[column]) if row.get(column) else None for column in ("start", "end"))
        except ValueError as error:
            raise ValueError(f"{where}: start and end must be numbers of seconds, or empty.") from error
        if not 0 <= (start or 0) < (math.inf if end is None else end):
            raise ValueError(f"{where}: start {start} and end {end} must be seconds with 0 <= start < end.")
        return Clip(Path(row["path"]).as_posix(), self.label(row["label"], where), start, end)


def _read_rows(file: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place of each row of a CSV file, for messages, and its values by column, stripped."""
    path = Path(file).expanduser()
    rows = csv.DictReader(read_lines(path))
    columns = [column.strip() for column in rows.fieldnames or ()]
    if "path" not in columns or "label" not in columns:
        raise ValueError(
            f"List {path} must begin with the line path,label or path,label,start,end; it begins with "
            f"{','.join(columns)!r}."
        )
    rows.fieldnames = columns
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if None in row:
            raise ValueError(f"{where} has more values than columns; put a value with a comma in double quotes.")
        yield where, {column: (value or "").strip() for column, value in row.items()}


class VideoList(ClipListBuilder):
    """`VideoList(files={"train": "train.csv"})`: the user's own CSV lists."""

    BUILDER_CONFIG_CLASS = VideoListConfig
    config: VideoListConfig
