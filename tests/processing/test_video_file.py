"""Clocks, damage, side data, colours, sizes of files from the field: what can be decoded is; what is odd is said."""

import io
import os
import re
import struct
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from modeling_mote.processing import VideoDecodeError, decode_video, probe_video, video_decoding, video_file
from modeling_mote.processing.video_file import Clip, open_video
from modeling_mote.processing.video_source import Source

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (48, 64)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def recording(
    kind: str,
    colour: tuple[int, int, int],
    codec: str = "libx264",
    num_frames: int = 100,
    start: float = 0,
    fps: int = 10,
) -> bytes:
    """A recording of one colour whose clock begins at `start` seconds."""
    content = io.BytesIO()
    with av.open(content, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=fps, options={"bf": "2", "g": "20"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(plain(colour), format="rgb24")
            frame.pts, frame.time_base = index + int(start * fps), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return content.getvalue()


def times(content: bytes | Path) -> tuple[list[float], video_file.VideoFile]:
    with open_video(Source(content)) as video:
        return [seconds for seconds, _ in video.frames()], video


def assert_even(content: bytes | Path, num_frames: int, fps: float) -> None:
    found, video = times(content)
    assert found == pytest.approx([number / fps for number in range(num_frames)], abs=2e-3)
    assert video.clock.fps == pytest.approx(fps, rel=2e-3)
    assert video.clock.end == pytest.approx(num_frames / fps, abs=0.01)


# --- clocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("starts", [(0, 0), (100, 0), (0, 100), (3, 5000)])
@pytest.mark.parametrize(("kind", "codec", "fps"), [("mpegts", "libx264", 10), ("mpeg", "mpeg2video", 25)])
def test_a_clock_that_starts_again_goes_on(kind: str, codec: str, fps: int, starts: tuple[float, float]) -> None:
    content = b"".join(
        recording(kind, colour, codec, start=start, fps=fps) for colour, start in zip((RED, BLUE), starts, strict=True)
    )
    assert_even(content, 200, fps)
    with pytest.warns(
        UserWarning, match="has a clock that starts again once, first after [39].[0-9]+ s; its times go on"
    ):
        metadata = probe_video(content)
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (200, fps, 200 / fps)
    with pytest.warns(UserWarning, match="starts again"):
        frames, _ = decode_video(content, start=110 / fps, end=150 / fps)
    assert len(frames) == 40 and (np.abs(frames.astype(int) - BLUE) < 6).all()
    with pytest.warns(UserWarning, match="starts again"):
        frames, _ = decode_video(content, [0, 99, 100, 199])
    assert [int(frame[0, 0, 2]) > 128 for frame in frames] == [False, False, True, True]


def test_a_live_flv_and_three_short_recordings() -> None:
    first, second = (recording("flv", colour) for colour in (RED, BLUE))
    assert_even(first + second[13:], 200, 10)
    assert_even(b"".join(recording("mpegts", RED, num_frames=8) for _ in range(3)), 24, 10)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("bf", [0, 2])
def test_an_avi_with_dropped_frames_lasts_as_long_as_it_says(tmp_path: Path, codec: str, bf: int) -> None:
    path = tmp_path / "dropped.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"bf": str(bf)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for tick in range(0, 500, 5):
            frame = av.VideoFrame.from_ndarray(plain(RED if tick < 250 else BLUE), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_even(path, 100, 5)
        frames, metadata = decode_video(path, start=12, end=16)
        assert len(frames) == 20 and (np.abs(frames.astype(int) - BLUE) < 6).all() and metadata.fps == 5
        assert probe_video(path).duration == 20


def test_a_browsers_recording_has_the_rate_of_its_frames(tmp_path: Path) -> None:
    """WebM as MediaRecorder writes it: no rate in the header, uneven times, so FFmpeg guesses 60 or worse."""
    path, draw, time = tmp_path / "live.webm", np.random.default_rng(0), 0
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=30, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(200):
            frame = av.VideoFrame.from_ndarray(plain((index, index, index)), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
            time += int(draw.choice([16, 17, 33, 34, 50, 66, 100]))
        container.mux(stream.encode())
    content, count = re.subn(  # the default duration becomes an empty element
        rb"\x23\xe3\x83([\x81-\x88])",
        lambda match: b"\xec" + bytes([0x80 | (match[1][0] & 15) + 2]) + b"\0\0",
        path.read_bytes(),
        count=1,
    )
    assert count == 1
    metadata = probe_video(content)
    assert metadata.total_num_frames == 200
    assert metadata.fps == pytest.approx(200 / (time / 1000), rel=0.02)
    assert metadata.duration == pytest.approx(time / 1000, rel=0.02)
    seen = []
    decode_video(content, lambda metadata: seen.append(metadata) or [0])
    assert [each.fps for each in seen] == [metadata.fps]


def test_time_never_goes_back(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    """Stamps in the order of decoding, as remuxing H.264 from AVI gives them: frames come out as 0, 3, 1, 2."""
    path = write_video(tmp_path / "b.mp4", num_frames=30, bf=3, gop=30, **{"x264-params": "b-adapt=0:scenecut=0"})
    content = io.BytesIO()
    with av.open(str(path)) as source, av.open(content, "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(each for each in source.demux(video=0) if each.size):
            packet.pts = packet.dts = int(number / 8 / packet.time_base)
            packet.stream = stream
            target.mux(packet)
    found, video = times(content.getvalue())
    assert len(found) == 30 and found == sorted(found) and found[-1] == pytest.approx(29 / 8, abs=0.4)
    assert video.clock.num_late > 5
    with pytest.warns(UserWarning, match="frames stamped earlier than the one before"):
        decode_video(content.getvalue(), [0])


# --- damage -----------------------------------------------------------------------------------------------------


def noisy(path: Path, write_video: Callable[..., Path], num_frames: int = 80, **options: object) -> Path:
    base = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    return write_video(path, frames=[np.roll(base, 3 * index, 1) for index in range(num_frames)], **options)


def test_pictures_that_the_decoder_flags_are_told(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = noisy(tmp_path / "damaged.mp4", write_video, gop=25, bf=0)
    with av.open(str(path)) as container:
        spans = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in spans[30:33]:  # the middle of the slices, so that their heads can be read
        content[position + size // 2 : position + size - 4] = b"\xff" * (size - size // 2 - 4)
    frames, video = times(bytes(content))
    assert len(frames) == 80 and video.breakage is None and 3 <= video.num_damaged < 80
    with pytest.warns(
        UserWarning, match="has [0-9]+ damaged frames of 80 .the first is frame 30.; they are used"
    ) as said:
        assert probe_video(bytes(content)).total_num_frames == 80
    assert len(said) == 1
    with pytest.raises(VideoDecodeError, match="damaged frames of 80"):
        probe_video(bytes(content), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_video(bytes(content), end=2.0)  # before the damage


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_damaged_files_are_the_same_on_one_and_on_two_cores(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = noisy(tmp_path / "slices.mp4", write_video, gop=25, **{"x264-params": "slices=4"})
    content = bytearray(path.read_bytes())
    for place in range(3000, len(content) - 5000, 4001):
        content[place] ^= 0x55
    path.write_bytes(content)
    cores = os.sched_getaffinity(0)
    decoded = []
    try:
        for some in ({min(cores)}, cores):
            os.sched_setaffinity(0, some)
            with open_video(Source(path)) as video:
                decoded.append([video.image(frame).tobytes() for _, frame in video.frames()])
                assert video.stream.codec_context.thread_count == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert decoded[0] == decoded[1] and len(decoded[0]) > 1


def test_a_whole_flv_with_a_senseless_duration_is_whole() -> None:
    content = bytearray(recording("flv", RED))
    place = content.index(b"duration") + 9
    content[place : place + 8] = struct.pack(">d", 2147483.63)
    assert probe_video(bytes(content), strict=True).total_num_frames == 100
    with pytest.warns(UserWarning, match="breaks off after [0-9]+ decodable frames .it ends at"):
        probe_video(bytes(content[: len(content) // 2]))


@pytest.mark.parametrize("which", [-1, 7])
def test_an_mp4_with_an_empty_sample_is_whole(tmp_path: Path, which: int) -> None:
    """Each picture in a chunk of its own, between pieces of sound, so that nothing else moves."""
    path = tmp_path / "empty.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain((index, 0, 0)), format="rgb24")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
            silence.sample_rate, silence.pts = 8000, 1000 * index
            container.mux(sound.encode(silence))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    place = next(at.start() for at in re.finditer(b"stsz", content) if not any(content[at.end() + 4 : at.end() + 8]))
    count = int.from_bytes(content[place + 12 : place + 16], "big")
    assert count == 16
    entry = place + 16 + 4 * (which % count)
    content[entry : entry + 4] = bytes(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe_video(bytes(content), strict=True).total_num_frames == 15


# --- what PyAV has no words for ---------------------------------------------------------------------------------


def motion_jpeg(path: Path, orientation: int | None = None) -> Path:
    """Motion JPEG whose pictures carry EXIF; a white corner, top left as stored."""
    exif = Image.Exif()
    exif[271] = "Camera"
    if orientation:
        exif[0x0112] = orientation
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for index in range(16):
            picture, content = Image.new("RGB", (64, 48)), io.BytesIO()
            picture.paste((255, 255, 255), (0, 0, 16, 16))
            picture.save(content, "JPEG", exif=exif)
            packet = av.Packet(content.getvalue())
            packet.pts = packet.dts = index
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 10), stream, True
            container.mux(packet)
    return path


def test_side_data_that_pyav_does_not_know(tmp_path: Path) -> None:
    path = motion_jpeg(tmp_path / "exif.avi")
    assert probe_video(path).total_num_frames == 16
    assert decode_video(path, lambda metadata: [0, 15])[0].shape == (2, 48, 64, 3)
    assert decode_video(path, [3])[0][0, :8, :8].min() > 200


@pytest.mark.parametrize(
    ("orientation", "corner"), [(3, "bottom right"), (2, "top right"), (6, "top right"), (8, "bottom left")]
)
def test_the_turn_among_unknown_side_data_is_seen(tmp_path: Path, orientation: int, corner: str) -> None:
    frames, metadata = decode_video(motion_jpeg(tmp_path / "turned.avi", orientation), [0])
    if frames.shape[1:3] == (48, 64) and orientation > 4:
        pytest.skip("this FFmpeg does not read the orientation of EXIF")
    rows = slice(8) if "top" in corner else slice(-8, None)
    columns = slice(8) if "left" in corner else slice(-8, None)
    assert frames[0, rows, columns].min() > 200 and frames[0].mean() < 40


@pytest.mark.parametrize("matrix", [b"bt2020c", b"reserved"])
@pytest.mark.parametrize("sample", [None, [0, 15], lambda metadata: [0, 15]])
def test_colours_that_swscale_does_not_know(tmp_path: Path, matrix: bytes, sample: object) -> None:
    path = tmp_path / "tagged.mp4"
    tags = "colormatrix=bt2020c" if matrix == b"bt2020c" else "colorprim=bt709:transfer=bt709:colormatrix=bt709"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"x264-params": tags})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plain((9 * index,) * 3), format="rgb24")))
        container.mux(stream.encode())
    frames, _ = decode_video(path, sample)
    assert np.abs(frames[[0, -1]].mean((1, 2, 3)) - [0, 135]).max() < 3


def test_colour_tags_that_are_reserved(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    """As the decoder gives them: frames whose tags have no meaning."""
    path = write_video(tmp_path / "clip.mp4")
    with open_video(Source(path)) as video:
        for _, frame in video.frames():
            expected = video.image(frame)
            frame.colorspace, frame.color_trc, frame.color_primaries = 3, 3, 3
            assert np.abs(video.image(frame).astype(int) - expected).max() < 3


def test_streams_that_begin_later(tmp_path: Path) -> None:
    """A program stream in which sound begins where FFmpeg no longer looks for new streams."""
    noise, content = np.random.default_rng(0), io.BytesIO()
    with av.open(content, "w", format="mpeg") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"qmin": "1", "qmax": "1"})
        stream.bit_rate = 20_000_000
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(170):
            image = noise.integers(0, 255, (240, 320, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    sound = io.BytesIO()
    with av.open(sound, "w", format="mpeg") as container:
        stream = container.add_stream("mp2", rate=44100, layout="mono")
        for index in range(40):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 44100, 1152 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(content.getvalue()) > 6_000_000
    late = content.getvalue() + sound.getvalue() + content.getvalue()
    with av.open(io.BytesIO(late)) as container:
        assert len(container.streams) == 1
    with pytest.warns(UserWarning, match="starts again"):
        assert probe_video(late).total_num_frames == 340


# --- pictures, and sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["still.png", "still.jpg", "still.bmp", "still.webp", "still.gif", "still.tiff"])
def test_a_still_picture_is_no_video_unless_asked_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.new("RGB", (64, 48), (200, 10, 10)).save(path)
    for sample in (None, [0], lambda metadata: [0]):
        with pytest.raises(VideoDecodeError, match=f"{name} is a still picture, not a video; pass still=True"):
            decode_video(path, sample)
        assert decode_video(path, sample, still=True)[0].shape == (1, 48, 64, 3)
    with pytest.raises(VideoDecodeError, match="is a still picture"):
        probe_video(path.read_bytes())


def test_a_gif_that_moves_is_a_video(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (64, 48), (30 * index, 10, 200)) for index in range(8)]
    pictures[0].save(tmp_path / "moves.gif", save_all=True, append_images=pictures[1:], duration=100)
    frames, metadata = decode_video(tmp_path / "moves.gif")
    assert len(frames) == 8 and metadata.fps == pytest.approx(10)
    assert np.abs(frames[:, 0, 0, 0].astype(int) - 30 * np.arange(8)).max() < 10


def test_pictures_that_are_too_large_are_refused_before_they_are_made() -> None:
    header = struct.pack("<6sHHBBB", b"GIF89a", 16000, 16000, 0x80, 0, 0) + bytes(6)
    picture = b"\x2c" + struct.pack("<4HB", 0, 0, 16000, 16000, 0) + b"\x02\x02\x44\x01\x00"
    gif = header + picture * 8 + b"\x3b"  # a picture takes 1 GB
    before = peak_memory()
    with pytest.raises(VideoDecodeError, match=f"more than {video_file.MAX_PIXELS} pixels"):
        decode_video(gif)
    assert peak_memory() - before < 200 * 2**20


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc to read the memory from")
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def test_the_limits_can_be_moved(
    tmp_path: Path, write_video: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4")  # 16 frames of 48 × 64
    with monkeypatch.context() as patch:
        patch.setattr(video_file, "MAX_PIXELS", 3000)
        with pytest.raises(VideoDecodeError, match=r"clip\.mp4 has pictures of 64 × 48 pixels.*MOTE_MAX_PIXELS"):
            decode_video(path)
    with monkeypatch.context() as patch:
        patch.setattr(video_decoding, "MAX_FRAME_BYTES", 8 * 48 * 64 * 3)
        for sample in (None, list(range(9)), [0] * 9):
            with pytest.raises(VideoDecodeError, match=r"clip\.mp4: the frames asked for.*MOTE_MAX_FRAME_BYTES"):
                decode_video(path, sample)
        assert decode_video(path, list(range(8)))[0].shape[0] == 8
        small, _ = decode_video(path, finish=lambda image, aspect: image[::2, ::2].copy())
        assert len(small) == 16


# --- one pass ---------------------------------------------------------------------------------------------------


def test_what_a_reader_raises_is_an_error_of_its_file(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    content = write_video(tmp_path / "clip.avi", num_frames=60, codec="mpeg4", gop=1).read_bytes()

    class Failing(io.BytesIO):
        name = "network.avi"

        def read(self, size: int = -1) -> bytes:
            if self.tell() > len(content) // 2:
                raise RuntimeError("the line is dead")
            return super().read(size)

    with pytest.raises(VideoDecodeError, match=r"network\.avi.*the line is dead"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decode_video(Failing(content), strict=True)


def test_a_clip_is_given_as_it_is_read(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "clip.mkv", num_frames=40, fps=10)
    with open_video(Source(path)) as video:
        found = [(seconds, video.image(frame)) for seconds, frame in video.frames(Clip(1.0, 2.0))]
        video.report()
    assert [seconds for seconds, _ in found] == pytest.approx([1 + number / 10 for number in range(10)])
    np.testing.assert_array_equal(np.stack([image for _, image in found]), decode_video(path)[0][10:20])
