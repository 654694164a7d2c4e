"""Video decoding: every file gives the frames of a sequential PyAV decode, or one error that names it."""

import csv
import gc
import io
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import threading
import tracemalloc
import warnings
import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from modeling_mote.processing import video_decoding
from modeling_mote.processing.frame_sampling import sample_indices
from modeling_mote.processing.video_decoding import VideoDecodeError, decode_video, probe_video
from modeling_mote.processing.video_file import WHOLE
from modeling_mote.processing.video_source import Source

REPOSITORY = Path(__file__).resolve().parents[2]

# What the manifest of the real clips says of them: how far the damaged ones go, and which are no video.
BREAK_OFF = {"corrupted.mp4": 28, "trunc_avi_SoccerJuggling.avi": 121}
UNREADABLE = {"audio_only_nasa.mp3": "no video stream", "trunc_mp4_SOX5yA1l24A.mp4": "cannot be opened"}

SYNTHETIC = {
    "gop250.mp4": {"gop": 250, "bf": 3},
    "gop12.mp4": {"gop": 12, "bf": 2},
    "no_b_frames.mp4": {"bf": 0},
    "mpeg4.avi": {"codec": "mpeg4", "bf": 2},
    "h264.avi": {},
    "hevc.mp4": {"codec": "libx265", "x265-params": "log-level=none"},
    "vp9.webm": {"codec": "libvpx-vp9", "cpu-used": 8},
    "h264.mkv": {"bf": 2},
    "ten_bits.mp4": {"pix_fmt": "yuv420p10le"},
    "full_range.mp4": {"pix_fmt": "yuvj420p"},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25},
    "transport.ts": {"bf": 2},
    "raw.h264": {"bf": 2},
    "odd_size.mkv": {"size": (50, 66)},
    "one_frame.mp4": {"num_frames": 1},
    "two_frames.avi": {"codec": "mpeg4", "num_frames": 2},
}


def sequential(path: Path) -> list[np.ndarray]:
    """The plainest decode there is: every frame in order up to the first error, as it is stored."""
    frames = []
    with av.open(str(path), metadata_errors="ignore") as container:
        try:
            for frame in container.decode(container.streams.best("video")):
                frames.append(frame.to_ndarray(format="rgb24"))
        except av.FFmpegError:
            pass
    return frames


def uniform(metadata, num_frames: int = 8) -> np.ndarray:
    return sample_indices(metadata.total_num_frames, num_frames)


def assert_exact(video: Path, expected: Sequence[np.ndarray], backend: str = "auto", **options: object) -> None:
    """The count, uniform samples and arbitrary indices all agree with the expected frames, without a warning."""
    n = len(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames, metadata = decode_video(video, uniform, backend=backend, **options)
        assert metadata.total_num_frames == n
        assert metadata.frames_indices == sample_indices(n, 8).tolist()
        assert (metadata.height, metadata.width) == frames.shape[1:3]
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, np.stack([expected[i] for i in metadata.frames_indices]))
        mixed = [n - 1, 0, n // 2, 0]
        frames, metadata = decode_video(video, mixed, backend=backend, **options)
        assert (metadata.total_num_frames, metadata.frames_indices) == (n, mixed)
        np.testing.assert_array_equal(frames, np.stack([expected[i] for i in mixed]))


def patched(path: Path, target: Path, box: bytes, offset: int, data: bytes) -> Path:
    """A copy of an MP4 file with `data` written `offset` bytes after a box's name."""
    content = bytearray(path.read_bytes())
    start = content.index(box) + len(box) + offset
    content[start : start + len(data)] = data
    target.write_bytes(content)
    return target


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Position and size in bytes of each video packet, in the order of the file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


# --- the real clips ---------------------------------------------------------------------------------------------


def test_real_clips(shared: Path) -> None:
    backends = [backend for backend in ("auto", "decord", "torchcodec") if why_it_fails(backend) is None]
    with open(shared / "videos" / "MANIFEST.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 33
    for row, backend in product(rows, backends):
        path = shared / "videos" / row["file"]
        if path.name in UNREADABLE:
            with pytest.raises(VideoDecodeError, match=f"{re.escape(path.name)}.*{UNREADABLE[path.name]}"):
                decode_video(path, uniform, backend=backend)
            continue
        if backend == backends[0]:
            expected = sequential(path)
        assert len(expected) == int(row["frames"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            frames, metadata = decode_video(path, uniform, backend=backend)
        assert metadata.total_num_frames == len(expected), path.name
        assert metadata.fps == pytest.approx(float(row["fps"]), rel=1e-3), path.name
        assert metadata.frames_indices == uniform(metadata).tolist()
        turns = -1 if path.name == "video_90.mov" else 0  # stored lying on its left side
        wanted = np.stack([np.rot90(expected[i], turns) for i in metadata.frames_indices])
        assert np.array_equal(frames, wanted), (path.name, backend)
        assert len(caught) == (path.name in BREAK_OFF), [str(warning.message) for warning in caught]
        if caught:
            assert path.name in str(caught[0].message) and f" {BREAK_OFF[path.name]} " in str(caught[0].message)


def test_real_clips_that_break_off_are_errors_when_strict(shared: Path) -> None:
    for name, count in BREAK_OFF.items():
        with pytest.raises(VideoDecodeError, match=f"{name} breaks off after {count} "):
            decode_video(shared / "videos" / name, uniform, strict=True)
        with pytest.raises(VideoDecodeError, match=f"{name} breaks off after {count} "):
            probe_video(shared / "videos" / name, strict=True)


# --- files of every kind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "decord", "torchcodec"])
@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_files(tmp_path: Path, write_video: Callable[..., Path], name: str, backend: str) -> None:
    skip_unless_it_works(backend)
    path = write_video(tmp_path / name, **{"num_frames": 40, **SYNTHETIC[name]})
    expected = sequential(path)
    assert len(expected) == SYNTHETIC[name].get("num_frames", 40)
    assert_exact(path, expected, backend)
    np.testing.assert_array_equal(decode_video(path, backend=backend)[0], np.stack(expected))
    assert probe_video(path).total_num_frames == len(expected)


def test_decord_decodes_what_it_decodes_exactly_and_pyav_the_rest(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    skip_unless_it_works("decord")
    used = {}
    for name in ("gop250.mp4", "full_range.mp4", "hevc.mp4", "ten_bits.mp4", "mpeg4.avi", "h264.mkv"):
        path = write_video(tmp_path / name, **{"num_frames": 40, **SYNTHETIC[name]})
        used[name] = decode_video(path, uniform, backend="decord")[1].video_backend
    assert used == dict.fromkeys(used, "pyav") | {"gop250.mp4": "decord", "full_range.mp4": "decord"}


@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv", "variable.avi"])
def test_variable_frame_rate(tmp_path: Path, name: str) -> None:
    """In AVI the gaps become empty chunks: the header counts them, and they are no frames."""
    path = tmp_path / name
    rng = np.random.default_rng(0)
    shown_at = np.cumsum(rng.integers(1, 5, 30))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pts in shown_at:
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(pts), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    expected = sequential(path)
    assert len(expected) == 30
    assert_exact(path, expected)


def test_frames_in_order_are_held_once(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "clip.mp4")
    every = np.stack(sequential(path))
    found = video_decoding._decode(Source(path), WHOLE, np.array([0, 3, 5]), None, False)
    given = found.stacked(np.array([0, 3, 5]))
    np.testing.assert_array_equal(given, every[[0, 3, 5]])
    assert all(np.shares_memory(image, given) for image in found.images.values())
    for indices in ([5, 0, 0], [3, 0], [0, 0, 3]):  # in another order, or repeated: copies
        np.testing.assert_array_equal(decode_video(path, indices)[0], every[indices])


def test_a_title_that_is_not_utf8(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = tmp_path / "title.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 64, 48
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"TITLE") == 1
    path.write_bytes(content.replace(b"TITLE", b"\xd3\xd4\xd5\xd6\xd7"))
    assert decode_video(path)[1].total_num_frames == 1


def test_pictures_that_change_size_midway(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    small = write_video(tmp_path / "small.h264", num_frames=5, size=(48, 64), bf=0)
    large = write_video(tmp_path / "large.h264", num_frames=4, size=(96, 128), bf=0)
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    expected = sequential(both)
    assert [frame.shape for frame in expected] == [(48, 64, 3)] * 5 + [(96, 128, 3)] * 4
    frames, metadata = decode_video(both)
    assert frames.shape == (9, 48, 64, 3) and metadata.total_num_frames == 9
    np.testing.assert_array_equal(frames[:5], np.stack(expected[:5]))
    halved = expected[6].reshape(48, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(frames[6] - halved).mean() < 8


def test_an_mp4_with_an_edit_list_is_whole(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "whole.mp4", num_frames=40, fps=10, bf=2)
    version_flags_count, duration, media_time = (
        8,
        *struct.unpack_from(">Ii", path.read_bytes(), offset_of(path, b"elst") + 8),
    )
    for name, edit in {
        "end.mp4": struct.pack(">Ii", duration // 3, media_time),
        "start.mp4": struct.pack(">Ii", duration // 2, media_time * 10),
    }.items():
        edited = patched(path, tmp_path / name, b"elst", version_flags_count, edit)
        expected = sequential(edited)
        assert 0 < len(expected) < 40
        assert_exact(edited, expected)


def offset_of(path: Path, box: bytes) -> int:
    return path.read_bytes().index(box) + len(box)


# --- rotation ---------------------------------------------------------------------------------------------------

ONE = 1 << 16
ROTATIONS = {  # the display matrix's a, b, c, d, and the same with numpy
    "90 clockwise": ((0, 1, -1, 0), lambda frame: np.rot90(frame, k=-1)),
    "180": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, k=2)),
    "90 counter-clockwise": ((0, -1, 1, 0), lambda frame: np.rot90(frame, k=1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    "transposed and turned": ((0, -1, -1, 0), lambda frame: np.rot90(frame.swapaxes(0, 1), k=2)),
    "none": ((1, 0, 0, 1), lambda frame: frame),
}


@pytest.mark.parametrize("backend", ["auto", "decord", "torchcodec"])
@pytest.mark.parametrize("rotation", ROTATIONS)
def test_rotated_files_come_back_upright(
    tmp_path: Path, write_video: Callable[..., Path], rotation: str, backend: str
) -> None:
    skip_unless_it_works(backend)
    (a, b, c, d), turn = ROTATIONS[rotation]
    path = write_video(tmp_path / "lying.mp4", num_frames=10, bf=2)
    matrix = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    turned = patched(path, tmp_path / "turned.mp4", b"tkhd", 40, matrix)
    assert_exact(turned, [turn(frame) for frame in sequential(turned)], backend)
    probed = probe_video(turned)
    assert (probed.height, probed.width) == turn(np.empty((48, 64))).shape


# --- files that break off ---------------------------------------------------------------------------------------


def assert_breaks_off(path: Path, backend: str = "auto") -> None:
    expected = sequential(path)
    assert expected
    message = f"{re.escape(path.name)} breaks off after {len(expected)} "
    with pytest.warns(UserWarning, match=message) as caught:
        frames, metadata = decode_video(path, uniform, backend=backend)
    assert len(caught) == 1
    assert metadata.total_num_frames == len(expected)
    assert metadata.frames_indices == sample_indices(len(expected), 8).tolist()
    np.testing.assert_array_equal(frames, np.stack([expected[i] for i in metadata.frames_indices]))
    with pytest.warns(UserWarning, match=message):
        assert probe_video(path).total_num_frames == len(expected)
    with pytest.raises(VideoDecodeError, match=message):
        decode_video(path, uniform, strict=True)


@pytest.mark.parametrize(
    ("name", "options", "container_options"),
    [
        ("cut.avi", {"codec": "mpeg4", "bf": 2}, {}),
        ("cut_h264.avi", {}, {}),
        ("cut.mp4", {"bf": 2}, {"movflags": "faststart"}),
        ("cut_fragments.mp4", {"bf": 2}, {"movflags": "frag_keyframe+empty_moov"}),
        ("cut.mkv", {"bf": 2}, {}),
        ("cut.webm", {"codec": "libvpx-vp9", "cpu-used": 8}, {}),
    ],
)
def test_cut_files_give_what_is_left(
    tmp_path: Path, write_video: Callable[..., Path], name: str, options: dict, container_options: dict
) -> None:
    path = write_video(tmp_path / ("whole" + Path(name).suffix), num_frames=40, **options)
    if container_options:  # the same packets again, with the index in front
        path = remuxed(path, tmp_path / ("remuxed" + path.suffix), container_options)
    cut = cut_within_packet(path, 24, tmp_path / name)
    assert 15 < len(sequential(cut)) <= 25
    assert_breaks_off(cut)


def cut_within_packet(path: Path, index: int, target: Path) -> Path:
    position, size = packets_of(path)[index]
    target.write_bytes(path.read_bytes()[: position + size // 2 + 8])
    return target


def remuxed(path: Path, target: Path, options: dict[str, str]) -> Path:
    with av.open(str(path)) as source, av.open(str(target), "w", options=options) as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return target


def test_an_mp4_cut_between_two_frames(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    whole = write_video(tmp_path / "whole.mp4", num_frames=40, bf=0)
    path = remuxed(whole, tmp_path / "front.mp4", {"movflags": "faststart"})
    for kept in (20, 39):
        cut = tmp_path / f"cut{kept}.mp4"
        cut.write_bytes(path.read_bytes()[: packets_of(path)[kept][0]])
        assert len(sequential(cut)) == kept
        assert_breaks_off(cut)


@pytest.mark.parametrize("backend", ["auto", "decord", "torchcodec"])
@pytest.mark.parametrize("damaged", [5, 17, 38])
def test_damage_ends_the_video_there(
    tmp_path: Path, write_video: Callable[..., Path], damaged: int, backend: str
) -> None:
    skip_unless_it_works(backend)
    path = write_video(tmp_path / "damaged.mp4", num_frames=40, gop=250)
    position, size = packets_of(path)[damaged]
    content = bytearray(path.read_bytes())
    content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    assert 0 < len(sequential(path)) <= damaged
    assert_breaks_off(path, backend)


# --- files that are no video ------------------------------------------------------------------------------------


def write_unreadable(kind: str, path: Path, write_video: Callable[..., Path]) -> None:
    if kind == "audio only":
        with wave.open(str(path), "wb") as audio:
            audio.setnchannels(1)
            audio.setsampwidth(2)
            audio.setframerate(8000)
            audio.writeframes(bytes(16000))
    elif kind == "cut header":
        path.write_bytes(write_video(path.with_suffix(".whole.mp4")).read_bytes()[:500])
    elif kind == "unknown codec":
        patched(write_video(path.with_suffix(".whole.mp4")), path, b"stsd", 12, b"xyzq")
    elif kind == "nothing decodable":
        whole = write_video(path.with_suffix(".whole.mp4"))
        content = bytearray(whole.read_bytes())
        for position, size in packets_of(whole):
            content[position : position + size] = b"\xff" * size
        path.write_bytes(content)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {"empty": b"", "zeros": bytes(5000), "text": b"no video\n" * 50, "page": b"<html></html>"}[kind]
        )


UNREADABLE_KINDS = {
    "audio only": "no video stream",
    "cut header": "cannot be opened",
    "unknown codec": "no frame can be decoded",
    "nothing decodable": "no frame can be decoded",
    "folder": "is a folder",
    "empty": "is empty",
    "zeros": "cannot be opened",
    "text": "cannot be opened",
    "page": "cannot be opened",
}


@pytest.mark.parametrize("kind", UNREADABLE_KINDS)
def test_unreadable_files_are_one_error_that_names_them(
    tmp_path: Path, write_video: Callable[..., Path], kind: str
) -> None:
    path = tmp_path / "broken.mp4"
    write_unreadable(kind, path, write_video)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (
            decode_video,
            partial(decode_video, sample=uniform),
            partial(decode_video, sample=[0]),
            probe_video,
        ):
            with pytest.raises(VideoDecodeError, match=rf"broken\.mp4.*{UNREADABLE_KINDS[kind]}"):
                read(path)
    if kind != "folder":
        with pytest.raises(VideoDecodeError, match=UNREADABLE_KINDS[kind]):
            decode_video(path.read_bytes())


def test_a_song_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoDecodeError, match=r"song\.mp4 has no video stream"):
        decode_video(path)


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    for read in (decode_video, probe_video):
        with pytest.raises(FileNotFoundError, match=r"absent\.mp4 does not exist") as caught:
            read(tmp_path / "absent.mp4")
        assert isinstance(caught.value, VideoDecodeError)


# --- kinds of input ---------------------------------------------------------------------------------------------


def test_paths_bytes_and_file_objects_give_the_same(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "clip.mp4", bf=2)
    expected = np.stack(sequential(path))
    content = path.read_bytes()
    at_its_end = io.BytesIO(content)
    at_its_end.seek(0, io.SEEK_END)
    with path.open("rb") as file, subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as pipe:
        for video in (str(path), path, content, bytearray(content), at_its_end, file, pipe.stdout):
            np.testing.assert_array_equal(decode_video(video)[0], expected)
        for video in (at_its_end, file):
            np.testing.assert_array_equal(decode_video(video, uniform)[0], expected[sample_indices(16, 8)])
        assert not file.closed and not at_its_end.closed


@pytest.mark.parametrize("name", ["a:b.mp4", "100%d.mp4", "clip one.mp4", "vidéo.mp4", "-i.mp4", "http:clip.mp4"])
def test_odd_file_names(
    tmp_path: Path, write_video: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clip.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert decode_video(name)[1].total_num_frames == 16


@pytest.mark.parametrize("video", [None, 3, ["clip.mp4"], np.zeros((2, 4, 4, 3), np.uint8)])
def test_other_kinds_of_input_are_refused(video: object) -> None:
    with pytest.raises(TypeError, match="a path, an http"):
        decode_video(video)


def test_a_file_open_as_text_is_refused(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    with write_video(tmp_path / "clip.mp4").open() as file, pytest.raises(TypeError, match=r"clip\.mp4.*binary mode"):
        decode_video(file)


def test_urls(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    """In a process of its own, since the tests run with the Hub's client switched off."""
    path = write_video(tmp_path / "clip.mp4")
    (tmp_path / "page.mp4").write_text("<html>Sign in</html>")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = f"""
import sys
from modeling_mote.processing.video_decoding import VideoDecodeError, decode_video
base = "http://127.0.0.1:{server.server_port}/"
print(decode_video(base + "clip.mp4", [0, 15])[0].astype(int).sum())
for url in (base + "page.mp4", base + "absent.mp4", "http://127.0.0.1:9/refused.mp4"):
    try:
        decode_video(url)
    except VideoDecodeError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1"}
    try:
        output = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    finally:
        server.shutdown()
        server.server_close()
    frames = sequential(path)
    assert int(output[0]) == frames[0].astype(int).sum() + frames[15].astype(int).sum()
    text = "\n".join(output[1:])
    assert re.search(r"/page\.mp4 cannot be opened as a video", text)
    assert re.search(r"/absent\.mp4 cannot be downloaded .*404", text)
    assert re.search(r"/refused\.mp4 cannot be downloaded", text)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_url_while_offline_is_one_clear_error() -> None:
    with pytest.raises(VideoDecodeError, match=r"http://example\.org/clip\.mp4 cannot be downloaded .*[Oo]ffline"):
        decode_video("http://example.org/clip.mp4")


# --- choosing frames --------------------------------------------------------------------------------------------


def test_the_sampler_sees_the_decodable_count(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    whole = write_video(tmp_path / "whole.mp4", num_frames=20, fps=5)
    seen = []

    def sample(metadata):
        seen.append((metadata.total_num_frames, metadata.fps, metadata.duration, metadata.height, metadata.width))
        return [0]

    decode_video(whole, sample)
    assert seen == [(20, 5.0, 4.0, 48, 64)]

    position, size = packets_of(whole)[12]
    content = bytearray(whole.read_bytes())
    content[position : position + size] = b"\xff" * size
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    seen.clear()
    with pytest.warns(UserWarning):
        decode_video(damaged, sample)
    decodable = len(sequential(damaged))
    assert [call[0] for call in seen] == [20, decodable] and decodable < 20


def test_a_sampler_may_refuse_a_video_but_only_by_its_true_count(
    tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    def refuse(metadata, count: int):
        if metadata.total_num_frames == count:
            raise KeyError(f"refused {count}")
        return [0]

    whole = write_video(tmp_path / "whole.mp4", num_frames=20)
    with pytest.raises(KeyError, match="refused 20"):
        decode_video(whole, partial(refuse, count=20))
    position, size = packets_of(whole)[12]
    content = bytearray(whole.read_bytes())
    content[position : position + size] = b"\xff" * size
    whole.write_bytes(content)
    with pytest.warns(UserWarning):
        frames, metadata = decode_video(whole, partial(refuse, count=20))
    assert len(frames) == 1 and metadata.total_num_frames < 20


@pytest.mark.parametrize("backend", ["auto", "decord"])
@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 16], r"clip\.mp4 has frames 0 to 15; there is no frame 16"),
        ([-1], r"there is no frame -1"),
        ([], "at least one whole number"),
        ([0.5], "whole number"),
        ([[0, 1]], "flat list"),
    ],
)
def test_bad_indices(
    tmp_path: Path, write_video: Callable[..., Path], indices: list, message: str, backend: str
) -> None:
    skip_unless_it_works(backend)
    path = write_video(tmp_path / "clip.mp4")
    for sample in (indices, lambda _: indices):
        with pytest.raises(ValueError, match=message):
            decode_video(path, sample, backend=backend)


# --- clips of longer files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gop12.mp4", "mpeg4.avi", "h264.mkv", "transport.ts", "raw.h264", "hevc.mp4"])
def test_start_and_end(tmp_path: Path, write_video: Callable[..., Path], name: str) -> None:
    path = write_video(tmp_path / name, **{"num_frames": 40, "fps": 10, **SYNTHETIC[name]})
    expected = sequential(path)
    fps = probe_video(path).fps
    for start, end in [(None, 1.0), (0, 1.0), (1.5, None), (0.9, 2.1), (3.9, 9), (0.35, 0.45)]:
        inside = [
            i for i in range(40) if (start or 0) <= round(i / fps, 6) and (end is None or round(i / fps, 6) < end)
        ]
        assert_exact(path, [expected[i] for i in inside], start=start, end=end)
        assert decode_video(path, start=start, end=end)[1].duration == pytest.approx(len(inside) / fps)


@pytest.mark.parametrize(
    "options",
    [
        {"x264-params": "open-gop=1:keyint=48:bframes=3"},
        {"x264-params": "intra-refresh=1:keyint=48"},
        {"codec": "libx265", "x265-params": "open-gop=1:keyint=48:log-level=none"},
        {"codec": "mpeg4", "bf": 2},
    ],
)
def test_a_clip_late_in_a_long_file(tmp_path: Path, write_video: Callable[..., Path], options: dict) -> None:
    path = write_video(tmp_path / "long.mp4", num_frames=600, fps=25, **options)
    expected = sequential(path)
    for start in (4.04, 9.0, 13.32, 20.96):
        first = round(start * 25)
        assert_exact(path, expected[first : first + 50], start=start, end=start + 2)
        assert_exact(path, expected[first:], start=start)


def test_a_clip_outside_the_file(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "clip.mp4", fps=8)  # 2 s
    with pytest.raises(VideoDecodeError, match=r"clip\.mp4 has no decodable frame between 2 s and the end"):
        decode_video(path, start=2)
    with pytest.raises(VideoDecodeError, match=r"between 60 s and 70 s"):
        decode_video(path, uniform, start=60, end=70)
    for start, end in [(-1, None), (3, 2), (1, 1), (None, 0), (float("nan"), None)]:
        with pytest.raises(ValueError, match="^(start|end) must be"):
            decode_video(path, start=start, end=end)


def test_a_clip_that_ends_before_the_damage_is_whole(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    whole = write_video(tmp_path / "whole.avi", num_frames=40, fps=10, codec="mpeg4")
    path = cut_within_packet(whole, 24, tmp_path / "cut.avi")
    expected = sequential(path)
    assert_exact(path, expected[:10], end=1.0)
    with pytest.warns(UserWarning, match="breaks off"):
        decode_video(path, start=0.5)


# --- backends ---------------------------------------------------------------------------------------------------


def why_it_fails(backend: str) -> str | None:
    """Seeking backends are optional; where one does not work, its error must say so."""
    try:
        decode_video(b"", backend=backend)
    except ImportError as error:
        assert re.fullmatch(rf"backend='{backend}' does not work here \(.+\); available: pyav.*\.", str(error))
        return str(error)
    except VideoDecodeError:
        pass
    return None


def skip_unless_it_works(backend: str) -> None:
    if reason := why_it_fails(backend):
        pytest.skip(reason)


def test_backends_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, pyav, decord, torchcodec, got 'opencv'"):
        decode_video(b"", backend="opencv")


@pytest.mark.slow
def test_a_backend_that_is_not_installed(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    """In a process where neither library can be imported: asked for they are refused, otherwise not missed."""
    path = write_video(tmp_path / "clip.mp4")
    program = f"""
import sys
sys.modules["decord"] = sys.modules["torchcodec"] = None
from modeling_mote.processing.video_decoding import decode_video
print(decode_video({str(path)!r})[1].video_backend)
for backend in ("decord", "torchcodec"):
    try:
        decode_video({str(path)!r}, backend=backend)
    except ImportError as error:
        print(error)
"""
    lines = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[0] == "pyav"
    for backend, line in zip(("decord", "torchcodec"), lines[1:], strict=True):
        assert re.fullmatch(rf"backend='{backend}' does not work here \(.+\); available: pyav\.", line)


# --- resources --------------------------------------------------------------------------------------------------


def test_only_the_wanted_frames_are_held(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    path = write_video(tmp_path / "long.mp4", num_frames=200, size=(240, 320))
    one = 240 * 320 * 3
    tracemalloc.start()
    try:
        frames, _ = decode_video(path, uniform)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert frames.nbytes == 8 * one
    assert peak < 20 * one


def test_500_opens_leave_nothing_behind(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    whole = write_video(tmp_path / "whole.mp4", bf=2)
    cut = cut_within_packet(write_video(tmp_path / "whole.avi", codec="mpeg4"), 10, tmp_path / "cut.avi")
    text = tmp_path / "text.mp4"
    text.write_text("no video")

    def decode_all() -> None:
        for video in (whole, whole.read_bytes(), cut, text):
            try:
                decode_video(video, uniform)
            except VideoDecodeError:
                assert video == text

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc to count open files and memory in")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(25):
            decode_all()
        before = descriptors(), resident()
        for _ in range(125):
            decode_all()
    assert descriptors() == before[0]
    assert resident() - before[1] < 8 * 2**20


def test_no_thread_outlives_a_decode(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    """Neither a thread nor what would stop one: a forked worker that collects it waits for ever."""
    path = write_video(tmp_path / "clip.mp4", size=(240, 320), bf=2)

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc to count threads in")
    decode_video(path, uniform)
    gc.collect()
    gc.disable()
    try:
        before = threads()
        for _ in range(5):
            decode_video(path, uniform)
            decode_video(path)
        assert threads() == before
    finally:
        gc.enable()


def test_forked_workers_decode_what_the_parent_has_opened(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    paths = [write_video(tmp_path / f"{i}.mp4", num_frames=20 + i, bf=2) for i in range(8)]
    expected = [decode_video(path, uniform)[0].astype(int).sum() for path in paths]
    with pytest.raises(VideoDecodeError):
        decode_video(b"no video")
    loader = torch.utils.data.DataLoader(
        [str(path) for path in paths],
        batch_size=None,
        num_workers=2,
        collate_fn=total,
        multiprocessing_context=multiprocessing.get_context("fork"),
        timeout=60,
    )
    for _ in range(2):
        assert [int(value) for value in loader] == expected


def total(path: str) -> int:
    return int(decode_video(path, uniform)[0].astype(int).sum())


def test_nothing_is_printed(
    tmp_path: Path, write_video: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=40)
    content = bytearray(path.read_bytes())
    for position, size in packets_of(path)[10:12]:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    capfd.readouterr()
    level = av.logging.get_level()
    with pytest.warns(UserWarning, match="breaks off"):
        decode_video(path, uniform)
    assert capfd.readouterr() == ("", "")
    assert av.logging.get_level() == level
