"""The frames of a video file, exactly as a sequential PyAV decode gives them, upright, and how many there are.

A file's header does not say how many frames can be decoded: containers count packets, edit lists hide some, damaged
files break off. So a file is decoded in order from its first frame, only the wanted frames are kept and turned into
RGB, and n is what the decoder really gave. An H.264 file in MP4 or Matroska whose packets are all there and whole is
decoded in part, the packets that the wanted frames need; n is then the number of its packets.
"""

import functools
import importlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.format import Flags as FormatFlags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from transformers.video_utils import VideoMetadata

from .h264_packets import H264Packets

VideoSource = str | os.PathLike[str] | bytes | BinaryIO
FrameChoice = Sequence[int] | np.ndarray | Callable[[VideoMetadata], Sequence[int] | np.ndarray]
Finish = Callable[[np.ndarray, float], Any]  # what becomes of a frame [h, w, 3] whose pixels have this width / height

BACKENDS = ("auto", "pyav", "decord", "torchcodec")

# FFmpeg's names of the containers that hold H.264 as units behind their lengths, a picture a packet.
PACKED_H264 = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")

# Seconds decoded before a clip that starts late in a long file, for a decoder that has settled when the clip begins.
SEEK_MARGIN = 2.0


class VideoDecodeError(ValueError):
    """A video that cannot be read; the message names the file and the reason."""


class VideoNotFoundError(VideoDecodeError, FileNotFoundError):
    """A path at which there is no file."""


def decode_video(
    video: VideoSource,
    sample: FrameChoice | None = None,
    *,
    backend: str = "auto",
    strict: bool = False,
    start: float | None = None,
    end: float | None = None,
    finish: Finish | None = None,
) -> tuple[Any, VideoMetadata]:
    """Decode the wanted frames of one video.

    The frames are those that a sequential PyAV decode of the best video stream gives at the same indices, turned
    upright where the file says so. n is the number of decodable frames: a file that breaks off after k >= 1 frames
    has n = k and gives one warning.

    Args:
        video: A path, an http(s) URL, the bytes of a file, or a binary file object, which stays open.
        sample: The wanted frames: None for all, indices in any order, repeated or not, or a function from the video's
            metadata to indices. The function is called with n as the container tells it and, in the rare file whose
            decodable frames are another number, once more with that number.
        backend: `"auto"` and `"pyav"` decode with PyAV, of H.264 in MP4 and Matroska only what the wanted frames need;
            damage within a picture that they don't need is not seen. `"decord"` and `"torchcodec"` seek, and are used
            only for files on which seeking is exact (MP4 or MOV, H.264 in 8 bits, not rotated, not edited, as many
            packets as the header says); PyAV does the others. `"auto"` never takes them.
        strict: Whether a file that breaks off is an error. Every frame is then decoded.
        start: Where the clip starts in a longer file, in seconds; frames before it are not counted, and in an MP4 file
            not decoded but for the last seconds, so damage there goes unseen.
        end: Where the clip ends, in seconds; frames at and after it are not counted.
        finish: Called with every wanted frame as it comes, uint8 [h, w, 3], and the width of its pixels over their
            height, as the file says it is shown: what it gives is kept, so that no frame is held at full size.

    Returns:
        The frames, uint8 [t, h, w, 3], RGB, or the list of what `finish` gave; and their metadata:
        `total_num_frames` is n, `duration` n / fps in seconds, `height` and `width` those of the upright frames,
        `video_backend` the library that decoded, `frames_indices` the t indices.

    Raises:
        VideoDecodeError: If nothing can be decoded, or the file breaks off and `strict` is set.
        FileNotFoundError: If there is no file at the path (a `VideoDecodeError` too).
        ImportError: If the backend asked for does not work here.
        ValueError: If an index is out of range, or `backend`, `start` or `end` makes no sense.
        TypeError: If `video` is none of the above kinds.

    Shapes: t wanted frames, n frames in the video, h height and w width in pixels.
    """
    _check_backend(backend)
    clip = _Clip(start, end)
    source = _Source(video)
    choose = sample if callable(sample) else None
    indices = None if sample is None or callable(sample) else _as_indices(sample)

    if backend in _SEEKERS:
        scan = _scan(source, clip)
        if scan.seekable:
            if choose is not None:
                indices = _as_indices(choose(scan.metadata(backend)))
            wanted = _in_range(source, indices, scan.num_frames)
            with suppress(Exception):  # whatever the library makes of a damaged file, PyAV says how far it goes
                images = _SEEKERS[backend](source.rewound(), wanted, scan.num_frames)
                if finish is not None:
                    images = [finish(image, scan.pixel_aspect) for image in images]
                return images, scan.metadata(backend, wanted)

    if sample is not None and not strict:
        partly = _decode_needed(source, clip, sample, finish)
        if partly is not None:
            return partly
    if choose is not None:
        indices, found = _decode_sampled(source, clip, choose, finish)
    else:
        found = _decode(source, clip, indices, finish)
    _report(source, found, strict)
    wanted = _in_range(source, indices, found.num_frames)
    return found.pictures(wanted, finish), found.metadata("pyav", wanted)


def probe_video(video: VideoSource, strict: bool = False) -> VideoMetadata:
    """Count a video's decodable frames by decoding it, and read its rate and size.

    Args:
        video: A path, an http(s) URL, the bytes of a file, or a binary file object.
        strict: Whether a file that breaks off is an error.

    Returns:
        The metadata that `decode_video` would give, without `frames_indices`.

    Raises:
        VideoDecodeError: As `decode_video`.
        FileNotFoundError: As `decode_video`.
        TypeError: As `decode_video`.
    """
    source = _Source(video)
    found = _decode(source, _Clip(), np.empty(0, np.int64))
    _report(source, found, strict)
    return found.metadata("pyav")


class _Source:
    """Something that holds a video, openable any number of times, and its name for messages."""

    def __init__(self, video: VideoSource) -> None:
        self.file: Any  # a Path, bytes, or a file object
        if isinstance(video, str) and video.startswith(("http://", "https://")):
            self.name, self.file = video, _download(video)
        elif isinstance(video, (str, os.PathLike)):
            self.name, self.file = str(video), Path(video)
            if not self.file.exists():
                raise VideoNotFoundError(f"{self.name} does not exist.")
            if self.file.is_dir():
                raise VideoDecodeError(f"{self.name} is a folder, not a video file.")
        elif isinstance(video, (bytes, bytearray, memoryview)):
            self.name, self.file = f"video of {len(video)} bytes", bytes(video)
        elif hasattr(video, "read"):
            self.name = str(getattr(video, "name", None) or f"video in a {type(video).__name__}")
            if isinstance(video, io.TextIOBase):
                raise TypeError(f"{self.name} is open as text; open it in binary mode.")
            self.file = video if video.seekable() else video.read()
        else:
            kinds = "a path, an http(s) URL, bytes or a binary file object"
            raise TypeError(f"video must be {kinds}, got {type(video).__name__}.")
        if self.file == b"" or (isinstance(self.file, Path) and self.file.is_file() and not self.file.stat().st_size):
            raise VideoDecodeError(f"{self.name} is empty (0 bytes).")

    def rewound(self) -> Any:
        """What a decoder opens: a path as text, or a file object at its start."""
        if isinstance(self.file, Path):
            return str(self.file)
        if isinstance(self.file, bytes):
            return io.BytesIO(self.file)
        self.file.seek(0)
        return self.file

    @contextmanager
    def open(self) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
        """The container and its best video stream, closed on leaving, whatever happens.

        Raises:
            VideoDecodeError: If it is no container, has no video stream or one of an unknown codec.
        """
        file = self.rewound()
        if isinstance(file, str):
            file = f"file:{file}"  # else FFmpeg takes a colon in a file name for a protocol
        try:
            container = _open_container(file)
        except av.FFmpegError as error:
            raise VideoDecodeError(f"{self.name} cannot be opened as a video ({_reason(error)}).") from error
        with container:
            streams = [stream for stream in container.streams.video if not _is_cover(stream)]
            if not streams:
                others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise VideoDecodeError(f"{self.name} has no video stream (it holds {others}).")
            best = container.streams.best("video")
            stream = best if best in streams else streams[0]
            if stream.codec_context is None:
                raise VideoDecodeError(f"{self.name}: no frame can be decoded (FFmpeg has no decoder for its codec).")
            yield container, stream


def _open_container(file: Any) -> av.container.InputContainer:
    """Open with metadata that is not UTF-8 ignored: some clips of HMDB51 have such a title."""
    try:
        return av.open(file, metadata_errors="ignore")
    except TypeError:  # newer PyAV ignores it by itself and has no such argument
        return av.open(file)


def _is_cover(stream: av.VideoStream) -> bool:
    """Whether the stream is a picture that goes with a piece of music, not a video."""
    return bool(stream.disposition & Disposition.attached_pic)


def _download(url: str) -> bytes:
    """Fetch a file with the client that reads the Hub: its proxies and its offline switch hold here too."""
    session = importlib.import_module("huggingface_hub").get_session()
    try:
        response = session.get(url, follow_redirects=True, timeout=60)
        response.raise_for_status()
    except Exception as error:  # which classes depends on the HTTP library that huggingface_hub is built on
        raise VideoDecodeError(f"{url} cannot be downloaded ({type(error).__name__}: {error}).") from error
    return response.content


@dataclass(frozen=True)
class _Clip:
    """The part of a file that counts, in seconds from its start; None for an open end."""

    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if self.start is not None and not self.start >= 0:
            raise ValueError(f"start must be at least 0 seconds, got {self.start!r}.")
        if self.end is not None and not self.end > (self.start or 0):
            raise ValueError(f"end must be later than start, got start={self.start!r} and end={self.end!r} seconds.")

    def __bool__(self) -> bool:
        return self.start is not None or self.end is not None

    def __contains__(self, seconds: float) -> bool:
        return (self.start or 0) <= seconds and not self.is_over(seconds)

    def is_over(self, seconds: float) -> bool:
        return self.end is not None and seconds >= self.end


@dataclass
class _Pass:
    """What one pass over a file found."""

    num_frames: int = 0
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    seekable: bool = False  # whether decoders that seek give the same frames
    breakage: str | None = None  # why the file is not whole, if it is not
    pixel_aspect: float = 1.0  # width / height of a pixel, upright
    images: dict[int, Any] = field(default_factory=dict)  # the wanted frames, uint8 [h, w, 3], or finished

    def pictures(self, wanted: np.ndarray, finish: Finish | None) -> Any:
        images = [self.images[index] for index in wanted.tolist()]
        return np.stack(images) if finish is None else images

    def metadata(self, backend: str, indices: np.ndarray | None = None) -> VideoMetadata:
        return VideoMetadata(
            total_num_frames=self.num_frames,
            fps=self.fps,
            width=self.width,
            height=self.height,
            duration=self.num_frames / self.fps if self.fps else None,
            video_backend=backend,
            frames_indices=None if indices is None else indices.tolist(),
        )


def _decode(source: _Source, clip: _Clip, wanted: np.ndarray | None, finish: Finish | None = None) -> _Pass:
    """Decode in order up to the first error, keeping the wanted frames of the clip (None: all of them)."""
    found, keep = _Pass(), None if wanted is None else frozenset(wanted.tolist())
    picture: _Picture | None = None
    failure: Exception | None = None
    with source.open() as (container, stream):
        clock, inventory = _Clock(container, stream), _Inventory(container, stream)
        found.fps = clock.fps
        try:
            _skip_towards(clip.start or 0.0, container)
            for frame in _frames(container, stream, inventory):
                if picture is None:
                    picture = _Picture(frame, stream.sample_aspect_ratio)
                    found.height, found.width = picture.height, picture.width
                seconds = clock.tick(frame) if clip else 0.0
                if clip.is_over(seconds):
                    break
                if seconds not in clip:
                    continue
                if keep is None or found.num_frames in keep:
                    found.images[found.num_frames] = picture.finished(frame, finish)
                found.num_frames += 1
            else:
                found.breakage = inventory.shortage()
        except av.FFmpegError as error:
            failure, found.breakage = error, _reason(error)
    if not found.num_frames and picture is not None and clip:
        end = "the end" if clip.end is None else f"{clip.end} s"
        raise VideoDecodeError(f"{source.name} has no decodable frame between {clip.start or 0} s and {end}.")
    if not found.num_frames:
        raise VideoDecodeError(
            f"{source.name}: no frame can be decoded ({found.breakage or 'the video stream is empty'})."
        ) from failure
    return found


def _decode_needed(
    source: _Source, clip: _Clip, sample: FrameChoice, finish: Finish | None
) -> tuple[Any, VideoMetadata] | None:
    """Decode only what the wanted frames need; None wherever that may differ from decoding in order."""
    with source.open() as (container, stream), suppress(av.FFmpegError):
        if stream.codec_context.name != "h264" or container.format.name not in PACKED_H264:
            return None
        # Damage is an error here, as it would be patched with what was decoded before it; slice threads hide it.
        stream.codec_context.options, stream.codec_context.thread_count = {"err_detect": "explode"}, 1
        _skip_towards(clip.start or 0.0, container)
        listed = _list_pictures(container, stream, clip)
        if listed is None:
            return None
        packets, shown, picture, found = listed
        try:
            wanted = _as_indices(sample(found.metadata("pyav")) if callable(sample) else sample)
            indices = {packets.times[shown[i]]: i for i in _in_range(source, wanted, found.num_frames).tolist()}
        except Exception:  # decoding in order tells whether the number of frames that it refuses is right
            return None
        runs = packets.needed(shown[i] for i in indices.values())
        container.seek(container.start_time or 0)
        _skip_towards(clip.start or 0.0, container)
        decoded = 0
        for frame in _decode_runs(container, stream, packets, runs):
            decoded += not frame.is_corrupt
            if frame.pts in indices:
                found.images[indices[frame.pts]] = picture.finished(frame, finish)
        if decoded == sum(map(len, runs)) and len(found.images) == len(indices):
            return found.pictures(wanted, finish), found.metadata("pyav", wanted)
    return None


def _list_pictures(
    container: av.container.InputContainer, stream: av.VideoStream, clip: _Clip
) -> "tuple[H264Packets, list[int], _Picture, _Pass] | None":
    """The packets, and which of them holds each frame of the clip, if the file is whole as far as packets tell."""
    found, inside = _Pass(), []
    picture: _Picture | None = None
    clock, inventory = _Clock(container, stream), _Inventory(container, stream)
    packets = H264Packets(stream.codec_context.extradata or b"")
    for packet in container.demux():
        inventory.add(packet)
        if packet.stream.index != stream.index or _is_flush(packet):
            continue
        seconds = clock.tick(packet) if clip else 0.0
        if packet.is_keyframe and clip.is_over(seconds):
            break
        packets.add(bytes(packet), packet.pts)
        if not packets.sound or packet.is_discard or packet.is_corrupt:
            return None
        inside.append(seconds in clip)
        if picture is None:
            first = stream.codec_context.decode(packet) + stream.codec_context.decode(None)
            if not first:
                return None
            picture = _Picture(first[0], stream.sample_aspect_ratio)
    else:
        if inventory.shortage() or (stream.frames > len(inside) and not clip):
            return None
    order = packets.display_order(stream.codec_context.reorder_depth)
    if order is None or picture is None:
        return None
    shown = [number for number in order if inside[number]]
    found.num_frames, found.fps = len(shown), clock.fps
    found.height, found.width = picture.height, picture.width
    return packets, shown, picture, found


def _decode_runs(
    container: av.container.InputContainer, stream: av.VideoStream, packets: H264Packets, runs: list[list[int]]
) -> Iterator[av.VideoFrame]:
    """The frames of runs of packets; nothing of one run serves the next."""
    numbered = enumerate(container.demux(stream))
    for run in runs:
        needed = set(run)
        for number, packet in numbered:
            if number in needed and packet.pts == packets.times[number]:
                yield from stream.codec_context.decode(packet)
            if number == run[-1]:
                break
        yield from stream.codec_context.decode(None)
        stream.codec_context.flush_buffers()


def _decode_sampled(
    source: _Source, clip: _Clip, choose: Callable[[VideoMetadata], Any], finish: Finish | None
) -> tuple[np.ndarray, _Pass]:
    """Choose by the number of packets and decode; where the decoder gives another number, choose and decode again."""
    scan = _scan(source, clip)
    refusal: Exception | None = None
    try:
        indices = _as_indices(choose(scan.metadata("pyav")))
    except Exception as error:  # raised below, unless the number that it refuses was wrong
        refusal, indices = error, np.empty(0, np.int64)
    found = _decode(source, clip, indices, finish)
    if found.num_frames != scan.num_frames:
        indices = _as_indices(choose(found.metadata("pyav")))
        found = _decode(source, clip, indices, finish)
    elif refusal is not None:
        raise refusal
    return indices, found


def _scan(source: _Source, clip: _Clip) -> _Pass:
    """Count the packets that should give a frame of the clip, decoding the first frame only."""
    found = _Pass()
    packets, whole, first = 0, True, None
    with source.open() as (container, stream):
        clock = _Clock(container, stream)
        found.fps = clock.fps
        try:
            for packet in container.demux(stream):
                if first is None:
                    first = next(iter(packet.decode()), None)
                if _is_flush(packet):
                    continue
                packets += 1
                whole = whole and not packet.is_discard and not packet.is_corrupt
                if packet.is_discard:
                    continue  # an edit list hides its frame
                found.num_frames += not clip or clock.tick(packet) in clip
        except av.FFmpegError:
            whole = False  # decoding will say why
        if first is not None:
            picture = _Picture(first, stream.sample_aspect_ratio)
            found.pixel_aspect = picture.pixel_aspect
            found.height, found.width = picture.height, picture.width
            found.seekable = (
                whole
                and not clip
                and "mp4" in container.format.name
                and packets == stream.frames
                and stream.codec_context.name == "h264"
                and first.format.name in ("yuv420p", "yuvj420p")
                and not first.interlaced_frame
                and picture.is_upright
            )
    return found


def _frames(
    container: av.container.InputContainer, stream: av.VideoStream, inventory: "_Inventory"
) -> Iterator[av.VideoFrame]:
    """The stream's frames in order; PyAV's default threads, which decide how FFmpeg repairs damaged pictures."""
    for packet in container.demux():
        inventory.add(packet)
        if packet.stream.index == stream.index:
            yield from packet.decode()


def _is_flush(packet: av.Packet) -> bool:
    """Whether this is PyAV's end mark; containers may hold empty packets too, which have a time."""
    return not packet.size and packet.dts is None


def _skip_towards(start: float, container: av.container.InputContainer) -> None:
    """Go to a key frame well before `start` seconds, where the container's index knows the key frames: MP4 and MOV."""
    if start > 2 * SEEK_MARGIN and "mp4" in container.format.name:
        with suppress(av.FFmpegError):  # then it is decoded from the start
            container.seek(int((start - SEEK_MARGIN) * av.time_base) + (container.start_time or 0))


class _Clock:
    """When frames are shown, in seconds from the file's start, and how many there are in a second."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        # A raw stream has no times at all: FFmpeg then calls its average rate 25.
        untimed = bool(container.format.flags & int(FormatFlags.no_timestamps.value))  # type: ignore[call-overload]
        rate = stream.guessed_rate if untimed else stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else None
        # AVI stores a rate, not when a frame is shown: the times that FFmpeg gives there are those of decoding.
        self._counts = untimed or container.format.name == "avi"
        self._origin = Fraction(container.start_time or 0, av.time_base)
        self._ticks = 0

    def tick(self, item: av.VideoFrame | av.Packet) -> float:
        """The time of the next frame or packet of the stream, to the microsecond, as FFmpeg gives the file's start."""
        self._ticks += 1
        if item.pts is not None and item.time_base and not self._counts:
            return round(float(item.pts * item.time_base - self._origin), 6)
        return round((self._ticks - 1) / (self.fps or 25.0), 6)


class _Inventory:
    """What was read of a file against what its header promises: containers that are cut often just end."""

    # Demuxers drop some packets on purpose, so that only a large gap to the header says anything.
    FAR_FEWER = 0.9

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self._container, self._stream = container, stream
        self._packets = 0
        self._last: av.Packet | None = None
        self._ends: dict[int, int] = {}  # of what was read from each stream, in its ticks

    def add(self, packet: av.Packet) -> None:
        if _is_flush(packet):
            return
        index = packet.stream.index
        if packet.pts is not None:
            self._ends[index] = max(self._ends.get(index, 0), packet.pts + (packet.duration or 0))
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
            # The sample table after edit lists; the header's own count knows nothing of edits.
            table = self._stream.index_entries
            ends_early = len(table) > 0 and decoded_at < table[len(table) - 1].timestamp
        elif kind == "avi":
            # Empty chunks show the previous frame again; they are no packets, but count in the times.
            ends_early = max(self._packets, decoded_at + 1) < self.FAR_FEWER * self._stream.frames
        elif kind in ("matroska,webm", "flv"):
            ends_early = end < self.FAR_FEWER * (self._container.duration or 0) / av.time_base
        else:
            ends_early = False  # raw and transport streams promise nothing
        return f"it ends at {end:.2f} s, earlier than its header says" if ends_early else None


class _Picture:
    """How a video's frames become upright RGB images of one size, read from its first frame."""

    def __init__(self, first: av.VideoFrame, sample_aspect_ratio: Fraction | None = None) -> None:
        self._stored = first.width, first.height
        self._converter = VideoReformatter()
        # From a thumbnail: PyAV's side data and frame hold each other until a garbage collection, and a frame that is
        # held changes which buffers the decoder uses again, so what it leaves in pictures that are damaged.
        thumbnail = self._converter.reformat(first, width=16, height=16, format="gray", threads=1)
        data: Any = thumbnail.side_data.get("DISPLAYMATRIX")
        matrix = [1, 0, 0, 0, 1, 0, 0, 0, 1] if data is None else np.frombuffer(bytes(data), np.int32).tolist()
        a, b, _, c, d = matrix[:5]  # pixel (x, y) is shown at (a x + c y, b x + d y)
        self._lies = abs(b) > abs(a)
        self._flip_x, self._flip_y = (c < 0, b < 0) if self._lies else (a < 0, d < 0)
        self.is_upright = not (self._lies or self._flip_x or self._flip_y)
        self.height, self.width = self._stored if self._lies else self._stored[::-1]
        aspect = float(sample_aspect_ratio or 1)  # unknown is 0 or None
        self.pixel_aspect = 1 / aspect if self._lies else aspect

    def finished(self, frame: av.VideoFrame, finish: Finish | None) -> Any:
        """The upright image, or what is to become of it."""
        image = self.rgb(frame)
        return image if finish is None else finish(image, self.pixel_aspect)

    def rgb(self, frame: av.VideoFrame) -> np.ndarray:
        """The upright image, uint8 [h, w, 3]; a frame of another size than the first is scaled to it."""
        # More threads than one may outlive the call, and hang a forked worker that collects them.
        image = self._converter.reformat(frame, *self._stored, format="rgb24", threads=1).to_ndarray()
        if self._lies:
            image = image.swapaxes(0, 1)
        return image[:: -1 if self._flip_y else 1, :: -1 if self._flip_x else 1]


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _report(source: _Source, found: _Pass, strict: bool) -> None:
    """Say once that a file broke off."""
    if found.breakage is None:
        return
    message = f"{source.name} breaks off after {found.num_frames} decodable frames ({found.breakage})"
    if strict:
        raise VideoDecodeError(f"{message}.")
    warnings.warn(f"{message}; only these are used.", stacklevel=3)


def _as_indices(indices: Any) -> np.ndarray:
    """Frame numbers as int64 [t]."""
    array = np.asarray(indices)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"sample must give a flat list of at least one whole number, got {indices!r}.")
    return array.astype(np.int64)


def _in_range(source: _Source, indices: np.ndarray | None, num_frames: int) -> np.ndarray:
    """The indices, all frames where there are none, refusing those that the video does not have."""
    if indices is None:
        return np.arange(num_frames)
    outside = indices[(indices < 0) | (indices >= num_frames)]
    if outside.size:
        raise ValueError(f"{source.name} has frames 0 to {num_frames - 1}; there is no frame {outside[0]}.")
    return indices


# Decoders that seek. A reader gives uint8 [t, h, w, 3], or raises for a file that turns out to be damaged: it reads
# the last frame too, which a file that broke off does not have.


def _read_with_decord(file: Any, indices: np.ndarray, num_frames: int) -> np.ndarray:
    video = importlib.import_module("decord").VideoReader(file, num_threads=1)
    return video.get_batch([*indices.tolist(), num_frames - 1]).asnumpy()[:-1]


def _read_with_torchcodec(file: Any, indices: np.ndarray, num_frames: int) -> np.ndarray:
    video = importlib.import_module("torchcodec.decoders").VideoDecoder(file, dimension_order="NHWC")
    return video.get_frames_at([*indices.tolist(), num_frames - 1]).data[:-1].numpy()


_SEEKERS = {"decord": _read_with_decord, "torchcodec": _read_with_torchcodec}


@functools.cache
def _problem(backend: str) -> str | None:
    """Why a seeking backend does not work here, found by decoding a small video; None where it works.

    torchcodec without FFmpeg is installed and may even import, and fails on the first video.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        for packet in (*stream.encode(av.VideoFrame(64, 64, "yuv420p")), *stream.encode()):
            container.mux(packet)
    try:
        _SEEKERS[backend](io.BytesIO(buffer.getvalue()), np.zeros(1, np.int64), 1)
    except Exception as error:  # shared libraries that fail to load raise many classes
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _check_backend(backend: str) -> None:
    """Refuse a backend that does not exist or does not work here, naming those that do."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if backend in _SEEKERS and (problem := _problem(backend)) is not None:
        works = ", ".join(["pyav", *(name for name in _SEEKERS if _problem(name) is None)])
        raise ImportError(f"backend={backend!r} does not work here ({problem}); available: {works}.")
