"""Class lists as data: the benchmarks' names in the order the authors of MoTE use, and the user's own label files.

The order fixes which output a class is and the spelling fixes its text feature, so a result is only comparable
together with the hash of the list it was measured on.
"""

import csv
import difflib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

from ..class_names import check_names, file_words, parse_candidates, to_words

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
        descriptions: {class name: texts that describe it}, of the classes that have any.
    """

    name: str
    classes: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict, compare=False)
    descriptions: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError(f"Label set {self.name} has no class; give at least one name.")
        try:
            check_names(self.classes)
        except ValueError as error:
            raise ValueError(f"Label set {self.name}: {error}.") from error

    @classmethod
    def from_names(
        cls,
        name: str,
        raw_names: Iterable[str],
        texts: Iterable[str] | None = None,
        descriptions: Mapping[str, tuple[str, ...]] | None = None,
    ) -> "LabelSet":
        """Make the set of names of folders or files, which become words.

        Args:
            name: Name of the list.
            raw_names: The names as they are written, in order.
            texts: What each is read as; `to_words` of it by default.
            descriptions: {name as it is written: texts that describe the class}.

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
        described = zip(texts, ((descriptions or {}).get(raw_name, ()) for raw_name in raw_names), strict=True)
        return cls(name, tuple(texts), renamed, {text: given for text, given in described if given})

    def __len__(self) -> int:
        return len(self.classes)

    @cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, printed with every result: of the ordered names joined by line feeds (UTF-8), or, if any of
        them is described, of the JSON list of [name, texts]."""
        if self.descriptions:
            return hashlib.sha256(json.dumps(list(self.candidates.items())).encode()).hexdigest()
        return hashlib.sha256("\n".join(self.classes).encode()).hexdigest()

    @property
    def candidates(self) -> dict[str, tuple[str, ...]]:
        """What `encode_classes` and the pipeline take: {class name: the texts that describe it, if any}."""
        return {name: self.descriptions.get(name, ()) for name in self.classes}

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
        return LabelSet(name, tuple(_read_rows(path)))


def read_label_file(path: str | Path) -> LabelSet:
    """Read the user's class names, and what describes them.

    Names that are written as folders are become words (see `file_words`); descriptions are texts, and stay.

    Args:
        path: UTF-8 file: text with one name per line, or CSV with a header that has the column `name` and, if wanted,
            `id`, counting 0, 1, 2, ..., and `description`, a text that is read in place of the name; several rows of
            one name give it several texts. Blank lines are skipped.

    Returns:
        The classes in the file's order, under the file's stem.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, is not UTF-8, lacks the column `name`, has ids out of order, a row that does not
            fit its header, or a class twice without descriptions, and as `class_names.parse_candidates`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"Label file {path} does not exist; give a CSV with a column `name`, or one name per line."
        )
    try:
        described = _read_rows(path)
        return LabelSet.from_names(path.stem, described, file_words(described), described)
    except ValueError as error:
        raise ValueError(f"Label file {path}: {str(error).removeprefix(f'Label set {path.stem}: ')}") from error


def _read_rows(path: Path) -> dict[str, tuple[str, ...]]:
    """{name as it is written: the texts that describe it} in a label file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text; save it as UTF-8.") from error
    if path.suffix.lower() == ".csv":
        rows = _read_csv(text)
    elif "name,description" in text.split("\n", 1)[0].replace(" ", ""):
        raise ValueError("it begins with `name,description`, as a CSV does; give it a name that ends in .csv.")
    else:
        rows = [(line.strip(), None) for line in text.splitlines() if line.strip()]
    if not rows:
        raise ValueError("it names no class; give at least one.")
    if not any(description for _, description in rows):
        check_names([name for name, _ in rows])  # which a class twice is refused by
    found: dict[str, list[str]] = {}
    for name, description in rows:
        found.setdefault(name, []).append(description or "")
    return parse_candidates(found)


def _read_csv(text: str) -> list[tuple[str, str | None]]:
    """(name, description or None) of each row."""
    table = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = table.fieldnames = [column.strip() for column in table.fieldnames or []]
        rows = [row for row in table if any(row.values())]
    except csv.Error as error:
        raise ValueError(f"it has a quote that does not fit ({error}).") from error
    if text.strip() and "name" not in header:
        raise ValueError("it has no column `name`; its first line must be `name`, `id,name` or `name,description`.")
    close = [column for column in header if difflib.get_close_matches("description", [column.casefold()])]
    if close and "description" not in header:
        raise ValueError(f"call its column `{close[0]}` `description`, if it holds what describes the classes.")
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise ValueError(f"row {number} has more cells than the header; put a text with a comma in double quotes.")
    if "id" in header:
        _check_ids(rows)
    return [((row["name"] or "").strip(), row.get("description")) for row in rows]


def _check_ids(rows: Iterable[Mapping[str, str]]) -> None:
    """Refuse ids that are not the positions of the classes."""
    classes = list(dict.fromkeys((row["id"], row["name"]) for row in rows))
    if [number for number, _ in classes] != [str(index) for index in range(len(classes))]:
        raise ValueError("the column `id` must count 0, 1, 2, ... from the first class on.")
    twice = [name for name, count in Counter(name for _, name in classes).items() if count > 1]
    if twice and any(row.get("description") for row in rows):
        raise ValueError(f"label {twice[0]!r} has two ids; the rows that describe one class have one.")
