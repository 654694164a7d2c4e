"""What a visitor of the web app, and a client of its HTTP interface, may ask for: every limit is here."""

from dataclasses import dataclass, field

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


__all__ = ["WINDOW_SECONDS", "Limits"]
