"""What a person names, files, folders, globs and URLs, to the videos that are meant."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".wmv", ".flv", ".3gp", ".ts")
URL_SCHEMES = ("http://", "https://")


class Videos(NamedTuple):
    """Videos to read.

    Attributes:
        names: what results call them: as they were named, or below the folder that was named.
        files: paths and URLs, in the same order.
        left_out: files in folders that have no suffix of a video.
    """

    names: list[str]
    files: list[str]
    left_out: list[str]


def find_videos(sources: Sequence[str]) -> Videos:
    """List the videos of files, folders (with the folders in them), globs and URLs, each once, in order.

    A file that is named is taken whatever its suffix. Of a folder, files without the suffix of a video are left out.

    Args:
        sources: paths, globs such as `clips/*.mp4`, and http(s) URLs.

    Raises:
        FileNotFoundError: if a source is not there, or a folder or glob holds no video.
    """
    names: list[str] = []
    files: list[str] = []
    left_out: list[str] = []
    seen: set[str] = set()
    for source in sources:
        path = Path(source)
        if source.startswith(URL_SCHEMES):
            found = [(source, source)]
        elif path.is_dir():
            below = walk(path)
            videos = [name for name in below if is_video_name(name)]
            left_out += [str(path / name) for name in below if not is_video_name(name)]
            if not videos:
                raise FileNotFoundError(
                    f"{source} holds no file with the suffix of a video ({' '.join(VIDEO_SUFFIXES)})."
                )
            found = [(name if len(sources) == 1 else str(path / name), str(path / name)) for name in videos]
        elif path.exists():
            found = [(source, source)]
        elif matches := sorted(each for each in glob.glob(source, recursive=True) if not os.path.isdir(each)):
            found = [(each, each) for each in matches]
        else:
            raise FileNotFoundError(f"{source} does not exist.")
        for name, file in found:
            if file not in seen:
                seen.add(file)
                names.append(name)
                files.append(file)
    return Videos(names, files, left_out)


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


__all__ = ["VIDEO_SUFFIXES", "Videos", "find_videos", "is_video_name", "walk"]
