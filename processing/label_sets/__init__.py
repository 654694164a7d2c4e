"""Class lists as data: the benchmarks' names in the order the authors of MoTE use, and the user's own label files.

The order fixes which output a class is and the spelling fixes its text feature, so a result is only comparable
together with the hash of the list it was measured on.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

from ..class_names import check_names, file_words, to_words

LABEL_SETS = ("kinetics400", "ucf101", "hmdb51", "kinetics600_split1", "kinetics600_split2", "kinetics600_split3")


def _raw_key(name: str) -> str:
    """What stays of a name when case, spaces, underscores and punctuation are dropped: `ApplyEyeMakeup` and
    `Apply Eye Makeup` have one key."""
    return "".join(filter(str.isalnum, name.casefold()))


@dataclass(frozen=True)
class LabelSet:
    """Class names in a fixed order.

    Attributes:
        name: Name of the list, one of `LABEL_SETS`, or the stem of the user's file.
        classes: The c class names; position = class index.
        renamed: {name as it was written: class name} of those that became words (see `class_names`).
    """

    name: str
    classes: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"Label set {self.name} has no class; give at least one name.")
        try:
            check_names(self.classes)
        except ValueError as error:
            raise ValueError(f"Label set {self.name}: {error}.") from error

    @classmethod
    def from_names(cls, name: str, raw_names: Iterable[str], texts: Iterable[str] | None = None) -> "LabelSet":
        """Make the set of names of folders or files, which become words.

        Args:
            name: Name of the list.
            raw_names: The names as they are written, in order.
            texts: What each is read as; `to_words` of it by default.

        Raises:
            ValueError: if two become one, and as `class_names.check_names`.
        """
        raw_names = list(raw_names)
        texts = [to_words(raw_name) for raw_name in raw_names] if texts is None else list(texts)
        written: dict[str, str] = {}  # {class name: name}
        for raw_name, text in zip(raw_names, texts, strict=True):
            first = written.setdefault(text.casefold(), raw_name)
            if first.casefold() != raw_name.casefold():
                raise ValueError(
                    f"Label set {name}: {first!r} and {raw_name!r} are both the class {text!r}; make "
                    "them one, or give every class its own name."
                )
        renamed = {raw_name: text for raw_name, text in zip(raw_names, texts, strict=True) if raw_name != text}
        return cls(name, tuple(texts), renamed)

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of the ordered names joined by line feeds (UTF-8); printed with every result."""
        return hashlib.sha256("\n".join(self.classes).encode()).hexdigest()

    @cached_property
    def _by_raw_key(self) -> dict[str, str]:
        keys = Counter(_raw_key(name) for name in self.classes)
        # Two classes of one key (`C++`, `C#`) can only be told apart by their exact names.
        return {key: name for name in self.classes if (key := _raw_key(name)) and keys[key] == 1}

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.classes)}

    def from_raw(self, raw_name: str) -> str:
        """Return the class that a raw name of a folder or an official list stands for.

        Case, spaces, underscores and punctuation may differ: UCF101's `ApplyEyeMakeup` is `Apply Eye Makeup`,
        HMDB51's `brush_hair` is `brush hair`.

        Args:
            raw_name: Name as the dataset writes it.

        Returns:
            The name in `classes`.

        Raises:
            ValueError: if no class has this name.
        """
        known = (each for each in (raw_name, to_words(raw_name)) if each in self._index)
        name = next(known, None) or self._by_raw_key.get(_raw_key(raw_name))
        if name is None:
            raise ValueError(f"Unknown label {raw_name!r}: it is none of the {len(self)} classes of {self.name}.")
        return name

    def index(self, raw_name: str) -> int:
        """Return the class index of a name or raw name (see `from_raw`)."""
        return self._index[self.from_raw(raw_name)]


def load_label_set(name: str) -> LabelSet:
    """Load one of the class lists that come with the package.

    Args:
        name: One of `LABEL_SETS`.

    Returns:
        The classes in the authors' order and spelling.

    Raises:
        ValueError: if there is no list of this name.
    """
    if name not in LABEL_SETS:
        raise ValueError(f"Unknown label set {name!r}; choose one of {', '.join(LABEL_SETS)}.")
    with resources.as_file(resources.files(__name__) / f"{name}.csv") as path:
        return LabelSet(name, tuple(_read_names(path)))


def read_label_file(path: str | Path) -> LabelSet:
    """Read the user's class names; those that are written as folders are become words (see `file_words`).

    Args:
        path: UTF-8 file: CSV with a header that has the column `name` (and, if wanted, `id`, counting 0, 1, 2, ...),
            or text with one name per line. Blank lines are skipped.

    Returns:
        The classes in the file's order, under the file's stem.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, is not UTF-8, lacks the column `name`, has ids out of order, or has a class twice,
            and as `class_names.check_names`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Label file {path} does not exist; give a CSV with a column `name`, or one name per line."
        )
    try:
        names = _read_names(path)
        return LabelSet.from_names(path.stem, names, file_words(names))
    except ValueError as error:
        raise ValueError(f"Label file {path}: {str(error).removeprefix(f'Label set {path.stem}: ')}") from error


def _read_names(path: Path) -> list[str]:
    """The names in a label file, as they are written."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text; save it as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(lines, skipinitialspace=True))
        if lines and "name" not in next(csv.reader(lines[:1], skipinitialspace=True)):
            raise ValueError("it has no column `name`; its first line must be `id,name` or `name`.")
        ids = [row["id"] for row in rows if "id" in row]
        if ids and ids != [str(index) for index in range(len(ids))]:
            raise ValueError("the column `id` must count 0, 1, 2, ... from the first class on.")
        names = [(row["name"] or "").strip() for row in rows]
    else:
        names = [line.strip() for line in lines]
    if not names:
        raise ValueError("it names no class; give at least one.")
    return names
