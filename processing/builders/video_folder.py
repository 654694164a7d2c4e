"""The user's own videos, a folder a class: `<class>/<clip>` or `<split>/<class>/<clip>`.

The layout is that of `load_dataset("videofolder")`. That one streams in one piece and passes over files it does not
know, webm among them; here workers share the stream, rows are those of the other builders, and nothing is passed over.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from ..label_sets import LabelSet, read_label_file
from ..sources import VIDEO_SUFFIXES, walk
from .clip_list import Clip, ClipListBuilder, ClipListConfig

SPLITS = ("train", "validation", "val", "test")


@dataclass
class VideoFolderConfig(ClipListConfig):
    """A tree of videos.

    Attributes:
        label_file: Classes and their order (see `read_label_file`); the folders' names, sorted, by default.
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

    @cached_property
    def _class_folders(self) -> dict[str, list[Path]]:
        """{split: the folders of its classes}."""
        parents = {split: self.root / split if self._has_split_folders else self.root for split in self.wanted_splits}
        for parent in parents.values():
            loose = sorted(file.name for file in parent.iterdir() if file.is_file() and _is_video(file.name))
            if loose:
                raise ValueError(f"{parent / loose[0]} lies in no folder of a class; move it into that of its class.")
            if not _folders(parent):
                raise ValueError(f"{parent} has no folders of classes; make one for each class.")
        return {split: _folders(parent) for split, parent in parents.items()}

    def read_label_set(self) -> LabelSet:
        """Return the classes of `label_file`, or the folders' names, sorted."""
        if self.label_file is not None:
            return read_label_file(self.label_file)
        return LabelSet(
            self.root.name,
            tuple(sorted({folder.name for folders in self._class_folders.values() for folder in folders})),
        )

    def read_clips(self) -> dict[str, list[Clip]]:
        """Return the clips below the class folders, sorted by path."""
        clips: dict[str, list[Clip]] = {}
        for split, folders in self._class_folders.items():
            clips[split] = []
            for folder in folders:
                label = self.label(folder.name, str(folder))
                for file in walk(folder):
                    if not _is_video(file):
                        raise ValueError(
                            f"{folder / file} has none of the suffixes of videos ({' '.join(VIDEO_SUFFIXES)}); take "
                            "it out of the folder, or rename it if it is one."
                        )
                    clips[split].append(Clip((folder / file).relative_to(self.root).as_posix(), label))
        return clips


def _is_video(file: str) -> bool:
    return PurePosixPath(file).suffix.lower() in VIDEO_SUFFIXES


def _folders(parent: Path) -> list[Path]:
    return sorted(
        Path(entry.path) for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith(".")
    )


class VideoFolder(ClipListBuilder):
    """`VideoFolder(data_dir="videos")`: a folder a class."""

    BUILDER_CONFIG_CLASS = VideoFolderConfig
    config: VideoFolderConfig
