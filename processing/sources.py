"""What a person names, files, folders, globs and URLs, to the videos that are meant."""

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".3gp", ".ts")
BENCHMARKS = ("kinetics", "ucf101", "hmdb51", "moving_shapes")  # data sets known by name: keys of `builders.BUILDERS`

STDIN = "-"
RTSP = ("rtsp://", "rtsps://")  # how cameras speak
DEVICE = re.compile(r"/dev/video\d+")  # of Linux

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")  # two letters at least: C:// is a disk


class Videos(NamedTuple):
    """Videos to read.

    Attributes:
        names: what results call them: as they were named, or below the one folder that was named.
        files: paths and URLs, in the same order.
        left_out: files in folders and globs that have no suffix of a video.
    """

    names: list[str]
    files: list[str]
    left_out: list[str]

    @property
    def note(self) -> str:
        """A sentence on what was left out; empty if nothing was."""
        return f"{some_of(self.left_out, 'file')} without a video's suffix left out" if self.left_out else ""


def find_videos(sources: Sequence[str]) -> Videos:
    """List the videos of files, folders (with the folders in them), globs and URLs, each once, in order.

    A file that is named is taken whatever its suffix. Of a folder or glob, files without the suffix of a video are
    left out.

    Args:
        sources: paths, globs such as `clips/*.mp4`, and URLs.

    Raises:
        FileNotFoundError: if a source is not there, or a folder or glob holds no video.
    """
    names: list[str] = []
    files: list[str] = []
    left_out: list[str] = []
    seen: set[str] = set()
    for source in sources:
        found, others = _find(source, alone=len(sources) == 1)
        left_out += [other for other in others if other not in left_out]
        for name, file in found:
            place = file if is_url(file) else os.path.abspath(file)
            if place not in seen:
                seen.add(place)
                names.append(name)
                files.append(file)
    return Videos(names, files, left_out)


def _find(source: str, alone: bool) -> tuple[list[tuple[str, str]], list[str]]:
    """(name, file) of the videos of one source, and the files that are left out."""
    if is_url(source):
        return [(source, source)], []
    path = Path(source).expanduser()
    if path.is_dir():
        below = walk(path)
        found = [(name if alone else str(path / name), str(path / name)) for name in below if is_video_name(name)]
        if not found:
            raise FileNotFoundError(f"{source} holds no file with the suffix of a video ({' '.join(VIDEO_SUFFIXES)}).")
        return found, [str(path / name) for name in below if not is_video_name(name)]
    if path.exists():
        return [(source, str(path))], []
    matches = sorted(glob.glob(str(path), recursive=True))
    if not matches:
        raise FileNotFoundError(f"{source} does not exist.")
    inside = [os.path.join(match, name) for match in matches if os.path.isdir(match) for name in walk(Path(match))]
    listed = [match for match in matches if not os.path.isdir(match)] + inside
    found = [(file, file) for file in listed if is_video_name(file)]
    if not found:
        raise FileNotFoundError(f"{source} fits no file with the suffix of a video ({' '.join(VIDEO_SUFFIXES)}).")
    return found, [file for file in listed if not is_video_name(file)]


def some_of(names: Sequence[str], what: str, most: int = 3) -> str:
    """How many names there are, and the first of them: "5 files (a, b, c, …)"."""
    plural = what if len(names) == 1 else what + ("es" if what.endswith("s") else "s")
    return f"{len(names)} {plural} ({', '.join(names[:most])}{', …' if len(names) > most else ''})"


def is_url(source: str) -> bool:
    """Whether a source is a URL rather than a path."""
    return _URL.match(source) is not None


def is_live(source: str) -> bool:
    """Whether a source is live by its nature; an http address is that of a file unless it is said to be live."""
    return source == STDIN or source.startswith(RTSP) or DEVICE.fullmatch(source) is not None


def is_video_name(name: str) -> bool:
    """Whether a file name ends as those of videos do."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def walk(folder: Path) -> list[str]:
    """Return all files below a folder, links followed, as sorted paths relative to it; hidden ones are left out."""
    files: list[str] = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        files += [prefix + name for name in names if not name.startswith(".")]
    return sorted(files)


__all__ = [
    "BENCHMARKS",
    "DEVICE",
    "RTSP",
    "STDIN",
    "VIDEO_SUFFIXES",
    "Videos",
    "find_videos",
    "is_live",
    "is_url",
    "is_video_name",
    "some_of",
    "walk",
]
