"""Base of the builders: a benchmark is a list of clips and labels, and videos that lie somewhere under one folder.

A builder reads its lists once, when it is made, so that whatever is wrong with them is said before anything is
written. Videos stay undecoded. A clip that is listed and has no file keeps its row, under the path where it was
expected: whoever reads it reports it, and `mote check` lists all of them.
"""

import hashlib
import json
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets.builder import Key

from ..class_names import describe_renamed
from ..label_sets import LabelSet
from ..sources import VIDEO_SUFFIXES, some_of, walk


class Clip(NamedTuple):
    """A clip as it is listed: path below the data folder, class index, and its start and end in seconds, if any."""

    path: str
    label: int
    start: float | None = None
    end: float | None = None


@dataclass
class ClipListConfig(datasets.BuilderConfig):
    """What the builders have in common; subclasses say where classes and clips come from.

    Attributes:
        data_dir: Folder that holds the videos, at any depth, and the official lists.
        splits: Splits to read, for example `("test",)`; all that there are by default.
        num_shards: Parts that several workers and machines divide a stream into.
        allow_empty_classes: Accept classes without a clip, for example a part of a benchmark.
    """

    data_dir: str | None = None
    splits: tuple[str, ...] = ()
    num_shards: int = 64
    allow_empty_classes: bool = False
    _raw_labels: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def title(self) -> str:
        """What messages call the data set."""
        return self.name

    def split_names(self) -> tuple[str, ...]:
        """Return the splits that there are; given by the subclass."""
        raise TypeError(f"{type(self).__name__} does not say what its splits are.")

    def read_label_set(self) -> LabelSet:
        """Return the classes; given by the subclass."""
        raise TypeError(f"{type(self).__name__} does not say what its classes are.")

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return {split: its clips in the order of the list} for `wanted_splits`; given by the subclass."""
        raise TypeError(f"{type(self).__name__} does not say what its clips are.")

    @property
    def classes_are_found(self) -> bool:
        """Whether the classes are those of the clips themselves: a split may then lack some of them."""
        return False

    @property
    def left_out(self) -> list[str]:
        """Files below the data folder that are no clips, relative to it; known once the clips are read."""
        return []

    @property
    def empty_folders(self) -> list[str]:
        """Folders of classes without a clip, which make no class; known once the clips are read."""
        return []

    @cached_property
    def root(self) -> Path:
        """The data folder, absolute."""
        if self.data_dir is None:
            raise ValueError(f"`data_dir` is missing; give the folder that holds the videos of {self.title}.")
        root = Path(self.data_dir).expanduser().absolute()
        if not root.is_dir():
            raise FileNotFoundError(f"data_dir {root} is not a folder; give the folder that holds the videos.")
        return root

    @cached_property
    def wanted_splits(self) -> tuple[str, ...]:
        """The splits to read."""
        names = self.split_names()
        unknown = [split for split in self.splits if split not in names]
        if unknown:
            raise ValueError(f"{self.title} has no split {unknown[0]!r}; choose {' or '.join(names)}.")
        return self.splits or names

    @cached_property
    def label_set(self) -> LabelSet:
        """The classes, in the order of the `label` column."""
        return self.read_label_set()

    @cached_property
    def clips(self) -> dict[str, list[Clip]]:
        """{split: clips}, checked.

        Raises:
            ValueError: if `num_shards` is less than 1, a split is unknown or has no clip, or a class in it has none.
            FileNotFoundError: if no clip of a split has a file.
        """
        if self.num_shards < 1:
            raise ValueError(f"num_shards is {self.num_shards}; it must be at least 1.")
        clips = self.read_clips()
        _ = self.left_out, self.empty_folders
        for name in ("tree", "found"):  # hundreds of thousands of paths that would travel to every worker
            self.__dict__.pop(name, None)
        for split, listed in clips.items():
            if not listed:
                raise ValueError(f"Split {split} of {self.title} lists no clip.")
            empty = self.empty_classes(listed)
            if empty and not self.allow_empty_classes and not self.classes_are_found:
                raise ValueError(
                    f"{len(empty)} of {len(self.label_set)} classes have no clip in split {split} of {self.title}, "
                    f"{empty[0]!r} to begin with; complete the list, or pass allow_empty_classes=True."
                )
            if not any(os.path.isfile(os.path.join(self.root, clip.path)) for clip in listed):
                raise FileNotFoundError(
                    f"None of the {len(listed)} clips of split {split} of {self.title} is under {self.root}, "
                    f"{listed[0].path} to begin with; check data_dir, or choose other splits."
                )
        return clips

    def empty_classes(self, listed: list[Clip]) -> list[str]:
        """The classes of which a list has no clip."""
        labels = {clip.label for clip in listed}
        return [name for label, name in enumerate(self.label_set.classes) if label not in labels]

    @cached_property
    def notes(self) -> list[str]:
        """What was left out, or is read otherwise than written: one sentence per kind, with number and examples."""
        notes = []
        if self.left_out:
            notes.append(
                f"{some_of(self.left_out, 'file')} of {self.title} without a video's suffix or a class left out"
            )
        if self.empty_folders:
            notes.append(f"{some_of(self.empty_folders, 'folder')} of {self.title} without a video left out: no class")
        for split, listed in self.clips.items():
            if self.classes_are_found and (empty := self.empty_classes(listed)):
                notes.append(f"{some_of(empty, 'class')} without a clip in split {split} of {self.title}")
        if described := self.label_set.descriptions:
            notes.append(
                f"descriptions of {some_of(list(described), 'class')} left out: rows have names alone; mote evaluate "
                "and mote classify take such a file, and encode_classes takes its `read_label_file(...).candidates`"
            )
        words = self.label_set.renamed  # official sets have none: their names are the authors'
        return [*notes, describe_renamed(words)] if words else notes

    @cached_property
    def renamed(self) -> dict[str, str]:
        """{name in the dataset: class name} of the classes that the dataset spells otherwise; clips are read first."""
        _ = self.clips
        named = {raw: self.label_set.classes[label] for raw, label in self._raw_labels.items()}
        return {raw: name for raw, name in sorted(named.items()) if raw != name}

    def label(self, raw_name: str, where: str) -> int:
        """Return the class index of the dataset's name for a class; `where` begins the error of an unknown one."""
        if raw_name not in self._raw_labels:
            try:
                self._raw_labels[raw_name] = self.label_set.index(raw_name)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        return self._raw_labels[raw_name]

    @cached_property
    def has_times(self) -> bool:
        """Whether any clip is a part of its file, with a start or an end."""
        times = (time for listed in self.clips.values() for clip in listed for time in (clip.start, clip.end))
        return any(time is not None for time in times)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name the cache folder by the clips as they were read: a changed list or option never finds old rows."""
        content = json.dumps([str(self.root), self.label_set.classes, self.clips])
        fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        return super().create_config_id({"clips": fingerprint}, custom_features)


class VideoTree:
    """Where videos and lists lie below a folder, by their file names.

    Args:
        root: Folder of the videos.
        list_dir: Folder of the lists; `root` by default.
    """

    def __init__(self, root: Path, list_dir: str | None = None):
        files = walk(root)
        self._videos: dict[str, list[str]] = defaultdict(list)  # by name without suffix
        for file in files:
            stem, suffix = posixpath.splitext(posixpath.basename(file))
            if suffix.lower() in VIDEO_SUFFIXES:
                self._videos[stem].append(file)
        self.list_root = root
        if list_dir is not None:
            self.list_root = Path(list_dir).expanduser().absolute()
            if not self.list_root.is_dir():
                raise FileNotFoundError(
                    f"list_dir {self.list_root} is not a folder; give the folder of the official lists."
                )
            files = walk(self.list_root)
        self.lists: dict[str, list[Path]] = defaultdict(list)  # by name
        for file in files:
            if file.lower().endswith((".txt", ".csv")):
                self.lists[posixpath.basename(file)].append(self.list_root / file)

    def find_list(self, name: str) -> Path:
        """Return where the official list of this file name lies.

        Raises:
            FileNotFoundError: if it is nowhere.
            ValueError: if there are several that differ.
        """
        paths = self.lists.get(name)
        if not paths:
            raise FileNotFoundError(
                f"The list {name} is not under {self.list_root}; put the official lists there, or give their folder "
                "as list_dir."
            )
        different = [path for path in paths[1:] if path.read_bytes() != paths[0].read_bytes()]
        if different:
            raise ValueError(f"{paths[0]} and {different[0]} differ; give the folder of the right one as list_dir.")
        return paths[0]

    def find_video(self, listed: str) -> str:
        """Return where a listed clip lies below the data folder, or the path as listed if it is nowhere.

        A clip is known by its file name without suffix: folders may be nested otherwise, and a re-encoded copy may
        have another suffix. Of several copies, that in the listed folder with the listed suffix is taken.
        """
        folder, name = posixpath.split(listed)
        stem, suffix = posixpath.splitext(name)
        found = self._videos.get(stem, [listed])
        if len(found) == 1:
            return found[0]

        def strangeness(path: str) -> tuple[bool, bool, str]:
            parent = posixpath.basename(posixpath.dirname(path))
            return parent != posixpath.basename(folder), not path.endswith(suffix), path

        return min(found, key=strangeness)


@dataclass
class OfficialListConfig(ClipListConfig):
    """Lists and videos as a benchmark's owners publish them, however their folders are nested.

    Attributes:
        list_dir: Folder that holds the official lists, at any depth; `data_dir` by default.
    """

    list_dir: str | None = None

    @cached_property
    def tree(self) -> VideoTree:
        """The files there are; forgotten when the clips are read."""
        return VideoTree(self.root, self.list_dir)


class ClipListBuilder(datasets.GeneratorBasedBuilder):
    """Rows of `video` (undecoded: `{"path", "bytes"}`), `label`, and `path`, the clip's place below the data folder.

    Lists with times have `start` and `end` too, in seconds, None where a clip has none.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ClipListConfig
    config: ClipListConfig

    def _info(self) -> datasets.DatasetInfo:
        label_set = self.config.label_set
        features: dict[str, Any] = {
            "video": datasets.Video(decode=False),
            "label": datasets.ClassLabel(names=list(label_set.classes)),
            "path": datasets.Value("string"),
        }
        if self.config.has_times:
            features |= {"start": datasets.Value("float64"), "end": datasets.Value("float64")}
        renamed = "; ".join(f"{raw} is {name}" for raw, name in self.config.renamed.items()) or "none"
        description = (
            f"Classes: {label_set.name}, {len(label_set)} names, sha256 {label_set.sha256}. "
            f"Names that the dataset spells otherwise: {renamed}."
        )
        return datasets.DatasetInfo(description=description, features=datasets.Features(features))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        generators = []
        for split, clips in self.config.clips.items():
            num_shards = min(self.config.num_shards, len(clips))
            bounds = [len(clips) * shard // num_shards for shard in range(num_shards + 1)]
            # The one list among the arguments is what datasets deals out to workers and machines.
            shards = list(zip(bounds[:-1], bounds[1:], strict=True))
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "shards": shards}))
        return generators

    def _generate_examples(self, split: str, shards: list[tuple[int, int]]) -> Iterator[tuple[Key, dict[str, Any]]]:
        for shard, (start, stop) in enumerate(shards):
            for index, clip in enumerate(self.config.clips[split][start:stop]):
                row = {
                    "video": {"path": os.path.join(self.config.root, clip.path), "bytes": None},
                    "label": clip.label,
                    "path": clip.path,
                }
                if self.config.has_times:
                    row |= {"start": clip.start, "end": clip.end}
                yield Key(shard, index), row


def list_sha256(rows: datasets.Dataset) -> str:
    """Hash a list of clips, wherever they lie: file names without folder and suffix, class names, starts and ends.

    Args:
        rows: Rows of a builder, in order.

    Returns:
        SHA-256 in hex. Two results with the same one were measured on the same list of clips and labels.
    """
    names = rows.features["label"].names
    columns = [rows[column][:] if column in rows.features else [None] * len(rows) for column in ("start", "end")]
    digest = hashlib.sha256()
    paths = rows["path"][:] if "path" in rows.features else [video["path"] for video in rows["video"]]
    for path, label, start, end in zip(paths, rows["label"][:], *columns, strict=True):
        stem = posixpath.splitext(posixpath.basename(path))[0]
        digest.update(json.dumps([stem, names[label], start, end]).encode())
    return digest.hexdigest()


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list file, stripped.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"List {path} does not exist; check its name.")
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"List {path} is not UTF-8 text; save it as UTF-8.") from error
