"""Decoding only what the wanted frames need gives what decoding everything gives, also in damaged files."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from modeling_mote.processing import VideoDecodeError, decode_video, sample_indices, video_decoding
from modeling_mote.processing.h264_packets import H264Packets

AVCC = bytes([1, 100, 0, 10, 255, 225, 0])  # four bytes before each unit

IDR, REFERRED, ALONE = 0x65, 0x41, 0x01  # first bytes of units: an IDR picture, a P and a B picture


def unit(*content: int) -> bytes:
    return len(content).to_bytes(4, "big") + bytes(content)


def packets(heads: list[int], times: list[int]) -> H264Packets:
    found = H264Packets(AVCC)
    for head, time in zip(heads, times, strict=True):
        found.add(unit(head, 7), time)
    return found


def test_only_what_a_picture_needs_is_decoded() -> None:
    #                 0    1         2      3         4    5
    found = packets([IDR, REFERRED, ALONE, REFERRED, IDR, REFERRED], [0, 2, 1, 3, 4, 5])
    assert found.sound
    assert found.display_order(1) == [0, 2, 1, 3, 4, 5]
    assert found.needed([3]) == [[0, 1, 3]]
    assert found.needed([2]) == [[0, 1, 2]]
    assert found.needed([0, 5]) == [[0], [4, 5]]
    assert found.needed([]) == []


def test_an_order_that_a_decoder_may_not_keep_is_not_trusted() -> None:
    assert packets([IDR, REFERRED, ALONE], [0, 2, 1]).display_order(0) is None  # it holds no picture back
    assert packets([IDR, REFERRED, ALONE], [0, 2, 2]).display_order(4) is None  # two at one time
    assert packets([IDR, REFERRED, IDR], [0, 3, 2]).display_order(4) is None  # shown after the next IDR picture


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\0",
        unit(IDR, 1)[:-1],  # cut
        unit(IDR, 1) + b"\0\0",
        unit(IDR | 0x80, 1),  # a bit that is never set
        unit(0x00, 1),  # a unit of no kind
        unit(0x06, 1),  # no picture
        unit(IDR, 1) + unit(REFERRED, 1),
    ],
)
def test_damaged_packets_are_not_trusted(data: bytes) -> None:
    found = H264Packets(AVCC)
    found.add(data, 0)
    assert not found.sound


def test_streams_that_are_not_understood_are_not_trusted() -> None:
    assert not H264Packets(b"").sound
    assert not H264Packets(b"\0\0\0\1\x67\x64\0").sound  # start codes in place of lengths
    assert not packets([REFERRED], [0]).sound  # it starts within a group
    untimed = H264Packets(AVCC)
    untimed.add(unit(IDR, 1), None)
    assert not untimed.sound
    changing = H264Packets(AVCC)
    for parameters in (1, 2):
        changing.add(unit(0x67, parameters) + unit(IDR, 7), parameters)
    assert not changing.sound


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """A function that decodes a file in order, whatever it is."""

    def decode(*args: object, **options: object) -> tuple:
        with monkeypatch.context() as patch:
            patch.setattr(video_decoding, "_decode_needed", lambda *_: None)
            return decode_video(*args, **options)

    return decode


def uniform(metadata) -> np.ndarray:
    return sample_indices(metadata.total_num_frames, 8)


ENCODINGS: dict[str, dict] = {
    "long_gop.mp4": {"gop": 250, "bf": 3},
    "short_gop.mp4": {"gop": 6, "bf": 2},
    "pyramid.mkv": {"gop": 30, "bf": 8, "x264-params": "b-pyramid=normal:b-adapt=0"},
    "no_pyramid.mov": {"gop": 30, "bf": 3, "x264-params": "b-pyramid=none:b-adapt=0"},
    "intra.mp4": {"gop": 1},
    "open_gop.mp4": {"gop": 10, "bf": 3, "x264-params": "open-gop=1:scenecut=0"},
    "intra_refresh.mp4": {"gop": 10, "x264-params": "intra-refresh=1"},
    "slices.mp4": {"gop": 12, "x264-params": "slices=4"},
    "interlaced.mp4": {"gop": 12, "bf": 2, "x264-params": "tff=1"},
    "ten_bits.mkv": {"gop": 12, "bf": 2, "pix_fmt": "yuv420p10le"},
    "baseline.mp4": {"gop": 12, "profile": "baseline", "refs": 4},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_files_decoded_in_part_are_exact(
    name: str, tmp_path: Path, write_video: Callable, in_order: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / name, num_frames=70, **ENCODINGS[name])
    choices = [uniform, [69], [0], [33, 2, 33], {"start": 3.0, "end": 5.5}, {"start": 6.0}]
    for choice in choices:
        options = choice if isinstance(choice, dict) else {}
        sample = uniform if options else choice
        expected, expected_facts = in_order(path, sample, **options)
        with monkeypatch.context() as patch:
            if name not in ("open_gop.mp4", "intra_refresh.mp4"):  # those have to be decoded from the first frame
                patch.setattr(video_decoding, "_decode", None)
            frames, facts = decode_video(path, sample, **options)
        np.testing.assert_array_equal(frames, expected)
        assert facts == expected_facts


def outcome(decode: Callable, content: bytes) -> tuple:
    """Frames, count and number of warnings, or the error."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            frames, facts = decode(content, uniform)
        except VideoDecodeError as error:
            return (str(error),)
    return frames.tobytes(), facts.total_num_frames, [str(warning.message) for warning in said]


@pytest.mark.parametrize("name", ["long_gop.mp4", "short_gop.mp4", "pyramid.mkv"])
def test_damaged_files_are_as_if_decoded_in_order(
    name: str, tmp_path: Path, write_video: Callable, in_order: Callable
) -> None:
    rng = random.Random(0)
    noise = np.random.default_rng(0).integers(0, 255, (70, 48, 64, 3), dtype=np.uint8)
    good = write_video(tmp_path / name, frames=noise, **ENCODINGS[name]).read_bytes()
    with av.open(str(tmp_path / name)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    kinds = set()
    for index in range(40):
        content, place = bytearray(good), rng.randrange(places[0], places[-1])
        length = rng.choice((1, 1, 16, 300))
        content[place : place + length] = bytes(length) if index % 2 else rng.randbytes(length)
        damaged = bytes(content[:place]) if index % 10 == 9 else bytes(content)
        found = outcome(decode_video, damaged)
        assert found == outcome(in_order, damaged)
        kinds.add(len(found))
    assert 3 in kinds


def test_a_real_long_clip_is_decoded_in_part(
    shared: Path, in_order: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared / "videos" / "skateboarding_dog.mp4"
    expected, facts = in_order(path, uniform)
    monkeypatch.setattr(video_decoding, "_decode", None)
    frames, metadata = decode_video(path, uniform)
    np.testing.assert_array_equal(frames, expected)
    assert metadata == facts


def test_strict_decodes_everything(tmp_path: Path, write_video: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4")
    monkeypatch.setattr(video_decoding, "_decode_needed", None)
    assert decode_video(path, uniform, strict=True)[1].total_num_frames == 16
