"""What a visitor of the web app may ask for."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """More than these is refused in one sentence.

    Attributes:
        max_seconds: Length of a video.
        max_megabytes: Size of a file.
        max_gigapixels: Pixels of all its frames, in billions; a slow machine decodes a fifth of one per second.
        max_labels: Labels at a time.
        max_letters: Letters of a label.
        max_working_seconds: Time for a timeline, which ends there.
    """

    max_seconds: float = field(default=300.0, metadata={"help": "longer videos are refused"})
    max_megabytes: float = field(default=500.0, metadata={"help": "larger files are refused"})
    max_gigapixels: float = field(default=20.0, metadata={"help": "videos of more billion pixels are refused"})
    max_labels: int = field(default=200, metadata={"help": "more labels are refused"})
    max_letters: int = field(default=200, metadata={"help": "longer labels are refused"})
    max_working_seconds: float = field(default=120.0, metadata={"help": "a timeline ends after so much work"})


__all__ = ["Limits"]
