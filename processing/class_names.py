"""Names are words: what a class is called becomes the text that the text tower reads, by one rule.

* **Names** of folders, of labels in CSV lists, and of label files become words: `red_star_growing` is read as
  "red star growing", `ApplyEyeMakeup` as "Apply Eye Makeup" (`to_words`). A name with a space in it is taken as it is.
  In a label file that holds such a name, capitals separate nothing: "YoYo" there is meant (`file_words`).
  Whoever reads names tells which became what, once, and records it.
* **Official label sets** keep the exact names that the authors of MoTE use ("YoYo").
* **Labels** that are typed or passed to a function are texts, and taken as they are. One that looks like the name of a
  folder is pointed out, with the words to write instead (`unlike_words`): a model trained on "red star growing" and
  asked for "red_star_growing" was right on 32.8 % of clips in place of 93.1 %.
* **Descriptions** are texts that say what a class looks like. They are read as they are, and the answer keeps the name
  (`parse_candidates`).
"""

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

MAX_LABEL_LETTERS = 1000  # CLIP's text tower reads about 300; more would only cost time

_UPPER, _LOWER = "A-ZÀ-ÖØ-ÞΑ-ΩА-ЯЁ", "a-zß-öø-ÿα-ωа-яё"
_BORDERS = re.compile(
    "|".join(
        (
            f"(?<=[{_UPPER}{_LOWER}][{_LOWER}])(?=[{_UPPER}])",  # Apply|Eye, but iPhone
            f"(?<=[{_UPPER}0-9])(?=[{_UPPER}][{_LOWER}]{{2}})",  # TV|Repair, 3D|Printing, but DVDs
            f"(?<=[{_LOWER}])(?=[0-9]+[{_UPPER}])",  # Jump|2Times, but Mp3 and class10
        )
    )
)


def to_words(name: str) -> str:
    """The words of a name as folders and programs write it.

    `_`, and `-` if there are several, stand for spaces; a word begins where a capital follows a small letter
    (`GreenBarGrowing`), where a run of capitals ends (`TVRepair`), and around a number between two words
    (`Jump2Times`). Capitals stay, and a name with a space in it is taken as it is.

    Args:
        name: As the folder is called.

    Returns:
        The words with single spaces between them.
    """
    name = name.strip()
    if any(letter.isspace() for letter in name):
        return name
    separated = name.replace("_", " ")
    if name.count("-") > 1:  # red-star-growing, but push-up
        separated = separated.replace("-", " ")
    return " ".join(_BORDERS.sub(" ", separated).split()) or name


def file_words(names: Iterable[str]) -> list[str]:
    """The words of the names in one label file.

    If any of them has a space in it, the file is written in words: "YoYo" stays, only a name with `_` is a folder's.
    """
    names = list(names)
    written = any(" " in name.strip() for name in names)
    return [name.strip() if written and "_" not in name else to_words(name) for name in names]


def unlike_words(labels: Iterable[str]) -> dict[str, str]:
    """{label: its words} of the labels that look like names of folders rather than texts."""
    words = {label: to_words(label) for label in labels}
    return {label: text for label, text in words.items() if label != text}


def describe_renamed(renamed: Mapping[str, str], most: int = 5) -> str:
    """One sentence for {name: class name}: which names became which, the first few of them.

    Args:
        renamed: The names that changed, at least one.
        most: Names shown.
    """
    shown = ", ".join(f"{name} → {text}" for name, text in list(renamed.items())[:most])
    more = f", and {len(renamed) - most} more" if len(renamed) > most else ""
    return f"Class names are read as words: {shown}{more}."


def parse_labels(labels: str | Iterable[str] | None, max_letters: int | None = None) -> list[str]:
    """Check labels, given as a list or as one string with commas between them.

    Args:
        labels: The names; spaces around them are dropped. In a string, a name with a comma in it stands in double
            quotes: `'"yoga, outdoors", archery'`.
        max_letters: Letters that a label may have; `MAX_LABEL_LETTERS` by default.

    Returns:
        The names, in order.

    Raises:
        ValueError: for no name at all, for a string that is no list with commas, and as `check_names`.
    """
    if isinstance(labels, str):
        labels = _split(labels)
    if labels is None or isinstance(labels, (bytes, Mapping, Set)) or not isinstance(labels, Iterable):
        given = "none were given" if labels is None else f"not a {type(labels).__name__}"
        raise ValueError(f"labels must be a list of names or a comma-separated string, {given}")
    names = [name.strip() if isinstance(name, str) else name for name in labels]
    if not names:
        raise ValueError("no label was given: pass at least one name")
    check_names(names, max_letters)
    return names


def parse_candidates(labels: Any, max_letters: int | None = None) -> dict[str, tuple[str, ...]]:
    """Check labels of which some may be described, and give all of them in one form.

    Args:
        labels: As `parse_labels`, or {name: description}, where a description is a text, a list of texts, or None (or
            empty) for a name that speaks for itself.
        max_letters: Letters that a name may have; `MAX_LABEL_LETTERS` by default.

    Returns:
        {name: texts} in order: the texts that describe the class, as they are, with single spaces; none if the prompts
        are to be filled with the name.

    Raises:
        ValueError: as `parse_labels`, and for a description that is no text, or of which one text is empty.
    """
    if not isinstance(labels, Mapping):
        return dict.fromkeys(parse_labels(labels, max_letters), ())
    names = parse_labels(list(labels), max_letters)
    return {name: _described(name, given) for name, given in zip(names, labels.values(), strict=True)}


def _described(name: str, given: Any) -> tuple[str, ...]:
    """The texts of one description."""
    texts = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(texts, Sequence) or any(not isinstance(text, str) for text in texts):
        raise ValueError(f"label {name!r} is described by {_short(given)}: pass a text, a list of texts, or None")
    cleaned = tuple(" ".join(text.split()) for text in texts)
    if len(cleaned) == 1 and not cleaned[0]:
        return ()
    if "" in cleaned:
        raise ValueError(
            f"text {cleaned.index('') + 1} of {len(cleaned)} that describe label {name!r} is empty: leave it out"
        )
    return cleaned


def check_names(names: Sequence[str], max_letters: int | None = None) -> None:
    """Refuse names that can't be classes.

    Args:
        names: The names.
        max_letters: Letters that a name may have; `MAX_LABEL_LETTERS` by default.

    Raises:
        ValueError: for a name that is no string, is empty, has too many letters, a line break, a tab or another
            control character in it, or is given twice; case and spaces tell no names apart.
    """
    most = MAX_LABEL_LETTERS if max_letters is None else max_letters
    known: dict[str, str] = {}
    for position, name in enumerate(names, start=1):
        which = f"label {position} of {len(names)}"
        if not isinstance(name, str):
            raise ValueError(f"{which} is {name!r}, not a string")
        if not name.strip():
            raise ValueError(f"{which} is empty: give it a name or leave it out")
        if len(name) > most:
            raise ValueError(f"{which}, {name[:40]!r}…, has {len(name)} letters: at most {most} are taken")
        if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
            raise ValueError(
                f"{which}, {name[:80]!r}, has a line break, tab or other control character in it: take it out"
            )
        key = " ".join(name.split()).casefold()  # CLIP's text tower reads lower case and single spaces
        if key in known:
            same = known[key] == name
            twice = f"label {name!r} was given twice" if same else f"labels {known[key]!r} and {name!r} are one"
            why = "" if same else " to the text tower (case and spaces are ignored)"
            raise ValueError(f"{twice}{why}: every label must be distinct")
        known[key] = name


def _split(labels: str) -> list[str]:
    """The names of a string with commas between them, and double quotes around what holds a comma."""
    text, how = labels.strip(), "write names with commas between them, such as 'yoga, archery'"
    if not text:
        return []
    if text[0] in "[{":
        raise ValueError(f"labels {_short(text)} look like JSON or Python: {how}")
    try:
        rows = list(csv.reader(text.splitlines(), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(f"labels {_short(text)} have a quote that does not fit ({error}): {how}") from error
    if len(rows) > 1 or "\t" in text:
        raise ValueError(f"labels {_short(text)} have line breaks or tabs in them: {how}")
    names = [name.strip() for name in rows[0]]
    if len(names) == 1 and (";" in text or "|" in text):
        raise ValueError(f"labels {_short(text)} are one label, as they have no comma: {how}")
    if len(names) == 1 and "," in names[0]:
        raise ValueError(f"labels {_short(text)} are one label in quotes: {how}, or pass a list of this one")
    if all(len(name) > 1 and name[0] in "'‘’“”«" and name[-1] in "'‘’“”»" for name in names):
        raise ValueError(f"labels {_short(text)} are in quotes that would count as letters: {how}")
    return names


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 62 else text[:61] + "…" + text[-1]


__all__ = [
    "MAX_LABEL_LETTERS",
    "check_names",
    "describe_renamed",
    "file_words",
    "parse_candidates",
    "parse_labels",
    "to_words",
    "unlike_words",
]
