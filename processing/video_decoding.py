"""The frames of a video file, exactly as a sequential PyAV decode gives them, upright, and how many there are.

A file's header does not say how many frames can be decoded: containers count packets, edit lists hide some, damaged
files break off. So a file is decoded in order from its first frame, only the wanted frames are kept and turned into
RGB, and n is what the decoder really gave.
"""

import functools
import importlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import av
import numpy as np
from transformers.video_utils import VideoMetadata

from .video_file import WHOLE, Clip, Picture, VideoFile, expected_frames, is_flush, open_video
from .video_source import Source, VideoDecodeError, VideoNotFoundError, VideoSource

FrameChoice = Sequence[int] | np.ndarray | Callable[[VideoMetadata], Sequence[int] | np.ndarray]
Finish = Callable[[np.ndarray, float], Any]  # what becomes of a frame [h, w, 3] whose pixels have this width / height

BACKENDS = ("auto", "pyav", "decord", "torchcodec")
MAX_FRAME_BYTES = int(os.environ.get("MOTE_MAX_FRAME_BYTES", 4 << 30))  # of all frames that a call keeps

MAX_AHEAD = 2 << 20  # bytes of a file whose packets are all read before they are decoded, so that they are read once

SLICES, IDR_SLICE, PARAMETER_SETS = range(1, 6), 5, (7, 8)  # kinds of H.264 units (ITU-T H.264, table 7-1)


def decode_video(
    video: VideoSource,
    sample: FrameChoice | None = None,
    *,
    backend: str = "auto",
    strict: bool = False,
    still: bool = False,
    start: float | None = None,
    end: float | None = None,
    finish: Finish | None = None,
) -> tuple[Any, VideoMetadata]:
    """Decode the wanted frames of one video.

    The frames are those that a sequential PyAV decode of the best video stream gives at the same indices, turned
    upright where the file says so. n is the number of decodable frames: a file that breaks off after k >= 1 frames
    has n = k and gives one warning; so does one whose decoder flags pictures as damaged, and one with a clock that had
    to be mended.

    Args:
        video: A path, a URL (http, https, or any that fsspec knows), the bytes of a file, or a binary file object,
            which stays open.
        sample: The wanted frames: None for all, indices in any order, repeated or not, or a function from the video's
            metadata to indices. The function is called with n as the container tells it and, in the rare file whose
            decodable frames are another number, once more with that number.
        backend: `"auto"` and `"pyav"` decode in order with PyAV. `"decord"` and `"torchcodec"` seek, faster in long
            files, and are used only for files on which seeking is exact as far as their packets show (MP4 or MOV,
            H.264 in 8 bits at a constant rate, parameter sets in the header alone, every key picture a fresh start,
            not rotated, not edited, as many packets as the header says); PyAV does the others. They see only damage
            in what they decode, so `"auto"` never takes them.
        strict: Whether a file that breaks off or has damaged pictures is an error.
        still: Whether a still picture is taken as a video of one frame; it is refused otherwise.
        start: Where the clip starts in a longer file, in seconds; frames before it are not counted. Of H.264 in MP4 or
            Matroska, what comes before the last fresh start before the clip is read, but not decoded, so that damage
            there goes unseen; not if `strict` is set.
        end: Where the clip ends, in seconds; frames at and after it are not counted.
        finish: Called with every wanted frame as it comes, uint8 [h, w, 3], and the width of its pixels over their
            height, as the file says it is shown: what it gives is kept, so that no frame is held at full size.

    Returns:
        The frames, uint8 [t, h, w, 3], RGB, or the list of what `finish` gave; and their metadata:
        `total_num_frames` is n, `fps` the frames in a second of the header, or, where the times of the frames tell
        otherwise, of these, `duration` n / fps in seconds, `height` and `width` those of the upright frames,
        `video_backend` the library that decoded, `frames_indices` the t indices.

    Raises:
        VideoDecodeError: If nothing can be decoded, it is a still picture, its pictures or the frames to keep are
            larger than `MAX_PIXELS` or `MAX_FRAME_BYTES`, or something is wrong and `strict` is set.
        FileNotFoundError: If there is no file at the path (a `VideoDecodeError` too).
        ImportError: If the backend asked for does not work here.
        ValueError: If an index is out of range, or `backend`, `start` or `end` makes no sense.
        TypeError: If `video` is none of the above kinds.

    Shapes: t wanted frames, n frames in the video, h height and w width in pixels.
    """
    _check_backend(backend)
    clip = WHOLE if start is None and end is None else Clip(start, end)
    source = Source(video)
    if backend in _SEEKERS and clip == WHOLE:
        sought = _decode_by_seeking(source, sample, backend, finish)
        if sought is not None:
            return sought
    indices: np.ndarray | None
    if callable(sample):
        indices, found = _decode_sampled(source, clip, sample, finish, strict)
    else:
        indices = None if sample is None else _as_indices(sample)
        found = _decode(source, clip, indices, finish, strict)
    found.report(strict, still)
    wanted = _in_range(source, indices, found.num_frames)
    images = found.stacked(wanted) if finish is None else [found.images[index] for index in wanted.tolist()]
    return images, found.metadata("pyav", wanted)


def probe_video(video: VideoSource, strict: bool = False, *, still: bool = False) -> VideoMetadata:
    """Count a video's decodable frames by decoding it, and read its rate and size.

    Args:
        video: A path, a URL, the bytes of a file, or a binary file object.
        strict: Whether a file that breaks off or has damaged pictures is an error.
        still: Whether a still picture is taken as a video of one frame.

    Returns:
        The metadata that `decode_video` would give, without `frames_indices`.

    Raises:
        VideoDecodeError: As `decode_video`.
        FileNotFoundError: As `decode_video`.
        TypeError: As `decode_video`.
    """
    found = _decode(Source(video), WHOLE, np.empty(0, np.int64), None, strict)
    found.report(strict, still)
    return found.metadata("pyav")


@dataclass
class _Pass:
    """What one pass over a file found."""

    num_frames: int = 0
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    pixel_aspect: float = 1.0  # width / height of a pixel, upright
    images: dict[int, Any] = field(default_factory=dict)  # the wanted frames, uint8 [h, w, 3], or finished
    together: np.ndarray | None = None  # [t, h, w, 3], of which they are rows, where t was known
    report: Callable[[bool, bool], None] = lambda strict, still: None  # says what is wrong with the file

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

    def put(self, number: int, image: np.ndarray, many: int) -> None:
        """Keep a frame as a row of one array of that many: new memory costs more time than turning it into RGB."""
        if self.together is None:
            self.together = np.empty((many, *image.shape), image.dtype)
        self.images[number] = row = self.together[len(self.images)]
        row[:] = image

    def stacked(self, wanted: np.ndarray) -> np.ndarray:
        """The wanted frames, uint8 [t, h, w, 3]."""
        if self.together is not None and wanted.tolist() == list(self.images):
            return self.together
        return np.stack([self.images[index] for index in wanted.tolist()])

    def look(self, picture: Picture | None) -> None:
        if picture is not None:
            self.height, self.width, self.pixel_aspect = picture.height, picture.width, picture.pixel_aspect


def _decode(source: Source, clip: Clip, wanted: np.ndarray | None, finish: Finish | None, strict: bool) -> _Pass:
    """Decode in order up to the first error, keeping the wanted frames of the clip (None: all of them)."""
    skip = 0 if strict else _fresh_start(source, clip)
    found, in_doubt = _decode_from(source, clip, wanted, finish, skip)
    return _decode_from(source, clip, wanted, finish, 0)[0] if in_doubt else found


def _decode_from(
    source: Source, clip: Clip, wanted: "np.ndarray | _Choice | None", finish: Finish | None, skip: int
) -> tuple[_Pass, bool]:
    """Decode in order what follows some packets, and tell whether skipping these may have mattered."""
    found, keep, kept, many = _Pass(), None, 0, 0  # kept: bytes so far; many: frames to give
    with open_video(source) as video:
        if isinstance(wanted, _Choice):
            found.num_frames, found.fps = video.read_ahead(clip)
        for number, (_, frame) in enumerate(video.frames(clip, skip)):
            if number == 0:
                found.look(video.picture)
                wanted = wanted.ask(found.metadata("pyav")) if isinstance(wanted, _Choice) else wanted
                if wanted is not None:
                    keep, many = frozenset(wanted.tolist()), len(wanted)
            if keep is not None and number not in keep:
                continue
            image = video.image(frame)
            image = image if finish is None else finish(image, video.pixel_aspect)
            size = getattr(image, "nbytes", 0)
            kept += size
            if max(kept, size * many) > MAX_FRAME_BYTES:
                raise VideoDecodeError(
                    f"{source.name}: the frames asked for take more than {MAX_FRAME_BYTES / 2**30:g} GiB of memory: "
                    "ask for fewer, make them smaller as they come (finish), or raise MOTE_MAX_FRAME_BYTES."
                )
            if finish is None and keep is not None:
                found.put(number, image, len(keep))
            else:
                found.images[number] = image
        found.num_frames, found.fps, found.report = video.num_frames, video.clock.fps, video.report
        found.look(video.picture)
        return found, video.in_doubt


@dataclass
class _Choice:
    """The frames that a function chooses by what is known before decoding.

    Attributes:
        indices: What it chose; none as long as it was not asked, or refused.
        num_frames: The number of frames that it was told, n.
        refusal: What it raised.
    """

    choose: Callable[[VideoMetadata], Any]
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    num_frames: int | None = None
    refusal: Exception | None = None

    def ask(self, metadata: VideoMetadata) -> np.ndarray:
        self.num_frames = metadata.total_num_frames
        try:
            self.indices = _as_indices(self.choose(metadata))
        except Exception as error:  # it may be the number that is wrong
            self.refusal = error
        return self.indices


def _decode_sampled(
    source: Source, clip: Clip, choose: Callable[[VideoMetadata], Any], finish: Finish | None, strict: bool
) -> tuple[np.ndarray, _Pass]:
    """Choose by the number of packets and decode; where the decoder gives another number, choose and decode again."""
    choice = _Choice(choose)
    if clip.start is None and source.size <= MAX_AHEAD:
        found, _ = _decode_from(source, clip, choice, finish, 0)
    else:
        found = _decode(source, clip, choice.ask(_scan(source, clip).metadata("pyav")), finish, strict)
    if found.num_frames != choice.num_frames and found.num_frames:
        indices = _as_indices(choose(found.metadata("pyav")))
        return indices, _decode(source, clip, indices, finish, strict)
    if choice.refusal is not None and found.num_frames:
        raise choice.refusal
    return choice.indices, found


def _scan(source: Source, clip: Clip, evidence: "_SeekEvidence | None" = None) -> _Pass:
    """Count the packets that should give a frame of the clip, decoding the first frame only."""
    found, first = _Pass(), None
    with open_video(source) as video:
        with suppress(Exception):  # decoding will say why
            for packet in video.packets():
                if first is None and (first := next(iter(packet.decode()), None)) is not None:
                    found.look(Picture(first, video.stream.sample_aspect_ratio))
                if is_flush(packet):
                    continue
                if evidence is not None:
                    evidence.add(packet)
                if not packet.is_discard and clip.is_over(video.clock.decoded_at(packet)):
                    break  # what is decoded later is shown later
                found.num_frames += expected_frames(packet, video.clock, clip)
        found.fps = video.clock.fps
        if evidence is not None and first is not None:
            evidence.weigh(video, first)
    return found


def _fresh_start(source: Source, clip: Clip) -> int:
    """How many packets come before the last IDR picture from which decoding gives all of a late clip; 0 if unknown.

    An IDR picture refers to nothing before it, and every packet before it must be shown before the clip. Parameter
    sets may come anywhere, so the packets are not left out: the decoder reads them, but decodes no picture.
    """
    if not clip.start:
        return 0
    with open_video(source) as video:
        if not _has_lengths(video.stream):
            return 0
        last = 0
        with suppress(Exception):  # decoding will say why
            for number, packet in enumerate(video.packets()):
                if is_flush(packet) or packet.pts is None:
                    return 0
                seconds = video.clock.seconds(packet)
                if seconds <= clip.start and _is_fresh(_unit_heads(packet)):
                    last = number
                if seconds >= clip.start:
                    return last
    return 0


def _has_lengths(stream: av.VideoStream) -> bool:
    """Whether this is H.264 as units behind lengths of four bytes, by its avcC record (ISO/IEC 14496-15, 5.3.3.1)."""
    extradata = stream.codec_context.extradata or b""
    return (
        stream.codec_context.name == "h264" and extradata[:1] == b"\1" and len(extradata) > 6 and extradata[4] & 3 == 3
    )


def _unit_heads(packet: av.Packet) -> set[int]:
    """The first bytes of a packet's units: a kind (5 bits), how much others refer to it (2); none if not so."""
    data, heads, at = bytes(packet), set(), 0
    while at + 4 < len(data):
        heads.add(data[at + 4])
        at += 4 + int.from_bytes(data[at : at + 4], "big")
    return heads if at == len(data) else set()


def _is_fresh(heads: set[int]) -> bool:
    """Whether this is an IDR picture."""
    return {head & 31 for head in heads if head & 31 in SLICES} == {IDR_SLICE}


class _SeekEvidence:
    """Whether decoders that seek, and find frames by their time stamps, give those of decoding in order."""

    def __init__(self) -> None:
        self.is_enough = False
        self._sound, self._has_leaves = True, False
        self._times: list[int] = []
        self._fresh: list[bool] = []

    def add(self, packet: av.Packet) -> None:
        """Take the next packet of the video stream."""
        heads = _unit_heads(packet)
        odd = packet.is_discard or packet.is_corrupt or packet.pts is None or packet.has_sidedata("new_extradata")
        # Who seeks past parameter sets misses them.
        self._sound = self._sound and not odd and not any(head & 31 in PARAMETER_SETS for head in heads)
        self._fresh.append(_is_fresh(heads))
        self._has_leaves = self._has_leaves or any(head in SLICES for head in heads)  # nothing refers to these
        self._times.append(packet.pts or 0)

    def weigh(self, video: VideoFile, first: av.VideoFrame) -> None:
        """Decide, after the last packet, with the first frame."""
        times, stream = self._times, video.stream
        order = sorted(range(len(times)), key=times.__getitem__)
        # Stamps in the order of decoding, as some remuxers write them, show no reordering in spite of B pictures; gaps
        # are left by lost packets, without which pictures are not what they were.
        reordering = max((packet - place for place, packet in enumerate(order)), default=0)
        self.is_enough = (
            self._sound
            and "mp4" in video.container.format.name
            and _has_lengths(stream)
            and len(times) == len(set(times)) == stream.frames
            # Who seeks goes by the table of the file: a key picture that is no IDR picture needs earlier ones.
            and self._fresh == [entry.is_keyframe for entry in stream.index_entries]
            and self._fresh[:1] == [True]
            and len({times[later] - times[one] for one, later in pairwise(order)}) <= 1
            and int(self._has_leaves) <= reordering <= stream.codec_context.reorder_depth
            and Picture(first).is_upright
            and first.format.name in ("yuv420p", "yuvj420p")
            and not first.interlaced_frame
        )


def _as_indices(indices: Any) -> np.ndarray:
    """Frame numbers as int64 [t]."""
    array = np.asarray(indices)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"sample must give a flat list of at least one whole number, got {indices!r}.")
    return array.astype(np.int64)


def _in_range(source: Source, indices: np.ndarray | None, num_frames: int) -> np.ndarray:
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


def _decode_by_seeking(
    source: Source, sample: FrameChoice | None, backend: str, finish: Finish | None
) -> tuple[Any, VideoMetadata] | None:
    """The wanted frames from a library that seeks; None wherever they may differ from those of decoding in order."""
    evidence = _SeekEvidence()
    scan = _scan(source, WHOLE, evidence)
    if not evidence.is_enough:
        return None
    indices = (
        _as_indices(sample(scan.metadata(backend)) if callable(sample) else sample) if sample is not None else None
    )
    wanted = _in_range(source, indices, scan.num_frames)
    try:
        images: Any = _SEEKERS[backend](source.rewound(), wanted, scan.num_frames)
    except Exception:  # whatever the library makes of a damaged file, PyAV says how far it goes
        return None
    if finish is not None:
        images = [finish(image, scan.pixel_aspect) for image in images]
    return images, scan.metadata(backend, wanted)


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


__all__ = [
    "BACKENDS",
    "MAX_FRAME_BYTES",
    "Finish",
    "FrameChoice",
    "VideoDecodeError",
    "VideoNotFoundError",
    "decode_video",
    "probe_video",
]
