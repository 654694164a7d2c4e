"""Read every video of a data set from beginning to end, as training will, and tell what is wrong with it.

>>> config = video_builder("my_clips", allow_empty_classes=True).config
>>> for finding in check_data(config, num_frames=8, num_workers=4):
...     print(finding.path, finding.problem, finding.detail)
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

from .builders import ClipListConfig
from .reading import ProcessDied, describe_death, describe_error, read_in_processes
from .sources import Videos
from .video_decoding import VideoNotFoundError, decode_video

# What a warning of the decoder says, and what that is called.
KINDS = {"breaks off": "broken off", "damaged frames": "damaged"}
LEFT_OUT = ("left out", "empty folder")  # nothing is wrong with these: no clip was looked for there


class Problem(NamedTuple):
    """What is wrong with a video, in two words and in a sentence, and its decodable frames if they are known."""

    problem: str
    detail: str
    num_frames: int | None = None


class Check(NamedTuple):
    """A video to check: the file, frames wanted, and start and end in seconds of the part that counts."""

    file: str
    num_frames: int
    start: float | None = None
    end: float | None = None


class Finding(NamedTuple):
    """A line of the report: a clip, folder or class of the data set, and what is wrong with it."""

    path: str
    split: str
    label: str
    problem: str
    num_frames: int | None
    detail: str


def check_video(check: Check) -> Problem | None:
    """Decode one video from beginning to end.

    Returns:
        What is wrong with it, or None.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            _, metadata = decode_video(check.file, [0], start=check.start, end=check.end)
        except VideoNotFoundError as error:
            return Problem("missing", str(error))
        except Exception as error:  # whatever escapes a decoder is this file's
            return Problem("unreadable", describe_error(error, check.file))
    num_frames = metadata.total_num_frames
    messages = [" ".join(str(warning.message).split()) for warning in caught]
    for sign, kind in KINDS.items():
        if any(sign in message for message in messages):
            return Problem(kind, " ".join(messages), num_frames)
    if num_frames < check.num_frames:
        detail = f"{check.file} has {num_frames} frames, {check.num_frames} are asked."
        return Problem("too short", detail, num_frames)
    return Problem("mended", " ".join(messages), num_frames) if messages else None


def check_data(config: ClipListConfig, num_frames: int = 8, num_workers: int = 1) -> Iterator[Finding | None]:
    """Check every clip of a data set.

    Args:
        config: Of its builder, made with `allow_empty_classes=True` to list the classes that lack clips.
        num_frames: A clip with fewer frames is too short.
        num_workers: Processes; a video that kills its process is found out, and the others go on.

    Yields:
        First what the data set leaves out and the classes without a clip; then, for each clip in turn, what is wrong
        with it, or None.
    """
    for path in config.left_out:
        yield Finding(path, "", "", "left out", None, "It has no suffix of a video, or lies beside the classes.")
    for path in config.empty_folders:
        yield Finding(path, "", "", "empty folder", None, "It holds no file with the suffix of a video: no class.")
    for split, listed in config.clips.items():
        for name in config.empty_classes(listed):
            yield Finding("", split, name, "empty class", None, f"Split {split} has no clip of this class.")
    clips = [(split, clip) for split, listed in config.clips.items() for clip in listed]
    checks = [Check(str(config.root / clip.path), num_frames, clip.start, clip.end) for _, clip in clips]
    for (split, clip), problem in zip(clips, _check_all(checks, num_workers), strict=True):
        name = config.label_set.classes[clip.label]
        yield problem and Finding(clip.path, split, name, problem.problem, problem.num_frames, problem.detail)


def check_files(videos: Videos, num_frames: int = 8, num_workers: int = 1) -> Iterator[Finding | None]:
    """Check videos that belong to no data set, as [`check_data`] does those of one.

    Args:
        videos: See [`find_videos`].
        num_frames: A video with fewer frames is too short.
        num_workers: Processes.

    Yields:
        What is left out, then for each video in turn what is wrong with it, or None.
    """
    for path in videos.left_out:
        yield Finding(path, "", "", "left out", None, "It has no suffix of a video.")
    checks = [Check(file, num_frames) for file in videos.files]
    for name, problem in zip(videos.names, _check_all(checks, num_workers), strict=True):
        yield problem and Finding(name, "", "", problem.problem, problem.num_frames, problem.detail)


def _check_all(checks: list[Check], num_workers: int) -> Iterator[Problem | None]:
    """What is wrong with each video, in order, also if one kills the process that reads it."""
    for index, problem in read_in_processes(check_video, checks, num_workers):
        if isinstance(problem, ProcessDied):
            problem = Problem("unreadable", describe_death(problem, checks[index].file))
        yield problem


__all__ = ["LEFT_OUT", "Check", "Finding", "Problem", "check_data", "check_files", "check_video"]
