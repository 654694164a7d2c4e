"""What a protocol scores: lists of clips, and the texts that stand for their classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processing.builders import list_sha256, load_videos
from .processing.label_sets import LabelSet, load_label_set, read_label_file
from .processing.protocols import Protocol


@dataclass
class ClipList:
    """A list of clips that is scored on its own, and its candidate classes.

    Attributes:
        config: configuration of the benchmark, such as `split1`; None for a list of the user's.
        split: split that is scored.
        rows: the clips, undecoded.
        label_set: the c classes, in the order of the rows' labels.
        wording: what the text tower reads for them, in the same order: names, or their descriptions.
    """

    config: str | None
    split: str
    rows: Any
    label_set: LabelSet
    wording: LabelSet

    def identity(self) -> list[Any]:
        """What tells the list, with its texts, from another, or from older files of the same names."""
        files = []
        for video in self.rows["video"]:
            path = None if video["path"] is None else Path(video["path"])
            found = path is not None and path.is_file()
            files.append([str(path), path.stat().st_size, path.stat().st_mtime_ns] if path and found else str(path))
        return [list_sha256(self.rows), list(self.wording.candidates.items()), files]


def load_lists(
    protocol: Protocol,
    data: str | None,
    data_dir: str | None,
    list_dir: str | None,
    split: str,
    labels: str | None,
    allow_empty_classes: bool,
) -> list[ClipList]:
    """The lists of clips that a protocol scores, with their classes; see `evaluation.evaluate` for the arguments.

    Raises:
        FileNotFoundError, ValueError: as `load_videos`, and as `reword`.
    """
    options: dict[str, Any] = {"allow_empty_classes": True} if allow_empty_classes else {}
    options |= {
        name: value
        for name, value in (("data_dir", data_dir), ("list_dir", list_dir))
        if value is not None or protocol.builder is not None
    }
    if protocol.builder is None:
        rows: Any = load_videos(str(data), split, **options)
        label_set = LabelSet("labels", tuple(rows.features["label"].names))
        return [ClipList(None, split, rows, label_set, reword([label_set], labels)[0])]
    label_sets = [load_label_set(part.label_set) for part in protocol.parts]
    wordings = reword(label_sets, labels)  # before the data, whose reading takes long
    return [
        ClipList(
            part.config,
            part.split,
            load_videos(protocol.builder, part.split, name=part.config, **options),
            label_set,
            wording,
        )
        for part, label_set, wording in zip(protocol.parts, label_sets, wordings, strict=True)
    ]


def reword(label_sets: Sequence[LabelSet], path: str | None) -> list[LabelSet]:
    """The texts that a file gives for the classes of one or several lists, each in its list's order.

    A file that names the classes themselves is matched by name, in any order, so that one file can serve several
    lists. One that names them otherwise follows the order of its list, and serves one list alone.

    Args:
        label_sets: the classes of each list.
        path: of a file as `read_label_file` takes it; None for the classes' own names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as `read_label_file`, and if the file does not fit the classes.
    """
    if path is None:
        return list(label_sets)
    file = read_label_file(path)
    places = [_places(file, label_set) for label_set in label_sets]
    unknown = [name for name in file.classes if not any(name in found for found in places)]
    if unknown and file.descriptions:
        raise ValueError(f"{path} describes {unknown[0]!r}, which is no class of {label_sets[0].name}: take it out.")
    if not unknown:
        return [_by_name(file, found, each, path) for found, each in zip(places, label_sets, strict=True)]
    first = label_sets[0]
    if any(label_set.classes != first.classes for label_set in label_sets):
        raise ValueError(
            f"{path} names {unknown[0]!r}, which is no class, and there are several lists of classes, which one file "
            "can't rephrase in their order: name the classes as they are, and describe them."
        )
    if len(file) != len(first):
        raise ValueError(f"{path} names {len(file)} classes, but {first.name} has {len(first)}.")
    for place, name in enumerate(file.classes):
        if places[0].get(name, place) != place:
            raise ValueError(
                f"{path} has {name!r} as class {place}, which is class {places[0][name]} of {first.name}: keep the "
                "order of its classes."
            )
    return [file] * len(label_sets)


def _places(file: LabelSet, label_set: LabelSet) -> dict[str, int]:
    """{name in the file: index of the class of that name} of the names that are classes."""
    found = {}
    for name in file.classes:
        try:
            found[name] = label_set.index(name)
        except ValueError:
            continue
    return found


def _by_name(file: LabelSet, places: Mapping[str, int], label_set: LabelSet, path: str) -> LabelSet:
    """The wording of a list's classes, of a file that names them."""
    named = {place: name for name, place in places.items()}
    missing = [name for place, name in enumerate(label_set.classes) if place not in named]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the {len(label_set)} classes of {label_set.name}, {missing[0]!r} to "
            "begin with: name it, with an empty description if it speaks for itself."
        )
    if len(places) > len(named):
        twice = next(name for name, place in places.items() if named[place] != name)
        raise ValueError(f"{path} names the class {label_set.classes[places[twice]]!r} of {label_set.name} twice.")
    names = [named[place] for place in range(len(label_set))]
    described = {name: file.descriptions[name] for name in names if name in file.descriptions}
    return LabelSet(file.name, tuple(names), descriptions=described)


__all__ = ["ClipList", "load_lists", "reword"]
