"""What a stranger may ask for, of the app, over HTTP or of an Inference Endpoint: every limit, and its check."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .class_names import parse_candidates, parse_labels

if TYPE_CHECKING:
    from .video_size import VideoSize

DESCRIBED = re.compile(r"(\S.*?)\s*:\s+(\S.*)")  # name: description
WINDOW_SECONDS = 4.0  # of a window, if the checkpoint does not say how long its training clips were


@dataclass(frozen=True)
class Limits:
    """More than these is refused in one sentence.

    Attributes:
        max_seconds: Length of a video.
        max_megabytes: Size of a file.
        max_base64_megabytes: Size of a request that holds a file as text, which is read into memory.
        max_gigapixels: Pixels of all its frames, in billions; a slow machine decodes a fifth of one per second.
        max_labels: Labels, and texts that describe labels, at a time.
        max_letters: Letters of a label.
        max_text_letters: Letters of a text that describes a label.
        max_examples: Example videos that show labels, at a time.
        max_working_seconds: Time for reading and scoring a video, or for a request to arrive; then the work stops.
        max_waiting: HTTP requests that wait for their turn; more are told to come again.
    """

    max_seconds: float = field(default=300.0, metadata={"help": "longer videos are refused"})
    max_megabytes: float = field(default=500.0, metadata={"help": "larger files are refused"})
    max_base64_megabytes: float = field(default=32.0, metadata={"help": "larger JSON requests are refused"})
    max_gigapixels: float = field(default=20.0, metadata={"help": "videos of more billion pixels are refused"})
    max_labels: int = field(default=1000, metadata={"help": "more labels are refused"})
    max_letters: int = field(default=200, metadata={"help": "longer labels are refused"})
    max_text_letters: int = field(default=1000, metadata={"help": "longer descriptions of labels are refused"})
    max_examples: int = field(default=64, metadata={"help": "more example videos are refused"})
    max_working_seconds: float = field(default=120.0, metadata={"help": "reading and scoring ends after so much work"})
    max_waiting: int = field(default=32, metadata={"help": "more HTTP requests that wait are told to come again"})


class RefusedError(ValueError):
    """What a stranger asked for can't be done; the message is one sentence for them."""


def candidates_of(labels: Any, limits: Limits) -> dict[str, tuple[str, ...]]:
    """Labels in any of the forms that a request takes.

    Args:
        labels: A list of names, a text as `read_candidates` takes it, or {name: text or texts that describe it}.
        limits: What is refused.

    Returns:
        {name: texts that describe it}, none for a name that speaks for itself.

    Raises:
        RefusedError: For anything else, and as `read_candidates` does.
    """
    if labels is None or isinstance(labels, str):
        return read_candidates(labels, limits)
    if isinstance(labels, Mapping):
        return check_candidates(list(labels), labels, limits)
    if isinstance(labels, list):
        return check_candidates(labels, {}, limits)
    raise RefusedError("labels must be a list of names, a text, or an object of names and descriptions.")


def read_candidates(text: str | None, limits: Limits) -> dict[str, tuple[str, ...]]:
    """Labels as they are typed: with commas or line breaks between them, or a line `name: description`.

    Args:
        text: What was typed; blank labels, which typing leaves behind, are dropped. Lines of one name add up.
        limits: What is refused.

    Returns:
        {name: texts that describe it}, none for a name that speaks for itself.

    Raises:
        RefusedError: For no label, a repeated one, too many, too long ones.
    """
    names: list[str] = []
    texts: dict[str, list[str]] = {}
    for line in (text or "").splitlines():
        if described := DESCRIBED.fullmatch(line.strip()):
            name = described[1]
            names += [] if name in texts else [name]
            texts.setdefault(name, []).append(described[2])
        else:
            names += [name for name in line.split(",") if name.strip()]
    if not names:
        raise RefusedError("No label was given: type one or more, separated by commas or new lines.")
    return check_candidates(names, texts, limits)


def check_candidates(names: Sequence[Any], texts: Mapping[str, Any], limits: Limits) -> dict[str, tuple[str, ...]]:
    """Check names of labels, and the texts that describe some of them.

    Args:
        names: Of the labels.
        texts: {name: texts that describe it}, of some.
        limits: What is refused.

    Returns:
        {name: texts that describe it}, none for a name that speaks for itself.

    Raises:
        RefusedError: For no label, a repeated one, too many, too long ones.
    """
    if len(names) > limits.max_labels:
        raise RefusedError(f"{len(names)} labels were given: this app takes up to {limits.max_labels}.")
    try:
        labels = parse_labels(list(names), limits.max_letters)
        # A label has no blanks around it; the name that was given may.
        given = {label: texts.get(name) for name, label in zip(names, labels, strict=True)}
        candidates = parse_candidates(given, limits.max_letters)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    described = [text for each in candidates.values() for text in each]
    if len(described) > limits.max_labels:
        raise RefusedError(f"{len(described)} descriptions were given: this app takes up to {limits.max_labels}.")
    for name, each in candidates.items():
        if any(len(text) > limits.max_text_letters for text in each):
            most = limits.max_text_letters
            raise RefusedError(f"A description of {name!r} has more than {most} letters, the most that are taken.")
    return candidates


def check_megabytes(num_bytes: int, limits: Limits) -> None:
    """Refuse a file that is too large."""
    if num_bytes > limits.max_megabytes * 1e6:
        size = f"{num_bytes / 1e6:.0f} MB"
        raise RefusedError(f"The file has {size}: this app takes up to {limits.max_megabytes:g} MB.")


def check_seconds(seconds: float, limits: Limits) -> None:
    """Refuse a video that is too long."""
    if seconds > limits.max_seconds:
        most = f"{limits.max_seconds:g}"
        raise RefusedError(f"The video is {seconds:.1f} s long: this app takes up to {most} s, so cut it first.")


def check_size(size: "VideoSize", limits: Limits) -> None:
    """Refuse a video that is too long, or too much to decode."""
    check_seconds(size.seconds, limits)
    if size.gigapixels > limits.max_gigapixels:
        raise RefusedError(
            f"The video has {size.num_frames} frames of {size.width} × {size.height} pixels: this app takes up "
            f"to {limits.max_gigapixels:g} billion pixels, so make it smaller or cut it first."
        )


def decode_base64(text: str) -> bytes:
    """The bytes of a file that was sent as base64, as a `data:` URL too.

    Raises:
        RefusedError: If it is no base64.
    """
    try:
        return base64.b64decode(text.partition(",")[2] if text[:5] == "data:" else text, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise RefusedError(f"base64 can't be read ({error}).") from error


__all__ = [
    "WINDOW_SECONDS",
    "Limits",
    "RefusedError",
    "candidates_of",
    "check_candidates",
    "check_megabytes",
    "check_seconds",
    "check_size",
    "decode_base64",
    "read_candidates",
]
