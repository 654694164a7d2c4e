"""Answers for a live stream, window by window, as they are complete.

>>> classify = pipeline("zero-shot-video-classification", model="org/mote-vitb16")
>>> with classify_stream(classify, "rtsp://camera.local/1", ["a person falling", "a person walking"]) as answers:
...     for answer in answers:
...         print(answer["time"], answer["scores"][0])
"""

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from .answers import ANSWER_OPTIONS, AnswerOptions
from .live_reader import LiveReader, LiveWindow, StreamCounts, StreamEvent
from .live_source import LiveSource
from .long_video import prepare_windows
from .pipeline_mote import ZeroShotVideoClassificationPipeline
from .windows import WINDOW_OPTIONS, WindowEncoder

logger = logging.getLogger(__name__)

OPTIONS = ("prompts", "examples", *ANSWER_OPTIONS, *(name for name in WINDOW_OPTIONS if name != "strict"))
LOOK = 0.5  # seconds from one look whether the stream has stalled to the next, at most


def classify_stream(
    classify: ZeroShotVideoClassificationPipeline,
    source: Any,
    candidate_labels: Iterable[str] | str | None,
    *,
    window: float = 4.0,
    stride: float = 1.0,
    timeout: float = 10.0,
    max_delay: float = 2.0,
    retries: int | None = None,
    on_event: Callable[[StreamEvent], None] | None = None,
    **options: Any,
) -> "StreamAnswers":
    """Score a live stream against labels, window by window, and keep up with it.

    Windows are cut by the stream's own time stamps, or by when frames come if it has none, as `classify_windows` cuts
    a file: they start at 0, `stride`, 2 · `stride`, ... seconds, and score as the pipeline scores the same frames. A
    cut, a jump of the clock and another size of pictures begin a new segment, and no window reaches into the next one.

    A thread reads and decodes. It holds the resized frames of the next window and no more, so memory does not grow:
    frames that come more than `max_delay` late are dropped, and where the model is so slow that the stream is that far
    behind, a window replaces the one that waits. Both are counted. A source that comes faster than it plays, such as
    a file in a pipe, is made to wait.

    Args:
        classify: The zero-shot pipeline.
        source: `rtsp://…` or `rtsps://…` (over TCP), `http(s)://…` of a stream that goes on, `/dev/video0` (Linux),
            `-` for the standard input, the path of a named pipe, or a binary file object that is read as it comes.
        candidate_labels: Names of the classes, a list or a comma-separated string; None for those that the pipeline
            was made with.
        window: Length of a window, in seconds. All of its frames are held, at most 4,096.
        stride: From the start of one window to that of the next, in seconds.
        timeout: Seconds without a frame after which the stream has stalled: that is said, and it is connected to
            again, unless it is a pipe.
        max_delay: Seconds by which a frame may come later than the others did.
        retries: Attempts in a row to connect again, after 1, 2, 4, ... 30 s; None for any number, 0 for none.
        on_event: Called with what happens to the stream, in the thread that asks for answers; by default, it is
            logged as a warning.
        **options: `prompts`, `examples`, the options of an answer (`top_k`, `unknown`, `threshold`, ...), and
            `num_frames`, `num_clips`, `num_crops`, `sampling`, `short_video` and `square_pixels`, as the pipeline
            takes them; its own by default.

    Returns:
        An iterator over the answers that ends when the stream does, to be closed: a context.

    Raises:
        ValueError: For bad labels and options.
        VideoDecodeError: If the source is none; from the iterator, if nothing can be read of it, or, with `retries`,
            if it can't be connected to again.
        FileNotFoundError: If there is nothing at a path (a `VideoDecodeError` too).
        TypeError: If `source` is none of the above kinds.
    """
    for name, value in (("timeout", timeout), ("max_delay", max_delay)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value!r}: pass a number of seconds above 0")
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 0):
        raise ValueError(f"retries is {retries!r}: pass a whole number from 0 on, or None for any number")
    windows, encoder, forward, answering = prepare_windows(
        classify, candidate_labels, options, OPTIONS, "classify_stream", window, stride
    )
    given = {name: forward[name] for name in ("candidate_labels", "prompts") if name in forward}
    classify.class_features(**given)  # before the first window
    reader = LiveReader(LiveSource(source), windows, timeout, max_delay, retries)
    return StreamAnswers(classify, reader, encoder, forward, answering, on_event or _log)


def _log(event: StreamEvent) -> None:
    logger.warning(event.message)


class StreamAnswers(Iterator[dict[str, Any]]):
    """The answers of a live stream, as they are ready; see `classify_stream`, which makes one.

    An answer is `{"time", "start", "end", "segment", "frames", "scores", "delay", "dropped_frames",
    "skipped_windows"}`: `time` is when the window was complete, a `datetime` of this machine's clock and time zone;
    `start` and `end` are seconds since the first frame, which never go back; `segment` counts the unbroken stretches;
    `frames` is how many the window has; `scores` are rows `{"score", "label", "similarity"}`, best first, as the
    pipeline gives them; `delay` is how many seconds after `time` they were known; the last two say what was left out
    since the answer before.

    Attributes:
        counts: What happened to the frames so far.
    """

    def __init__(
        self,
        classify: ZeroShotVideoClassificationPipeline,
        reader: LiveReader,
        encoder: WindowEncoder,
        forward: Mapping[str, Any],
        answering: AnswerOptions,
        on_event: Callable[[StreamEvent], None],
    ) -> None:
        self._classify, self._reader, self._encoder = classify, reader, encoder
        self._forward, self._answering, self._on_event = forward, answering, on_event
        self._said = (0, 0)  # dropped frames and skipped windows that answers have told of
        self._stalled_at: float | None = None  # the time of the last frame before
        self._interrupted_at = 0.0  # when the source was last broken off for it
        self._stop = weakref.finalize(self, reader.stop)  # also if nobody closes it
        reader.start()

    def __iter__(self) -> "StreamAnswers":
        return self

    def __enter__(self) -> "StreamAnswers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def counts(self) -> StreamCounts:
        """What happened to the frames so far."""
        return self._reader.mailbox.counts

    def close(self) -> None:
        """End the reading; a thread that waits for a camera ends by the timeout."""
        self._stop()
        self._reader.join(1.0)

    def __next__(self) -> dict[str, Any]:
        while True:
            try:
                item = self._reader.mailbox.take(min(LOOK, self._reader.timeout / 2))
            except BaseException:
                self._stop()
                raise
            has_stalled = isinstance(item, StreamEvent) and item.kind == "stall"
            self._watch(item is None, has_stalled)
            if has_stalled:
                continue
            if isinstance(item, StreamEvent):
                self._on_event(item)
            elif item is not None:
                return self._answer(item)

    def _watch(self, is_idle: bool, has_stalled: bool) -> None:
        """Say once that nothing comes any more, whoever saw it first, and that it comes again.

        Windows that wait say nothing of either.
        """
        last, now = self._reader.frame_at, time.monotonic()
        if self._stalled_at is not None and last > self._stalled_at:
            seconds, self._stalled_at = last - self._stalled_at, None
            self._tell("resume", f"frames come again, after {seconds:.1f} s")
        elif has_stalled or (is_idle and now - max(last, self._interrupted_at) > self._reader.timeout):
            if self._stalled_at is None:
                self._stalled_at = last
                self._tell("stall", self._reader.silence)
            if is_idle and self._reader.source.reconnects:  # each time: what answers may send no frame either
                self._interrupted_at = now
                self._reader.source.interrupt()

    def _tell(self, kind: str, message: str) -> None:
        self._on_event(StreamEvent(time.time(), kind, f"{self._reader.source.name}: {message}."))

    def _answer(self, item: LiveWindow) -> dict[str, Any]:
        packed = self._reader.windows.pack([item.window])
        inputs = {"frame_embeds": self._encoder(packed)}
        (rows,) = self._classify.rank(inputs, self._answering, **self._forward)
        said, self._said = self._said, (self.counts.dropped_frames, self.counts.skipped_windows)
        return {
            "time": datetime.fromtimestamp(item.time).astimezone(),
            "start": item.window.start,
            "end": item.window.end,
            "segment": item.segment,
            "frames": item.num_frames,
            "scores": rows,
            "delay": round(time.time() - item.time, 3),
            "dropped_frames": self._said[0] - said[0],
            "skipped_windows": self._said[1] - said[1],
        }


__all__ = ["StreamAnswers", "classify_stream"]
