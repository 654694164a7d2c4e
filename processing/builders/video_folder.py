"""The user's own videos, one folder per class: `<class>/<clip>` or `<split>/<class>/<clip>`.

The layout is that of `load_dataset("videofolder")`. That one streams in one piece and passes over files it does not
know, webm among them, without a word; here workers share the stream, rows are those of the other builders, and what
is left out is told (`notes`): files without a video's suffix, files beside the folders of classes, and folders of
classes without a video, which make no class.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..label_sets import LabelSet, read_label_file
from ..sources import VIDEO_SUFFIXES, is_video_name, walk
from .clip_list import Clip, ClipListBuilder, ClipListConfig

SPLITS = ("train", "validation", "val", "test")


@dataclass
class VideoFolderConfig(ClipListConfig):
    """A tree of videos.

    Attributes:
        label_file: Classes and their order (see `read_label_file`); by default the words of the folders' names.
    """

    label_file: str | None = None

    @property
    def title(self) -> str:
        """What messages call the data set."""
        return str(self.root)

    @cached_property
    def _has_split_folders(self) -> bool:
        folders = _folders(self.root)
        return bool(folders) and all(folder.name in SPLITS for folder in folders)

    def split_names(self) -> tuple[str, ...]:
        """Return the names of the folders of splits; without such folders, the one split asked for, or train."""
        if self._has_split_folders:
            return tuple(split for split in SPLITS if (self.root / split).is_dir())
        return self.splits[:1] or ("train",)

    @property
    def classes_are_found(self) -> bool:
        """Without a label file, the classes are the folders that hold a video."""
        return self.label_file is None

    @cached_property
    def found(self) -> dict[str, dict[str, list[str]]]:
        """{split: {folder of a class: its files, videos or not}}, all relative to the data folder."""
        found: dict[str, dict[str, list[str]]] = {}
        for split in self.wanted_splits:
            parent = self.root / split if self._has_split_folders else self.root
            folders = _folders(parent)
            if not folders:
                raise ValueError(f"{parent} has no folders of classes; make one for each class.")
            found[split] = {
                folder.name: [(folder / file).relative_to(self.root).as_posix() for file in walk(folder)]
                for folder in folders
            }
            if not any(is_video_name(file) for files in found[split].values() for file in files):
                raise ValueError(
                    f"The folders of classes in {parent}, {folders[0].name!r} to begin with, hold no file with the "
                    f"suffix of a video ({' '.join(VIDEO_SUFFIXES)})."
                )
        return found

    @cached_property
    def left_out(self) -> list[str]:
        """Files beside the folders of classes, and those in them without a video's suffix."""
        parents = [self.root, *(self.root / split for split in self.found if self._has_split_folders)]
        beside = [
            (parent / name).relative_to(self.root).as_posix()
            for parent in parents
            for name in sorted(os.listdir(parent))
            if not name.startswith(".") and (parent / name).is_file()
        ]
        below = [file for folders in self.found.values() for files in folders.values() for file in files]
        return beside + [file for file in below if not is_video_name(file)]

    @cached_property
    def empty_folders(self) -> list[str]:
        """Folders of classes in which no file has a video's suffix."""
        return [
            f"{split}/{folder}" if self._has_split_folders else folder
            for split, folders in self.found.items()
            for folder, files in folders.items()
            if not any(map(is_video_name, files))
        ]

    def read_label_set(self) -> LabelSet:
        """Return the classes of `label_file`, or the words of the folders' names, sorted by name."""
        if self.label_file is not None:
            return read_label_file(self.label_file)
        names = {name for folders in self.found.values() for name, files in folders.items() if _videos(files)}
        return LabelSet.from_names(self.root.name, sorted(names))

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return the clips below the class folders, sorted by path."""
        return {
            split: [
                Clip(file, self.label(folder, str(self.root / folder)))
                for folder, files in folders.items()
                for file in _videos(files)
            ]
            for split, folders in self.found.items()
        }


def _videos(files: list[str]) -> list[str]:
    return [file for file in files if is_video_name(file)]


def _folders(parent: Path) -> list[Path]:
    return sorted(
        Path(entry.path) for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith(".")
    )


class VideoFolder(ClipListBuilder):
    """`VideoFolder(data_dir="videos")`: one folder per class."""

    BUILDER_CONFIG_CLASS = VideoFolderConfig
    config: VideoFolderConfig
