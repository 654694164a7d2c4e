"""Where videos come from: uploads, pipes, URLs of every kind; and what must lead nowhere."""

import gzip
import io
import os
import re
import socket
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import huggingface_hub
import numpy as np
import pytest

from modeling_mote.processing import VideoDecodeError, decode_video, probe_video, video_source
from modeling_mote.processing.video_source import VideoNotFoundError


@pytest.fixture
def clip(tmp_path: Path, write_video: Callable[..., Path]) -> Path:
    """16 frames of MPEG-4 in AVI, which can only be read in order."""
    return write_video(tmp_path / "clip.avi", codec="mpeg4")


# --- file objects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_an_upload_is_read_though_it_is_open_for_writing(clip: Path, size: int) -> None:
    """What `UploadFile.file` of FastAPI and Starlette is."""
    with tempfile.SpooledTemporaryFile(max_size=size) as upload:
        upload.write(clip.read_bytes())
        assert probe_video(upload).total_num_frames == 16
        assert decode_video(upload, lambda metadata: [0, 15])[0].shape == (2, 48, 64, 3)
        assert not upload.closed
    with clip.open("r+b") as file:
        assert probe_video(file).total_num_frames == 16


class OnlyRead:
    """A reader that has nothing but `read`."""

    def __init__(self, content: bytes) -> None:
        self.read = io.BytesIO(content).read


class CannotSeek(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise OSError("this cannot seek")


class NoSeekable:
    """`read`, `seek` and `tell`, and no word on it."""

    def __init__(self, content: bytes) -> None:
        file = io.BytesIO(content)
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


@pytest.mark.parametrize("kind", [OnlyRead, CannotSeek, NoSeekable])
def test_readers_that_have_less(clip: Path, kind: type) -> None:
    expected = decode_video(clip)[0]
    np.testing.assert_array_equal(decode_video(kind(clip.read_bytes()))[0], expected)
    np.testing.assert_array_equal(decode_video(kind(clip.read_bytes()), lambda _: [3])[0][0], expected[3])


def test_readers_that_are_none() -> None:
    class Awaited:
        name = "upload.mp4"

        async def read(self, size: int = -1) -> bytes:
            return b""

    with pytest.raises(TypeError, match=r"upload\.mp4 is no binary file"):
        decode_video(Awaited())
    with pytest.raises(TypeError, match="is open as text"):
        decode_video(io.StringIO("text"))
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(VideoDecodeError, match=r"cannot be read .*closed file"):
        decode_video(closed)


# --- pipes and devices ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_is_read_once(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe.avi"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(clip.read_bytes()), daemon=True)
    writer.start()
    frames, metadata = decode_video(pipe, lambda metadata: [0, metadata.total_num_frames - 1])
    writer.join(10)
    assert metadata.frames_indices == [0, 15]
    np.testing.assert_array_equal(frames, decode_video(clip, [0, 15])[0])
    monkeypatch.setattr(video_source, "PIPE_SECONDS", 0.2)
    with pytest.raises(VideoDecodeError, match=r"pipe\.avi is a pipe into which nothing was written for 0\.2 s"):
        decode_video(pipe)


def test_what_is_no_file() -> None:
    if Path("/dev/zero").exists():
        with pytest.raises(VideoDecodeError, match="/dev/zero is a device or socket"):
            decode_video("/dev/zero")
    with pytest.raises(VideoNotFoundError, match="does not exist"):
        decode_video("zero\0byte.mp4")
    with pytest.raises(VideoDecodeError, match="cannot be opened|does not exist"):
        decode_video("long" * 2000)


# --- URLs -------------------------------------------------------------------------------------------------------


def test_urls_that_fsspec_knows(clip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as file:
        file.write(clip, "some/clip.avi")
    expected = decode_video(clip)[0]
    for url in (f"zip://some/clip.avi::{tmp_path}/clips.zip", f"file://{clip}"):
        np.testing.assert_array_equal(decode_video(url)[0], expected)
        assert len(decode_video(url, lambda metadata: [0, 15])[0]) == 2
    for url in (f"zip://gone.avi::{tmp_path}/clips.zip", f"file://{tmp_path}/gone.avi"):
        with pytest.raises(VideoNotFoundError, match=r"gone\.avi.* does not exist"):
            decode_video(url)
    with pytest.raises(VideoDecodeError, match="nosuch://a.mp4 cannot be read .ValueError"):
        decode_video("nosuch://a.mp4")


class Server(BaseHTTPRequestHandler):
    """Serves a clip, the clip packed, zeros without end, packed zeros, a dripping answer, and redirects."""

    clip = b""

    def do_GET(self) -> None:
        kind, _, rest = self.path.strip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest)
            self.end_headers()
            return
        self.send_response(200)
        packed = {"packed": gzip.compress(self.clip), "bomb": gzip.compress(bytes(40 << 20))}.get(kind)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            self.wfile.write(packed or (self.clip if kind == "clip.avi" else b""))
            while kind in ("zeros", "drip"):
                self.wfile.write(bytes(1 << 16 if kind == "zeros" else 1))
                if kind == "drip":
                    self.wfile.flush()
                    time.sleep(0.02)
        except OSError:  # the client has had enough
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def base(clip: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server, for a client that is not offline."""
    Server.clip = clip.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with httpx.Client(trust_env=False) as client:
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
        yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_downloads_and_their_limits(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe_video(f"{base}/clip.avi").total_num_frames == probe_video(f"{base}/packed").total_num_frames == 16
    monkeypatch.setattr(video_source, "MAX_DOWNLOAD_BYTES", 1 << 20)
    for kind in ("zeros", "bomb"):
        with pytest.raises(VideoDecodeError, match=f"/{kind} is larger than 1 MiB.*MOTE_MAX_DOWNLOAD_BYTES"):
            probe_video(f"{base}/{kind}")
    monkeypatch.setattr(video_source, "MAX_DOWNLOAD_SECONDS", 0.3)
    with pytest.raises(VideoDecodeError, match="/drip takes longer than 0.3 s.*MOTE_MAX_DOWNLOAD_SECONDS"):
        probe_video(f"{base}/drip")


@pytest.mark.parametrize(
    "place",
    [
        "{base}/clip.avi",
        "/clip.avi",
        "http://localhost:1/",
        "http://[::1]/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
    ],
)
def test_redirects_lead_to_no_inner_address(base: str, place: str) -> None:
    with pytest.raises(VideoDecodeError, match=r"cannot be downloaded .it leads to .*no public address"):
        decode_video(f"{base}/to/{place.format(base=base)}")


def test_redirects_to_public_addresses_are_followed(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))]
    with monkeypatch.context() as patch:
        patch.setattr(video_source.socket, "getaddrinfo", lambda *_: answer)
        video_source._check_redirect("http://a.example/", "https://b.example/clip.mp4")
    monkeypatch.setattr(video_source, "_check_redirect", lambda url, place: None)
    assert probe_video(f"{base}/to/{base}/clip.avi").total_num_frames == 16
    with pytest.raises(VideoDecodeError, match="leads on 10 times"):
        probe_video(f"{base}/to/{'/to' * 12}/clip.avi")


# --- what a file refers to --------------------------------------------------------------------------------------


def playlists(target: str) -> dict[str, str]:
    return {
        "m3u8": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n",
        "open m3u8": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.0,\n{target}\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        f'<Representation id="0" mimeType="video/mp4"><BaseURL>{target}</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>",
    }


@pytest.mark.parametrize("name", playlists(""))
def test_lists_of_files_are_no_videos(
    tmp_path: Path, write_video: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file of any name, as bytes, as a file object with a telling name: nothing is opened, and at once."""
    secret = write_video(tmp_path / "secret.ts")
    monkeypatch.chdir(tmp_path)
    for target in (str(secret), "secret.ts", f"file:{secret}", "http://127.0.0.1:9/x.ts"):
        text = playlists(target)[name].encode()
        for suffix in (".mp4", ".m3u8", ".sdp", ".ffconcat"):
            path = tmp_path / f"upload{suffix}"
            path.write_bytes(text)
            named = io.BytesIO(text)
            named.name = str(path)
            for video in (path, text, named):
                started = time.monotonic()
                with pytest.raises(VideoDecodeError, match="cannot be opened as a video"):
                    decode_video(video)
                assert time.monotonic() - started < 10


def test_a_file_objects_name_leads_nowhere(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    secret = write_video(tmp_path / "secret.jpg", codec="mjpeg", pix_fmt="yuvj420p", num_frames=1)
    for name in (str(secret), "http://127.0.0.1:9/a.m3u8", "concat:a|b", "%d.jpg"):
        file = io.BytesIO(b"no video" * 100)
        file.name = name
        with pytest.raises(VideoDecodeError, match=re.escape(name)):
            decode_video(file)


def test_files_are_opened_in_one_place() -> None:
    """But for the small file that a test of a library writes to memory."""
    folder = Path(video_source.__file__).parents[1]
    found = []
    for package in (folder / "modeling_mote", folder / "processing"):
        for path in package.rglob("*.py"):
            found += [path.name for line in path.read_text().splitlines() if re.search(r"\bav\.open\(", line)]
    assert set(found) == {"video_file.py", "video_decoding.py", "moving_shapes.py"}  # the last two write
