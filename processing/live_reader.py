"""A live source → its windows, cut in a thread that keeps up with the stream and holds no more than the next window.

The thread reads, decodes and resizes. It leaves the newest window that is complete in a mailbox, from which the thread
of the model takes it: what nobody took in time is replaced, not queued.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import av

from .live_source import ClosedError, LiveSource
from .video_file import Clock, Picture, VideoFile, is_flush
from .video_source import VideoDecodeError, reason
from .windows import Window, WindowCutter, WindowReader

MEMORY = 60.0  # seconds for which it is remembered how punctual frames can be
NOTHING_WAITS = 0.25  # seconds: a stream that is waited for so long within one has nothing queued
MAX_HELD = 4096  # frames of a window: some 250 MB at 224 pixels and 4:3, 1.1 GB at 16:9
LONGEST_WAIT = 30.0  # seconds between attempts to connect
BLIND = 600  # packets that are skipped at most until a key picture comes


class TooLongError(VideoDecodeError):
    """A window has more frames than can be held."""


class StreamEvent(NamedTuple):
    """Something that happened to a stream.

    Attributes:
        time: When, in seconds since 1970.
        kind: "stall", nothing came for a while; "resume", it comes again; "cut", the connection broke off; "segment",
            a new segment begins; "short", a window had too few frames; "end".
        message: A sentence.
    """

    time: float
    kind: str
    message: str


class LiveWindow(NamedTuple):
    """A window of a live stream, sampled.

    Attributes:
        window: Its frames; times in seconds since the stream began, by its own clock within a segment.
        segment: Counts the segments: stretches without a cut, a jump of the clock or another size of pictures.
        is_last: Whether the segment ends in it.
        num_frames: How many frames it has.
        time: When it was complete, in seconds since 1970.
    """

    window: Window
    segment: int
    is_last: bool
    num_frames: int
    time: float


@dataclass
class StreamCounts:
    """What happened to the frames of a stream so far.

    Attributes:
        frames: Frames that were decoded.
        dropped_frames: Frames and packets left out because they came too late.
        skipped_windows: Complete windows that were left out because the model was busy with an earlier one, or that
            had fewer frames than it needs.
        damaged_packets: Packets that could not be decoded.
        connections: How often it was connected to.
    """

    frames: int = 0
    dropped_frames: int = 0
    skipped_windows: int = 0
    damaged_packets: int = 0
    connections: int = 0


# ---------------------------------------------------------------------------------------------------------- how late


class Pace:
    """How a stream's clock runs beside this machine's: which frames are late, and whether it can wait.

    A frame is late by how much later it came, by the clock of the stream, than the most punctual one of the last
    minute, or since the stream was waited for: neither the time that a connection takes, nor a pause of the stream,
    nor clocks that drift apart make a frame late, but a reader that is too slow does.

    Args:
        max_delay: Seconds by which a frame may be late.
        now: A clock.
    """

    def __init__(self, max_delay: float, now: Callable[[], float] = time.monotonic) -> None:
        self.max_delay, self.now = max_delay, now
        self.begin()

    def begin(self) -> None:
        """A new connection, or a new clock of the stream."""
        self._begun, self._waited, self._is_late = self.now(), 0.0, False
        self._first: float | None = None
        self._last = 0.0
        self._lows: deque[tuple[float, float]] = deque()  # (time, lag), both rising: the first is the least

    def has_caught_up(self) -> None:
        """Nothing is queued: whatever comes next is as punctual as it can be."""
        self._lows.clear()

    def delay(self, seconds: float) -> float:
        """By how much a frame of this time would be late now; one ahead of all others is not."""
        while self._lows and self._lows[0][0] < self.now() - MEMORY:
            self._lows.popleft()
        return self._lag(seconds) - self._lows[0][1] if self._lows else 0.0

    def is_late(self, seconds: float) -> bool:
        """Take note of a frame that came now; whether it is too late. Once one is, the others must be better."""
        now, lag = self.now(), self._lag(seconds)
        while self._lows and self._lows[-1][1] >= lag:
            self._lows.pop()
        self._lows.append((now, lag))
        self._first = seconds if self._first is None else self._first
        self._last = seconds
        self._is_late = self.delay(seconds) > (self.max_delay / 2 if self._is_late else self.max_delay)
        return self._is_late

    def can_wait(self) -> bool:
        """Whether it is not behind this machine's clock by more than `max_delay`; a file in a pipe is far ahead."""
        return self._first is not None and self._last - self._first + self.max_delay > self.now() - self._begun

    def wait(self, seconds: float) -> None:
        """Take note of a time during which the stream was made to wait: nothing is late by that."""
        self._waited += seconds

    def _lag(self, seconds: float) -> float:
        return self.now() - self._waited - seconds


# --------------------------------------------------------------------------------------------------------- the mailbox


class Mailbox:
    """What the reading thread leaves for the other one: the newest window, maybe the end of a segment, and events."""

    KEPT_EVENTS = 64

    def __init__(self) -> None:
        self.counts = StreamCounts()
        self._items: deque[LiveWindow | StreamEvent] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: Exception | None = None

    def leave(self, window: LiveWindow, pace: Pace) -> None:
        """Leave a window, in place of an earlier one; first wait as long as the stream is not too far behind."""
        with self._changed:
            begun = time.monotonic()
            while self._waiting(window.is_last) is not None and not self._ended and pace.can_wait():
                self._changed.wait(0.05)
            pace.wait(time.monotonic() - begun)
            if (earlier := self._waiting(window.is_last)) is not None:
                self._items.remove(earlier)
                self.counts.skipped_windows += 1
            self._items.append(window)
            self._changed.notify_all()

    def _waiting(self, is_last: bool) -> LiveWindow | None:
        windows = (each for each in self._items if isinstance(each, LiveWindow))
        return next((each for each in windows if each.is_last == is_last), None)

    def say(self, kind: str, message: str) -> None:
        """Leave an event; of very many, the last."""
        with self._changed:
            if sum(isinstance(each, StreamEvent) for each in self._items) >= self.KEPT_EVENTS:
                self._items.remove(next(each for each in self._items if isinstance(each, StreamEvent)))
            self._items.append(StreamEvent(time.time(), kind, message))
            self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """Nothing follows; what was left is still there."""
        with self._changed:
            self._ended, self._error = True, self._error or error
            self._changed.notify_all()

    def take(self, seconds: float) -> LiveWindow | StreamEvent | None:
        """What is there next, in order; None if nothing comes for so long.

        Raises:
            StopIteration: After the end.
            Exception: What the stream ended with.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended, seconds)
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._ended:
                raise self._error or StopIteration
            return None


# ---------------------------------------------------------------------------------------------------------- the thread


class LiveReader:
    """Reads a live source in a thread of its own, and connects again if the connection breaks off.

    Args:
        source: What to read.
        windows: How windows are cut, and what is kept of frames.
        timeout: Seconds without a frame after which the stream has stalled.
        max_delay: Seconds by which a frame may be late.
        retries: Attempts to connect again, in a row, before it gives up; None for any number.

    Attributes:
        mailbox: Where windows and events are left.
        frame_at: When the last frame came, by `time.monotonic`.
        silence: What a stall is, as a part of a sentence.
    """

    def __init__(
        self, source: LiveSource, windows: WindowReader, timeout: float, max_delay: float, retries: int | None
    ) -> None:
        self.source, self.windows, self.timeout, self.retries = source, windows, timeout, retries
        self.mailbox, self.pace, self.frame_at = Mailbox(), Pace(max_delay), time.monotonic()
        self.silence = f"no frame came for {timeout:g} s"
        self._stopped = threading.Event()
        self._begun_at: float | None = None  # when the first frame came
        self._segment, self._origin, self._shown = -1, 0.0, 0.0  # where it begins in the timeline, its last frame
        self._clock: Clock | None = None
        self._cutter = WindowCutter(windows.window, windows.stride)
        self._said_short = False
        # A daemon: a read that waits for a camera must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="live stream", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End the reading: soon, but RTSP and a device that are silent end by the timeout."""
        self._stopped.set()
        self.mailbox.end()
        self.source.interrupt()

    def join(self, seconds: float) -> None:
        """Wait for the thread to be done, for so many seconds at most."""
        self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self._read_and_reconnect()
        except Exception as error:  # else the other thread would wait for ever
            self.mailbox.end(error)
        else:
            self.mailbox.end()

    def _read_and_reconnect(self) -> None:
        counts, failures = self.mailbox.counts, 0
        while not self._stopped.is_set():
            before = counts.frames
            error: Exception | None = None
            try:
                with self.source.open(self.timeout) as video:
                    counts.connections += 1
                    self._read(video)
            except TooLongError:
                raise
            except ClosedError:
                error = VideoDecodeError(self.silence)
            except (VideoDecodeError, av.FFmpegError, OSError, IndexError) as caught:  # of the network, and of PyAV
                error = caught
                if isinstance(caught, TimeoutError) and counts.frames > before:
                    self.mailbox.say("stall", f"{self.source.name}: {self.silence}.")
            if self._stopped.is_set():
                return
            self._finish_segment()
            failures = failures + 1 if counts.frames == before else 1
            if self._has_ended(error, failures):
                return
            wait = min(LONGEST_WAIT, 2.0 ** (failures - 1))
            why = "it ended" if error is None else self._describe(error)
            self.mailbox.say("cut", f"{self.source.name} broke off ({why}); connecting again in {wait:g} s.")
            self._stopped.wait(wait)

    def _has_ended(self, error: Exception | None, failures: int) -> bool:
        """Whether to read no more.

        Raises:
            VideoDecodeError: If nothing could be read, or it could not be connected to again.
        """
        name, why = self.source.name, "the stream is empty" if error is None else self._describe(error)
        if not self.mailbox.counts.frames:
            kind = type(error) if isinstance(error, VideoDecodeError) else VideoDecodeError
            raise kind(f"{why}." if name in why else f"{name}: no frame can be decoded ({why}).")
        if not self.source.reconnects:
            if error is not None:
                self.mailbox.say("end", f"{name} breaks off ({why}).")
            return True
        if self.retries is None or failures <= self.retries:
            return False
        if error is None:
            return True
        attempts = f"after {self.retries} attempts to connect again" if self.retries else "with no attempt left"
        raise VideoDecodeError(f"{name} broke off ({why}), {attempts}.")

    def _describe(self, error: Exception) -> str:
        """An error as the rest of a sentence."""
        text = str(error) if isinstance(error, VideoDecodeError) else reason(error)
        return self.source.hide_password(" ".join(text.split())).removesuffix(".")

    # ------------------------------------------------------------------------------------------- of one connection

    def _read(self, video: VideoFile) -> None:
        """Read one connection to its end."""
        self.pace.begin()
        began = time.monotonic()
        last: tuple[float, float] | None = None  # of the last frame, the stream's clock and this machine's
        self._clock, self._restarts, self._size = video.clock, 0, (0, 0)
        base = 0.0  # the time of the segment's first frame
        for frame in self._decode(video):
            if self._stopped.is_set():
                return
            now = self.frame_at = time.monotonic()
            seconds = now - began if video.clock.untimed else video.clock.tick(frame)
            is_other_size = self._size != (frame.width, frame.height)
            why = self._why_new(seconds, now, last)
            if why or is_other_size:
                self._finish_segment(None if why else seconds - base)
                if why:
                    self._origin = self._place_in_timeline(now)
                    self.pace.begin()
                else:
                    why = "the pictures have {} × {} pixels instead of {} × {}".format(
                        frame.width, frame.height, *self._size
                    )
                    self._origin += seconds - base
                self._begin_segment(why)
                base, self._size = seconds, (frame.width, frame.height)
                video.picture = Picture(frame, video.stream.sample_aspect_ratio)
            last = seconds, now
            self._take(video, frame, seconds, round(seconds - base, 6))

    def _why_new(self, seconds: float, now: float, last: tuple[float, float] | None) -> str | None:
        """Why a frame cannot follow the last one, if it can't; times by the stream's clock and this machine's."""
        if last is None:
            return "connected again" if self._segment >= 0 else "the first"
        if self._clock.num_restarts > self._restarts and seconds > self._clock.restarts[1]:
            self._restarts = self._clock.num_restarts
            return "the clock of the stream jumped"
        if seconds - last[0] > Clock.JUMP + now - last[1]:
            return f"the clock of the stream jumped ahead by {seconds - last[0]:.0f} s"
        return None

    def _place_in_timeline(self, now: float) -> float:
        """Where a segment begins that begins now: by this machine's clock, and never before what was shown."""
        if self._begun_at is None:
            self._begun_at = now
            return 0.0
        return round(max(now - self._begun_at, self._origin + self._shown + self._step), 6)

    def _begin_segment(self, why: str) -> None:
        self._segment, self._shown = self._segment + 1, 0.0
        self._cutter = WindowCutter(self.windows.window, self.windows.stride)
        if self._segment:
            at = f"{self._origin:.2f} s"
            self.mailbox.say("segment", f"{self.source.name}: segment {self._segment} begins at {at} ({why}).")

    def _finish_segment(self, end: float | None = None) -> None:
        """Leave the window in which the segment ends: with its last frame, or where the next one begins."""
        if self._segment >= 0:
            for window in self._cutter.finish(self._shown + self._step if end is None else end):
                self._leave(window, is_last=True)
            self._cutter = WindowCutter(self.windows.window, self.windows.stride)

    @property
    def _step(self) -> float:
        """Seconds from one frame to the next."""
        return 1 / (self._clock.fps or 25.0) if self._clock is not None else 0.0

    def _decode(self, video: VideoFile) -> Iterator[av.VideoFrame]:
        """The frames of a connection, those that can be decoded; where it is far behind, from the next key picture."""
        decoder, counts, skipped = video.stream.codec_context, self.mailbox.counts, 0
        began = asked = time.monotonic()
        waited = 0.0  # within a second
        for packet in video.packets():
            if self._stopped.is_set():
                return
            now = time.monotonic()
            if now - began > 1:
                began, waited = asked, 0.0
            waited += now - asked
            if waited > NOTHING_WAITS:
                self.pace.has_caught_up()
            if not is_flush(packet) and not video.clock.untimed:
                behind = self.pace.delay(video.clock.seconds(packet)) > 2 * self.pace.max_delay
                if behind or (skipped and not packet.is_keyframe and skipped < BLIND):
                    skipped += 1
                    counts.dropped_frames += 1
                    asked = time.monotonic()
                    continue
                if skipped:
                    decoder.flush_buffers()
                    skipped = 0
            try:
                yield from packet.decode()
            except av.FFmpegError:  # lost data, or the middle of a group of pictures
                counts.damaged_packets += 1
            asked = time.monotonic()

    def _take(self, video: VideoFile, frame: av.VideoFrame, seconds: float, shown: float) -> None:
        """Take a frame that is shown so many seconds after the segment's first one."""
        counts = self.mailbox.counts
        counts.frames += 1
        for window in self._cutter.advance(shown):
            self._leave(window)
        self._shown = shown
        if not video.clock.untimed and self.pace.is_late(seconds):
            counts.dropped_frames += 1
            return
        if not self._cutter.holds(shown):
            return
        if len(self._cutter.held) >= MAX_HELD:
            raise TooLongError(
                f"{self.source.name}: a window of {self.windows.window:g} s would have more than {MAX_HELD} frames: "
                "its time stamps stand still, or the window is too long."
            )
        self._cutter.add(self.windows.hold(counts.frames, shown, video.image(frame), video.pixel_aspect))

    def _leave(self, window: Window, is_last: bool = False) -> None:
        """Leave a complete window for the model."""
        try:
            sampled = self.windows.sample(window, self.source.name)
        except ValueError as error:  # fewer frames than the model sees, and `short_video` is "error"
            self.mailbox.counts.skipped_windows += 1
            if not self._said_short:
                self.mailbox.say("short", f"{' '.join(str(error).split())} Such windows are left out.")
            self._said_short = True
            return
        start, end = round(self._origin + window.start, 6), round(self._origin + window.end, 6)
        placed = sampled._replace(start=start, end=end)
        self.mailbox.leave(LiveWindow(placed, self._segment, is_last, len(window.frames), time.time()), self.pace)


__all__ = ["LiveReader", "LiveWindow", "Mailbox", "Pace", "StreamCounts", "StreamEvent", "TooLongError"]
