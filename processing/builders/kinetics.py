"""Kinetics-400 and Kinetics-600 (Kay et al., 2017; Carreira et al., 2018) as most people have them.

Lists are the published CSV files, `label,youtube_id,time_start,time_end,split`, one a split or one for all; clips are
already cut out of their videos and named `<youtube_id>_<time_start>_<time_end>.mp4`, both times with six digits, in
one folder or one a class.
"""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..label_sets import LabelSet, load_label_set
from .clip_list import Clip, ClipListBuilder, OfficialListConfig, read_lines

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "validate": "validation",
    "validation": "validation",
    "test": "test",
}
_LIST_NAME = re.compile(
    r"(?:(?:kinetics|k)[-_]?(?P<edition>\d+)[-_])?(?P<split>train|val|validate|validation|test)\.csv"
)
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


@dataclass
class KineticsConfig(OfficialListConfig):
    """One edition of Kinetics, and which of its classes.

    Attributes:
        edition: Number of classes in the lists, 400 or 600.
        classes: Name of a label set; all classes in the lists, by name, if None. Rows of other classes are an error,
            or left out with `subset`.
        subset: Take only the rows of `classes`.
    """

    edition: int = 400
    classes: str | None = None
    subset: bool = False

    @cached_property
    def _list_names(self) -> dict[str, list[str]]:
        """{split: names of the files that may be its list}."""
        names = defaultdict(list)
        for name in self.tree.lists:
            match = _LIST_NAME.fullmatch(name.lower())
            if match and match["edition"] in (None, str(self.edition)):
                names[_SPLIT_NAMES[match["split"]]].append(name)
        return names

    @cached_property
    def _joint_list(self) -> Path | None:
        """The one list of all splits, told by its columns, where no list is named after a split."""
        if self._list_names:
            return None
        columns = {*_COLUMNS, "split"}
        paths = [self.tree.find_list(name) for name in self.tree.lists if name.lower().endswith(".csv")]
        joint = [path for path in paths if columns <= set(csv.DictReader(read_lines(path)).fieldnames or ())]
        if len(joint) > 1:
            raise ValueError(f"{joint[0]} and {joint[1]} may both be the list of {self.title}; keep one of them.")
        return joint[0] if joint else None

    def split_names(self) -> tuple[str, ...]:
        """Return the splits whose lists are there, or all of them if some are asked for by name."""
        named = set(self._list_names)
        if self._joint_list is not None:
            named = {_SPLIT_NAMES.get(row["split"].strip(), row["split"]) for row in self._rows(self._joint_list)}
        found = tuple(split for split in SPLITS if self.splits or split in named)
        if not found:
            raise FileNotFoundError(
                f"No list of {self.title} (train.csv, val.csv, test.csv) is under {self.tree.list_root}; put "
                "the published CSV files there, or give their folder as list_dir."
            )
        return found

    @cached_property
    def _list_paths(self) -> dict[str, Path]:
        paths = {}
        for split in self.wanted_splits:
            if self._joint_list is not None:
                paths[split] = self._joint_list
                continue
            names = sorted(self._list_names.get(split, [f"{split}.csv"]))
            if len(names) > 1:
                raise ValueError(
                    f"{' and '.join(names)} may both be the {split} list of {self.title}; give the folder of the "
                    "right one as list_dir."
                )
            paths[split] = self.tree.find_list(names[0])
        return paths

    def _rows(self, path: Path) -> csv.DictReader:
        rows = csv.DictReader(read_lines(path))
        missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]}; its first line must be {','.join(_COLUMNS)},split.")
        return rows

    def read_label_set(self) -> LabelSet:
        """Return the classes of `classes`, or those in the lists, sorted."""
        if self.classes is not None:
            return load_label_set(self.classes)
        labels = {row["label"] for path in self._list_paths.values() for row in self._rows(path)}
        return LabelSet(self.name, tuple(sorted(labels)))

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return the clips of the published lists, of the classes wanted."""
        clips: dict[str, list[Clip]] = {}
        for split, path in self._list_paths.items():
            clips[split] = []
            rows = self._rows(path)
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if self._joint_list is not None and _SPLIT_NAMES.get((row["split"] or "").strip()) != split:
                    continue
                if self.subset and row["label"] not in self.label_set.classes:
                    continue
                label = self.label(row["label"], where)
                try:
                    start, end = int(float(row["time_start"])), int(float(row["time_end"]))
                except (TypeError, ValueError, OverflowError) as error:
                    raise ValueError(f"{where}: time_start and time_end must be numbers of seconds.") from error
                listed = f"{row['youtube_id']}_{start:06d}_{end:06d}.mp4"
                clips[split].append(Clip(self.tree.find_video(listed), label))
        return clips


class Kinetics(ClipListBuilder):
    """Kinetics: `kinetics400`, `kinetics600`, and the zero-shot sets of 160 classes `kinetics600_split1`, `2`, `3`.

    The splits are those of `train`, `validation` and `test` whose lists are there.
    """

    BUILDER_CONFIG_CLASS = KineticsConfig
    BUILDER_CONFIGS = [
        KineticsConfig(name="kinetics400", edition=400, classes="kinetics400"),
        KineticsConfig(name="kinetics600", edition=600),
        *(
            KineticsConfig(name=name, edition=600, classes=name, subset=True)
            for name in ("kinetics600_split1", "kinetics600_split2", "kinetics600_split3")
        ),
    ]
    DEFAULT_CONFIG_NAME = "kinetics400"
