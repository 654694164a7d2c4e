"""An open video, read in order: its packets and frames, when they are shown, how they look, and whether all is there.

>>> with open_video(Source("clip.mp4")) as video:
...     for seconds, frame in video.frames():
...         image = video.image(frame)  # uint8 [h, w, 3]
...     video.report(strict=False)
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import av
import numpy as np
from av.format import Flags as FormatFlags
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from .video_source import Reader, Source, VideoDecodeError, reason

MAX_PIXELS = int(os.environ.get("MOTE_MAX_PIXELS", 8192 * 4352))  # of a frame: the largest of HEVC's and AV1's level 6

# FFmpeg's names of what is opened: files that hold a video themselves. No playlist, no list of files, no network.
CONTAINERS = (
    *("mov", "matroska", "avi", "flv", "mpegts", "mpeg", "asf", "ogg", "rm", "mxf", "nut", "dv", "wtv", "gif", "apng"),
    *("mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "obu", "av1", "ivf", "vc1", "mjpeg", "yuv4mpegpipe"),
    "mpjpeg",  # the pictures of a web camera
)
# What FFmpeg may open by name, only where a user names one as a live source: its demuxer, and the protocols of that.
LIVE_INPUTS = {"rtsp": ("rtsp", "tcp"), "rtsps": ("rtsp", "tcp,tls"), "device": ("v4l2", "none")}
LIVE_PROBE = 1.0  # seconds of a live stream that are looked at before the first frame is given
SOUNDS = ("mp3", "wav", "aac", "flac")  # opened to say that there is no video in them
PICTURES = ("png_pipe", "jpeg_pipe", "bmp_pipe", "webp_pipe", "tiff_pipe", "jpegxl_pipe")
PICTURE_BRANDS = ("avif", "heic", "heix", "heim", "mif1")  # of still pictures in MP4's container

SPC_BT2020_NCL, UNSPECIFIED = 9, 2  # FFmpeg's numbers of colour spaces


@dataclass(frozen=True)
class Clip:
    """The part of a file that counts, in seconds from its start; None for an open end.

    Raises:
        ValueError: If it is no stretch of time.
    """

    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if self.start is not None and not self.start >= 0:
            raise ValueError(f"start must be at least 0 seconds, got {self.start!r}.")
        if self.end is not None and not self.end > (self.start or 0):
            raise ValueError(f"end must be later than start, got start={self.start!r} and end={self.end!r} seconds.")

    def __contains__(self, seconds: float) -> bool:
        return (self.start or 0) <= seconds and not self.is_over(seconds)

    def is_over(self, seconds: float) -> bool:
        return self.end is not None and seconds >= self.end


WHOLE = Clip()


class NamedInput(NamedTuple):
    """What FFmpeg opens itself, as it cannot be read from Python.

    Attributes:
        kind: one of `LIVE_INPUTS`.
        place: the URL of a camera's RTSP stream, or the path of a device.
        timeout: seconds without anything, after which it gives up.
    """

    kind: str
    place: str
    timeout: float


@contextmanager
def open_video(source: Source) -> Iterator["VideoFile"]:
    """The best video stream of a file, closed on leaving, whatever happens.

    Raises:
        VideoDecodeError: If it is no container of those that are read, has no video stream, one of an unknown codec,
            or one of too large pictures.
    """
    with source.reader() as reader, _opened(source.name, reader, partial(_open_container, reader)) as video:
        yield video


@contextmanager
def open_live(name: str, place: Any) -> Iterator["VideoFile"]:
    """The best video stream of a live source, to be read by its packets; closed on leaving.

    Args:
        name: What messages call it.
        place: An object with `read(size)` and nothing else, or a `NamedInput` that a user named: never what a file
            or a server asks for.

    Raises:
        VideoDecodeError: As `open_video`.
    """
    # By itself, FFmpeg would look at up to 90 s of a stream before it gives the first frame.
    options = {"analyzeduration": str(round(1e6 * LIVE_PROBE))}
    is_named = isinstance(place, NamedInput)
    opening = partial(_open_input if is_named else _open_container, place, options)
    with _opened(name, None if is_named else place, opening) as video:
        yield video


@contextmanager
def _opened(name: str, reader: Any, opening: Callable[[], av.container.InputContainer]) -> Iterator["VideoFile"]:
    try:
        container = opening()
    except av.ArgumentError as error:
        raise VideoDecodeError(
            f"{name} cannot be opened as a video (it is no container of video that is read here)."
        ) from error
    except Exception as error:  # of FFmpeg, or of the file object
        raise VideoDecodeError(f"{name} cannot be opened as a video ({reason(error)}).") from error
    with container:
        yield VideoFile(name, reader, container, _best_stream(name, container))


def _open_container(reader: Any, more: Mapping[str, str] | None = None) -> av.container.InputContainer:
    """The one place where a file is opened; it can lead nowhere else."""
    options: dict[str, Any] = {
        "mode": "r",
        "options": {"max_pixels": str(MAX_PIXELS)},
        "container_options": {
            "format_whitelist": ",".join((*CONTAINERS, *SOUNDS, *PICTURES)),
            "protocol_whitelist": "none",
            **(more or {}),
        },
    }
    try:  # some clips of HMDB51 have a title that is not UTF-8
        return av.open(reader, metadata_errors="ignore", **options)
    except TypeError:  # newer PyAV ignores it by itself and has no such argument
        return av.open(reader, **options)


def _open_input(given: NamedInput, more: Mapping[str, str]) -> av.container.InputContainer:
    """The one place where FFmpeg opens something by name: with the demuxer and the protocols of its kind alone."""
    demuxer, protocols = LIVE_INPUTS[given.kind]
    options = dict(more) | {"format_whitelist": demuxer, "protocol_whitelist": protocols}
    if demuxer == "rtsp":  # over UDP, packets get lost, and come from anywhere
        options |= {"rtsp_transport": "tcp", "allowed_media_types": "video"}
    return av.open(
        given.place,
        "r",
        format=demuxer,
        options={"max_pixels": str(MAX_PIXELS)},
        container_options=options,
        timeout=given.timeout,
    )


def _best_stream(name: str, container: av.container.InputContainer) -> av.VideoStream:
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not streams:
        others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise VideoDecodeError(f"{name} has no video stream (it holds {others}).")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise VideoDecodeError(f"{name}: no frame can be decoded (FFmpeg has no decoder for its codec).")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoDecodeError(
            f"{name} has pictures of {stream.width} × {stream.height} pixels, more than the {MAX_PIXELS} that "
            "are decoded; MOTE_MAX_PIXELS raises the limit."
        )
    # With several threads, what is left in damaged pictures depends on the number of cores.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _is_cover(stream: av.VideoStream) -> bool:
    """Whether the stream is a picture that goes with a piece of music, not a video."""
    return bool(stream.disposition & Disposition.attached_pic)


class VideoFile:
    """A video that is read once, in order, up to the first error.

    Attributes:
        name: what messages call it.
        stream: the video stream, of PyAV.
        clock: when its frames are shown.
        picture: how its frames become images; None before the first frame.
        num_frames: frames of the clip so far, n.
        num_damaged: those of them that the decoder flags as corrupt.
        breakage: why the file is not whole, if it is not.
        in_doubt: whether decoding from the start might have given other frames; only after `skip`.
    """

    def __init__(self, name: str, reader: Any, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.name, self.container, self.stream = name, container, stream
        self.clock = Clock(container, stream)
        self.inventory = Inventory(reader, container, stream)
        self.picture: Picture | None = None
        self.num_frames = self.num_damaged = 0
        self.first_damaged: int | None = None
        self.breakage: str | None = None
        self.in_doubt = False
        self._failure: Exception | None = None
        self._clip, self._patched = WHOLE, False
        self._demuxed, self._ahead = self._demux(), deque[av.Packet | Exception]()
        brand = container.metadata.get("major_brand", "").strip()
        self._may_be_still = container.format.name in (*PICTURES, "gif", "apng") or brand in PICTURE_BRANDS

    def _demux(self) -> Iterator[av.Packet]:
        """The packets of the video stream as the file has them; the last is empty."""
        demuxed = self.container.demux(*self.inventory.streams)
        while True:
            try:
                packet = next(demuxed, None)
            except IndexError:  # of PyAV, at the end of a file that has more streams than it began with
                packet = None
            if packet is None:
                return
            self.inventory.add(packet)
            if packet.stream.index != self.stream.index:
                continue
            if packet.size or is_flush(packet):  # an empty sample would tell the decoder that this is the end
                yield packet

    def packets(self) -> Iterator[av.Packet]:
        """The packets of the video stream, their time stamps mended where a clock starts again; the last is empty."""
        ahead = (self._ahead.popleft() for _ in range(len(self._ahead)))  # let go once they are decoded
        for packet in chain(ahead, self._demuxed):
            if isinstance(packet, Exception):
                raise packet
            if packet.size:
                self.clock.mend(packet)
            yield packet

    def read_ahead(self, clip: Clip = WHOLE) -> tuple[int, float | None]:
        """Read the packets of a clip into memory, from where they are decoded later.

        Args:
            clip: The part that counts; only its end may be set.

        Returns:
            How many frames they should give, and how many in a second: as `expected_frames` and `Clock.fps` tell.
        """
        clock, number = Clock(self.container, self.stream), 0
        try:
            for packet in self._demuxed:
                self._ahead.append(packet)
                if is_flush(packet):
                    continue
                stamps = packet.pts, packet.dts
                clock.mend(packet)
                is_over = clip.end is not None and clip.is_over(clock.decoded_at(packet)) and not packet.is_discard
                number += 0 if is_over else expected_frames(packet, clock, clip)
                packet.pts, packet.dts = stamps
                if is_over:
                    break  # what is decoded later is shown later
        except Exception as error:  # which is raised where decoding comes to it
            self._ahead.append(error)
        return number, clock.fps

    def frames(self, clip: Clip = WHOLE, skip: int = 0) -> Iterator[tuple[float, av.VideoFrame]]:
        """Decode up to the end of the clip or the first error.

        Args:
            clip: The part that counts; frames before it are decoded, but not given.
            skip: Packets of which the decoder reads the parameter sets alone, as the next one starts afresh.

        Yields:
            When a frame is shown, in seconds, never earlier than the one before it, and the frame.
        """
        self._clip, decoder, due = clip, self.stream.codec_context, 0
        try:
            for number, packet in enumerate(self.packets()):
                if number < skip:
                    decoder.skip_frame = "ALL"
                    packet.decode()
                    continue
                if skip:
                    if number == skip:
                        decoder.skip_frame = "DEFAULT"
                        decoder.flush_buffers()
                    if not is_flush(packet) and not packet.is_discard:
                        due += self.clock.seconds(packet) in clip
                for frame in packet.decode():
                    if self.picture is None:
                        self.picture = Picture(frame, self.stream.sample_aspect_ratio)
                    seconds, is_corrupt = self.clock.tick(frame), frame.is_corrupt
                    self._patched = self._patched or is_corrupt
                    if clip is not WHOLE and seconds not in clip:
                        if clip.is_over(seconds):
                            self.in_doubt = self._doubts(skip, due)
                            return
                        continue
                    if is_corrupt:
                        self.first_damaged = self.num_frames if not self.num_damaged else self.first_damaged
                        self.num_damaged += 1
                    self.num_frames += 1
                    yield seconds, frame
            self.breakage = self.inventory.shortage()
        except Exception as error:  # FFmpeg's own, and what PyAV makes of files that it has no words for
            self._failure, self.breakage = error, reason(error)
            if isinstance(error, av.ArgumentError):
                self.breakage += f", or pictures of more than {MAX_PIXELS} pixels, see MOTE_MAX_PIXELS"
        self.in_doubt = self._doubts(skip, due)

    @property
    def pixel_aspect(self) -> float:
        """Width / height of the pixels of upright images."""
        return self.picture.pixel_aspect if self.picture is not None else 1.0

    def image(self, frame: av.VideoFrame) -> np.ndarray:
        """The upright image of a frame, uint8 [h, w, 3], RGB.

        Raises:
            VideoDecodeError: If FFmpeg cannot convert it.
        """
        assert self.picture is not None  # a frame was given
        try:
            return self.picture.rgb(frame)
        except Exception as error:
            raise VideoDecodeError(f"{self.name}: a frame cannot be turned into RGB ({reason(error)}).") from error

    def _doubts(self, skip: int, due: int) -> bool:
        """Whether frames are missing, patched with earlier pictures, or out of order after packets were skipped."""
        return skip > 0 and (
            due != self.num_frames or self._patched or self.clock.num_late > 0 or self.breakage is not None
        )

    def report(self, strict: bool = False, still: bool = False) -> None:
        """Say once what is wrong with the file that was read.

        Args:
            strict: Whether a file that breaks off or has damaged pictures is an error.
            still: Whether a still picture is a video of one frame.

        Raises:
            VideoDecodeError: If there is no frame, or something is wrong and `strict` is set.
        """
        if not self.num_frames and self.picture is not None and self._clip != WHOLE:
            end = "the end" if self._clip.end is None else f"{self._clip.end} s"
            raise VideoDecodeError(f"{self.name} has no decodable frame between {self._clip.start or 0} s and {end}.")
        if not self.num_frames:
            cause = self.breakage or "the video stream is empty"
            raise VideoDecodeError(f"{self.name}: no frame can be decoded ({cause}).") from self._failure
        if self._may_be_still and self.num_frames == 1 and self._clip == WHOLE and not still:
            raise VideoDecodeError(f"{self.name} is a still picture, not a video; pass still=True to take it as one.")
        trouble = self.trouble()
        if trouble is not None and strict:
            raise VideoDecodeError(f"{self.name} {trouble}.")
        used = "only these are used" if self.breakage else "they are used as they are"
        for message in ([f"{trouble}; {used}"] if trouble else []) + self.clock.mended():
            warnings.warn(f"{self.name} {message}.", stacklevel=3)

    def trouble(self) -> str | None:
        """What is wrong with the file that was read, as the rest of a sentence."""
        if self.breakage is not None:
            return f"breaks off after {self.num_frames} decodable frames ({self.breakage})"
        if self.num_damaged:
            which = f"the first is frame {self.first_damaged}"
            return f"has {self.num_damaged} damaged frames of {self.num_frames} ({which})"
        return None


def is_flush(packet: av.Packet) -> bool:
    """Whether this is PyAV's end mark; containers may hold empty packets too, which have a time."""
    return not packet.size and packet.dts is None


def expected_frames(packet: av.Packet, clock: "Clock", clip: Clip) -> int:
    """How many frames of a clip a packet should give, as far as it tells; only decoding says it for sure."""
    if packet.is_discard:
        return 0  # an edit list hides its frame
    # Some encoders of MPEG-4 leave a packet for every picture that they dropped, too short for a start code.
    if packet.size < len(b"\0\0\1\xb6") and packet.stream.codec_context.name == "mpeg4":
        return 0
    return 1 if clip is WHOLE else int(clock.seconds(packet) in clip)


class Clock:
    """When frames are shown, in seconds from the file's start: by its own time stamps, and never backwards.

    Attributes:
        untimed: whether the stream has no time stamps.
        num_restarts: how often its time stamps started again, or went far ahead.
        restarts: after which seconds they did so first and last, if they did.
        num_late: frames stamped earlier than the one before.
    """

    RESTART = 0.5  # seconds: stamps that go back farther are those of another clock
    JUMP = 10.0  # seconds: in transport and program streams, so are those that go ahead farther, as FFmpeg has it
    TOLERANCE = 0.05  # a header's frame rate is believed if it is this close to that of the time stamps

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        flags = container.format.flags
        self._stream = stream
        self.untimed = bool(flags & int(FormatFlags.no_timestamps.value))  # type: ignore[call-overload]
        self._may_jump = bool(flags & int(FormatFlags.ts_discont.value))  # type: ignore[call-overload]
        # A raw stream has no times at all: FFmpeg then calls its average rate 25.
        rate = stream.guessed_rate if self.untimed else stream.average_rate or stream.guessed_rate
        self._rate = float(rate) if rate else None
        # AVI says when a frame is decoded, not when it is shown: the frames take these times in their order.
        self._queue: deque[int] | None = deque() if container.format.name == "avi" else None
        # Floats: fractions of every packet would take longer than reading it.
        self._tick, self._origin = float(stream.time_base or 0), (container.start_time or 0) / av.time_base
        self._offset = self._step = 0  # in the stream's ticks
        self._stamp: int | None = None  # of the last packet
        self._packets = -1  # the number of the last one
        self._count, self._last = 0, 0.0  # of frames
        self._stamps, self._span = 0, (0.0, 0.0)  # of packets, from which the frame rate is measured
        self.num_restarts, self.restarts = 0, (0.0, 0.0)
        self.num_late = 0

    def mend(self, packet: av.Packet) -> None:
        """Let a packet's time stamps follow those before it, if the clock that they come from started again."""
        self._packets += 1
        pts, dts, tick = packet.pts, packet.dts, self._tick  # of PyAV each takes as long as all the rest
        stamp = pts if dts is None else dts
        if stamp is None or not tick or self.untimed:
            return
        if pts is not None and (pts - stamp) * tick > self.JUMP:
            packet.pts = pts = None  # FFmpeg took it from the next picture, which goes by another clock
        if self._stamp is not None:
            step = stamp + self._offset - self._stamp
            if step * tick < -self.RESTART or (self._may_jump and step * tick > self.JUMP):
                self._offset = self._stamp + (packet.duration or self._step or 1) - stamp
                seconds = self._stamp * tick - self._origin
                self.restarts = (self.restarts[0] if self.num_restarts else seconds, seconds)
                self.num_restarts += 1
            elif step > 0:
                self._step = step
        self._stamp = stamp = stamp + self._offset
        if self._offset:
            packet.pts = None if pts is None else pts + self._offset
            packet.dts = None if dts is None else stamp
        if self._queue is not None:
            self._queue.append(stamp)
        if dts is not None and not packet.is_discard:  # an edit list hides its frame
            # By when packets are decoded: on the average as often as frames are shown, and in order.
            seconds = stamp * tick - self._origin
            self._span = (self._span[0], seconds) if self._stamps else (seconds, seconds)
            self._stamps += 1

    def seconds(self, packet: av.Packet) -> float:
        """When a packet's picture is shown, as far as the packet says."""
        ticks = packet.dts if packet.pts is None or self._queue is not None else packet.pts
        if ticks is None or self.untimed:
            return self._packets / (self._rate or 25.0)
        return round(max(0.0, ticks * self._tick - self._origin), 6)

    def decoded_at(self, packet: av.Packet) -> float:
        """When a packet is decoded, which is never later than when it is shown; 0 if it does not say."""
        return packet.dts * self._tick - self._origin if packet.dts is not None else 0.0

    def tick(self, frame: av.VideoFrame) -> float:
        """When the next frame is shown, in seconds, to the microsecond."""
        ticks = frame.pts
        if self._queue is not None:
            # A packet without a picture leaves its time behind; only those that the decoder holds back are waited for.
            while len(self._queue) > self._stream.codec_context.reorder_depth + 1:
                self._queue.popleft()
            ticks = self._queue.popleft() if self._queue else None
        if self.untimed:
            seconds = self._count / (self._rate or 25.0)
        elif ticks is None or not self._tick:
            seconds = self._last + 1 / (self._rate or 25.0) if self._count else 0.0
        else:
            seconds = ticks * self._tick - self._origin
        self.num_late += self._count > 0 and seconds < self._last
        self._count, self._last = self._count + 1, round(max(seconds, self._last, 0.0), 6)
        return self._last

    @property
    def fps(self) -> float | None:
        """Frames in a second: those of the header, if the time stamps of what was read agree."""
        span = self._span[1] - self._span[0]
        if self._stamps < 2 or span <= 0:
            return self._rate
        expected = (self._stamps - 1) / self._rate if self._rate else 0.0
        agrees = abs(span - expected) <= self.TOLERANCE * expected + 0.002  # time stamps are whole milliseconds
        return self._rate if agrees else (self._stamps - 1) / span

    @property
    def end(self) -> float:
        """When the last frame that was shown is over, in seconds."""
        return round(self._last + 1 / (self.fps or 25.0), 6)

    def mended(self) -> list[str]:
        """What was made good, as the rests of sentences."""
        said = []
        if self.num_restarts:
            times = f"{self.num_restarts} times" if self.num_restarts > 1 else "once"
            said.append(
                f"has a clock that starts again {times}, first after {self.restarts[0]:.2f} s; its times go on"
            )
        if self.num_late:
            said.append(
                f"has {self.num_late} frames stamped earlier than the one before; they are shown right after it"
            )
        return said


class Inventory:
    """What was read of a file against what its header promises: containers that are cut often just end.

    Attributes:
        streams: those of which it needs to see the packets; all if there are none.
    """

    # Demuxers drop some packets on purpose, so that only a large gap to the header says anything.
    FAR_FEWER = 0.9

    def __init__(self, reader: Any, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self._reader, self._container, self._stream = reader, container, stream
        # A header of Matroska says how long all streams take; of the others, only the pictures count.
        self.streams = () if container.format.name == "matroska,webm" else (stream,)
        self._packets = 0
        self._last: av.Packet | None = None
        self._ends: dict[int, int] = {}  # of what was read from each stream, in its ticks

    def add(self, packet: av.Packet) -> None:
        """Take note of a packet of any stream, with the stamps that it has in the file."""
        if is_flush(packet):
            return
        index, pts = packet.stream.index, packet.pts
        if pts is not None:
            self._ends[index] = max(self._ends.get(index, 0), pts + (packet.duration or 0))
        if index == self._stream.index:
            self._packets, self._last = self._packets + 1, packet

    def shortage(self) -> str | None:
        """Why the file, read to its end, is not whole; None where nothing speaks against it."""
        if self._last is None:
            return None
        if self._last.is_corrupt:
            return "the file ends within a packet"
        kind, decoded_at = self._container.format.name, self._last.dts or 0
        streams = self._container.streams
        end = max((float(ticks * (streams[i].time_base or 0)) for i, ticks in self._ends.items()), default=0.0)
        if "mp4" in kind:
            # The sample table after edit lists; the header's own count knows nothing of edits. Empty samples are none.
            table = self._stream.index_entries
            last = next((table[i] for i in reversed(range(len(table))) if table[i].size), None)
            ends_early = last is not None and decoded_at < last.timestamp
        elif kind == "avi":
            # Empty chunks show the previous frame again; they are no packets, but count in the times.
            ends_early = max(self._packets, decoded_at + 1) < self.FAR_FEWER * self._stream.frames
        elif kind == "matroska,webm":
            ends_early = end < self.FAR_FEWER * (self._container.duration or 0) / av.time_base
        elif kind == "flv":
            ends_early = self._size() < _promised_size(self._reader)
        else:
            ends_early = False  # raw and transport streams promise nothing
        return f"it ends at {end:.2f} s, earlier than its header says" if ends_early else None

    def _size(self) -> int:
        self._reader.seek(0, os.SEEK_END)
        return self._reader.tell()


def _promised_size(reader: Reader) -> float:
    """Bytes that an FLV file should have: recorders write durations that mean nothing, but the size only when done."""
    reader.seek(0)
    head = reader.read(1 << 16)
    at = head.find(b"\0\x08filesize\0")
    return float(np.frombuffer(head, ">f8", 1, at + 11)[0]) if 0 <= at <= len(head) - 19 else 0.0


class Picture:
    """How a video's frames become upright RGB images of one size, read from its first frame.

    Attributes:
        height, width: of the upright images.
        pixel_aspect: width / height of a pixel of theirs.
        is_upright: whether nothing has to be turned.

    Args:
        first: The first frame.
        sample_aspect_ratio: width / height of a stored pixel, if the file says.
    """

    def __init__(self, first: av.VideoFrame, sample_aspect_ratio: Fraction | None = None) -> None:
        self._stored = first.width, first.height
        self._converter = VideoReformatter()
        a, b, _, c, d = self._display_matrix(first)[:5]  # pixel (x, y) is shown at (a x + c y, b x + d y)
        self._lies = abs(b) > abs(a)
        self._flip_x, self._flip_y = (c < 0, b < 0) if self._lies else (a < 0, d < 0)
        self.is_upright = not (self._lies or self._flip_x or self._flip_y)
        self.height, self.width = self._stored if self._lies else self._stored[::-1]
        aspect = float(sample_aspect_ratio or 1)  # unknown is 0 or None
        self.pixel_aspect = 1 / aspect if self._lies else aspect

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """The upright image, uint8 [h, w, 3]; a frame of another size than the first is scaled to it."""
        image = self._convert(frame, *self._stored, "rgb24").to_ndarray()
        if self._lies:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self._flip_y else 1, :: -1 if self._flip_x else 1]

    def _convert(self, frame: av.VideoFrame, width: int, height: int, pixels: str) -> av.VideoFrame:
        # More threads than one may outlive the call, and hang a forked worker that collects them.
        try:
            return self._converter.reformat(frame, width, height, format=pixels, threads=1)
        except av.FFmpegError:  # a colour tag that is reserved, or of a space that swscale does not know
            frame.colorspace = SPC_BT2020_NCL if frame.colorspace == SPC_BT2020_NCL + 1 else UNSPECIFIED
            frame.color_primaries = frame.color_trc = UNSPECIFIED
            return self._converter.reformat(frame, width, height, format=pixels, threads=1)

    def _display_matrix(self, first: av.VideoFrame) -> list[int]:
        # From a thumbnail: PyAV's side data and frame hold each other until a garbage collection, and a frame that is
        # held changes which buffers the decoder uses again, so what it leaves in pictures that are damaged.
        thumbnail = self._convert(first, 16, 16, "gray")
        try:
            data: Any = thumbnail.side_data.get("DISPLAYMATRIX")
        except ValueError:  # side data of a kind that PyAV does not know
            data = _without_unknown_side_data(thumbnail).side_data.get("DISPLAYMATRIX")
        return [1, 0, 0, 0, 1, 0, 0, 0, 1] if data is None else np.frombuffer(bytes(data), np.int32).tolist()


def _without_unknown_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame without side data of kinds that PyAV cannot list: one such hides all the others."""
    known = {kind.value for kind in SideDataType}
    graph = av.filter.Graph()
    begin = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    strip = [graph.add("sidedata", mode="delete", type=str(kind)) for kind in range(64) if kind not in known]
    graph.link_nodes(begin, *strip, graph.add("buffersink")).configure()
    graph.push(frame)
    stripped: Any = graph.pull()
    return stripped


__all__ = [
    "LIVE_INPUTS",
    "MAX_PIXELS",
    "WHOLE",
    "Clip",
    "Clock",
    "Inventory",
    "NamedInput",
    "Picture",
    "VideoFile",
    "expected_frames",
    "is_flush",
    "open_live",
    "open_video",
]
