"""Whatever skips packets gives what decoding in order gives, in files that are built oddly or damaged in every way.

The oddities are those of remuxers and restarted encoders: time stamps in the order of decoding, lost packets, lost IDR
pictures, parameter sets that change on the way, key flags that lie, bytes that changed.
"""

import io
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from modeling_mote.processing import VideoDecodeError, decode_video, sample_indices, video_decoding
from modeling_mote.processing.video_file import Clip
from modeling_mote.processing.video_source import Source


class Unit(NamedTuple):
    """A packet to write."""

    data: bytes
    pts: int
    dts: int
    is_key: bool


ENCODINGS: dict[str, dict] = {
    "short_gop.mp4": {"gop": 6, "bf": 2},
    "pyramid.mkv": {"gop": 12, "bf": 5, "x264-params": "b-pyramid=normal:b-adapt=0"},
    "open_gop.mp4": {"gop": 10, "bf": 3, "x264-params": "open-gop=1:scenecut=0:b-adapt=0"},
    "intra_refresh.mp4": {"gop": 10, "x264-params": "intra-refresh=1"},
    "baseline.mkv": {"gop": 10, "profile": "baseline", "refs": 4},
}


def read(path: Path) -> tuple[list[Unit], bytes]:
    """A file's packets, their time stamps as numbers of frames from 0 on, and its decoder configuration."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        extradata = bytes(stream.codec_context.extradata)
    order = sorted(packet.pts for packet in packets)
    return [
        Unit(bytes(packet), order.index(packet.pts), number - 5, packet.is_keyframe)
        for number, packet in enumerate(packets)
    ], extradata


def write(units: list[Unit], template: Path) -> bytes:
    """A file of these packets, at 8 frames a second."""
    content, kind = io.BytesIO(), "mp4" if template.suffix == ".mp4" else "matroska"
    with av.open(str(template)) as source, av.open(content, "w", format=kind) as target:
        like = source.streams.video[0]
        stream, tick = target.add_stream_from_template(like), 1 / 8 / like.time_base
        for unit in units:
            packet = av.Packet(unit.data)
            packet.pts, packet.dts, packet.duration = int(unit.pts * tick), int(unit.dts * tick), int(tick)
            packet.time_base, packet.is_keyframe, packet.stream = like.time_base, unit.is_key, stream
            target.mux(packet)
    return content.getvalue()


def parameter_sets(extradata: bytes) -> bytes:
    """The SPS and PPS of an avcC record, as units behind their lengths."""
    size = int.from_bytes(extradata[6:8], "big")
    rest = extradata[9 + size :]
    pps = rest[2 : 2 + int.from_bytes(rest[:2], "big")]
    sps = extradata[8 : 8 + size]
    return len(sps).to_bytes(4, "big") + sps + len(pps).to_bytes(4, "big") + pps


def oddities(units: list[Unit], others: list[Unit], sets: bytes) -> Iterator[tuple[str, list[Unit]]]:
    """The packets built oddly in each way; `others` are the same pictures under other parameter sets."""
    yield "as it is", units
    yield "stamps in the order of decoding", [each._replace(pts=number) for number, each in enumerate(units)]
    yield "every 13th lost", [each for number, each in enumerate(units) if number % 13 != 5]
    yield "begins without an IDR picture", units[1:]
    yield "every packet called a key", [each._replace(is_key=True) for each in units]
    swapped = list(units)
    swapped[20], swapped[21] = units[20]._replace(pts=units[21].pts), units[21]._replace(pts=units[20].pts)
    yield "two stamps swapped", swapped
    later = [each._replace(pts=each.pts + 40, dts=each.dts + 40) for each in units]
    yield "a gap in time", units[:36] + later[36:]
    keys = [number for number, each in enumerate(units) if each.is_key]
    if len(keys) < 4:
        return
    yield "an IDR picture lost", [each for number, each in enumerate(units) if number != keys[2]]
    half = keys[2]
    if half < len(others) and others[half].is_key:
        first, last = others[half], units[half - 1]
        yield "parameter sets change", [*units[:half], first._replace(data=sets + first.data), *others[half + 1 :]]
        early = [*units[: half - 1], last._replace(data=last.data + sets), *others[half:]]
        yield "parameter sets change behind a picture", early


def mutants(path: Path, write_video: Callable, options: dict) -> Iterator[tuple[str, bytes]]:
    units, _ = read(path)
    params = f"{options.get('x264-params', '')}:8x8dct=0".strip(":")
    changed = options | {"qp": 38, "coder": 0, "x264-params": params}
    others, extradata = read(write_video(path.with_name("other" + path.suffix), num_frames=70, **changed))
    for name, odd in oddities(units, others, parameter_sets(extradata)):
        yield name, write(odd, path)
    rng, good = random.Random(0), path.read_bytes()
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    for index in range(12):
        content, place = bytearray(good), rng.randrange(places[0], places[-1])
        length = rng.choice((1, 1, 16, 300))
        content[place : place + length] = bytes(length) if index % 2 else rng.randbytes(length)
        yield f"damage {index}", bytes(content[:place]) if index % 10 == 9 else bytes(content)


def in_order(content: bytes) -> list[np.ndarray]:
    """The plainest decode there is, up to the first error."""
    frames: list[np.ndarray] = []
    with suppress(av.FFmpegError), av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24"))
    return frames


def outcome(content: bytes, *args: object, **options: object) -> tuple:
    """Frames and count, or the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frames, facts = decode_video(content, *args, **options)
        except VideoDecodeError as error:
            return (str(error),)
    return frames.tobytes(), facts.total_num_frames, facts.fps


def uniform(metadata) -> np.ndarray:
    return sample_indices(metadata.total_num_frames, 8)


@pytest.fixture(scope="module", params=ENCODINGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def odd_files(name: str, tmp_path_factory: pytest.TempPathFactory, write_video: Callable) -> list[tuple[str, bytes]]:
    options = ENCODINGS[name]
    path = write_video(tmp_path_factory.mktemp("odd") / name, num_frames=70, **options)
    return list(mutants(path, write_video, options))


def test_frames_are_those_of_decoding_in_order(odd_files: list[tuple[str, bytes]]) -> None:
    for kind, content in odd_files:
        frames = in_order(content)
        if not frames:
            continue
        for indices in (sample_indices(len(frames), 8).tolist(), [len(frames) - 1, 0]):
            expected = np.stack([frames[index] for index in indices])
            assert outcome(content, indices)[:2] == (expected.tobytes(), len(frames)), kind
        found = outcome(content, uniform)
        expected = np.stack([frames[index] for index in sample_indices(len(frames), 8)])
        assert found[:2] == (expected.tobytes(), len(frames)), kind


def test_late_clips_are_those_of_decoding_in_order(
    odd_files: list[tuple[str, bytes]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    skipped = 0
    fresh_start = video_decoding._fresh_start
    for kind, content in odd_files:
        for options in ({"start": 3.0, "end": 5.5}, {"start": 6.0}, {"start": 4.1}):
            found = outcome(content, uniform, **options)
            with monkeypatch.context() as patch:
                patch.setattr(video_decoding, "_fresh_start", lambda source, clip: 0)
                expected = outcome(content, uniform, **options)
            if "damage" in kind and len(expected) == 1:
                continue  # damage before the clip need not be seen
            assert found == expected, (kind, options)
            skipped += kind == "as it is" and fresh_start(Source(content), Clip(**options)) > 0
    assert (skipped > 0) == (name != "open_gop.mp4")  # which has no IDR picture but the first


@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_libraries_that_seek_give_the_same(odd_files: list[tuple[str, bytes]], backend: str) -> None:
    try:
        decode_video(b"", backend=backend)
    except ImportError as error:
        pytest.skip(str(error))
    except VideoDecodeError:
        pass
    for kind, content in odd_files:
        frames = in_order(content)
        if not frames or "damage" in kind or kind == "two stamps swapped":
            continue  # damage in what they do not decode is not seen
        indices = sample_indices(len(frames), 8).tolist()
        expected = np.stack([frames[index] for index in indices])
        assert outcome(content, indices, backend=backend)[:2] == (expected.tobytes(), len(frames)), kind
