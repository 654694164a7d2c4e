"""Where a video comes from: a path, a URL, bytes or a file object, each as a reader that leads nowhere else.

FFmpeg opens nothing by name: it reads from Python, so that a file cannot make it read other files or the network. What
is fetched or read into memory has limits, which environment variables of the same names raise.
"""

import importlib
import io
import ipaddress
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

VideoSource = str | os.PathLike[str] | bytes | BinaryIO

MAX_DOWNLOAD_BYTES = int(os.environ.get("MOTE_MAX_DOWNLOAD_BYTES", 1 << 30))  # unpacked
MAX_DOWNLOAD_SECONDS = float(os.environ.get("MOTE_MAX_DOWNLOAD_SECONDS", 300))
MAX_REDIRECTS = 10
PIPE_SECONDS = 10.0  # that a named pipe may stay silent

HTTP = ("http://", "https://")
BLOCK = 1 << 16  # bytes read at a time


class VideoDecodeError(ValueError):
    """A video that cannot be read; the message names the file and the reason."""


class VideoNotFoundError(VideoDecodeError, FileNotFoundError):
    """A path at which there is no file."""


class Reader:
    """A file to a decoder: without a name, which FFmpeg could follow, and to be read only, whatever it is open for.

    Args:
        file: A binary file that can seek.
    """

    def __init__(self, file: Any) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


class Source:
    """Something that holds a video, readable any number of times, and its name for messages.

    Args:
        video: A path; a URL: http(s), or any that fsspec knows, such as `hf://`, `s3://` or `zip://a.mp4::b.zip`; the
            bytes of a file; or a binary file object, which stays open. URLs, pipes and file objects that cannot seek
            are read into memory.

    Raises:
        VideoDecodeError: If it cannot be read.
        FileNotFoundError: If there is no such file (a `VideoDecodeError` too).
        TypeError: If `video` is none of these kinds.
    """

    def __init__(self, video: VideoSource) -> None:
        self.file: Any  # a Path, bytes, or a file object
        if isinstance(video, (bytes, bytearray, memoryview)):
            self.name, self.file = f"video of {len(video)} bytes", bytes(video)
        elif isinstance(video, str) and video.startswith(HTTP):
            self.name, self.file = video, download(video)
        elif isinstance(video, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", video):
            self.name, self.file = video, _fetch(video)
        elif isinstance(video, (str, os.PathLike)):
            self.name = os.fspath(video)
            self.file = _find_file(self.name)
        elif callable(getattr(video, "read", None)):
            self.name = str(getattr(video, "name", None) or f"video in a {type(video).__name__}")
            self.file = _check_file(video, self.name)
        else:
            kinds = "a path, an http(s) or fsspec URL, bytes or a binary file object"
            raise TypeError(f"video must be {kinds}, got {type(video).__name__}.")
        if self.file == b"" or (isinstance(self.file, Path) and not self.file.stat().st_size):
            raise VideoDecodeError(f"{self.name} is empty (0 bytes).")

    @property
    def size(self) -> int:
        """Bytes of the file.

        Raises:
            VideoDecodeError: If it cannot be told.
        """
        try:
            if isinstance(self.file, Path):
                return self.file.stat().st_size
            if isinstance(self.file, bytes):
                return len(self.file)
            self.file.seek(0, os.SEEK_END)  # which may give nothing
            return self.file.tell()
        except Exception as error:  # a file object's own
            raise VideoDecodeError(f"{self.name} cannot be opened ({reason(error)}).") from error

    def rewound(self) -> Any:
        """What another library opens: a path as text, or a file object at its start."""
        if isinstance(self.file, Path):
            return str(self.file)
        if isinstance(self.file, bytes):
            return io.BytesIO(self.file)
        self.file.seek(0)
        return self.file

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """The file at its start; closed on leaving, unless it is the user's own.

        Raises:
            VideoDecodeError: If it cannot be opened.
        """
        try:
            file = self.file.open("rb") if isinstance(self.file, Path) else self.rewound()
            reader = Reader(file)
        except Exception as error:  # a file object's own
            raise VideoDecodeError(f"{self.name} cannot be opened ({reason(error)}).") from error
        try:
            yield reader
        finally:
            if file is not self.file:
                file.close()


def reason(error: Exception) -> str:
    """What an error says, without the numbers that come before it."""
    text = getattr(error, "strerror", None) or str(error)
    return str(text) or type(error).__name__


def _find_file(name: str) -> Path | bytes:
    """The path of a file, or the bytes of a pipe."""
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte in the name
        raise VideoNotFoundError(f"{name} does not exist.") from error
    except OSError as error:
        raise VideoDecodeError(f"{name} cannot be opened ({reason(error)}).") from error
    if stat.S_ISDIR(mode):
        raise VideoDecodeError(f"{name} is a folder, not a video file.")
    if stat.S_ISFIFO(mode):
        return _gather(name, _read_pipe(name))
    if not stat.S_ISREG(mode):
        raise VideoDecodeError(f"{name} is a device or socket, not a video file.")
    return path


def _read_pipe(name: str) -> Iterator[bytes]:
    """What is written to a named pipe, which can be read once."""
    pipe, begun, heard = os.open(name, os.O_RDONLY | os.O_NONBLOCK), False, time.monotonic()
    try:
        while time.monotonic() - heard < PIPE_SECONDS:
            try:
                part = os.read(pipe, BLOCK)
            except BlockingIOError:  # who writes has nothing new yet
                time.sleep(0.01)
                continue
            if part:
                begun, heard = True, time.monotonic()
                yield part
            elif begun:
                return
            else:  # nobody writes yet
                time.sleep(0.01)
    finally:
        os.close(pipe)
    raise VideoDecodeError(f"{name} is a pipe into which nothing was written for {PIPE_SECONDS:g} s.")


def _check_file(video: Any, name: str) -> Any:
    """A binary file that can seek: the one that was given, or its bytes."""
    try:
        nothing = video.read(0)
        if not isinstance(nothing, bytes):
            if hasattr(nothing, "close"):
                nothing.close()  # a coroutine, which would complain that nobody waits for it
            kind = "open as text" if isinstance(nothing, str) else "no binary file"
            raise TypeError(f"{name} is {kind}; open it in binary mode.")
        seekable = getattr(video, "seekable", None)
        if hasattr(video, "seek") and hasattr(video, "tell") and (seekable is None or seekable()):
            return video
        return _gather(name, iter(lambda: video.read(BLOCK), b""))
    except (TypeError, VideoDecodeError):
        raise
    except Exception as error:  # whatever such an object raises
        raise VideoDecodeError(f"{name} cannot be read ({reason(error)}).") from error


def _gather(name: str, parts: Iterable[bytes], max_bytes: int | None = None) -> bytes:
    """The parts as one, within the limits on bytes and time."""
    content, started = io.BytesIO(), time.monotonic()
    limit = MAX_DOWNLOAD_BYTES if max_bytes is None else max_bytes
    cure = "save it as a file first, or raise MOTE_MAX_DOWNLOAD_BYTES" if max_bytes is None else "send a smaller one"
    for part in parts:
        if content.tell() + len(part) > limit:
            raise VideoDecodeError(
                f"{name} is larger than {limit / 2**20:g} MiB, the limit of what is read into memory: {cure}."
            )
        if time.monotonic() - started > MAX_DOWNLOAD_SECONDS:
            raise VideoDecodeError(
                f"{name} takes longer than {MAX_DOWNLOAD_SECONDS:g} s to arrive: save it as a file first, raise "
                "MOTE_MAX_DOWNLOAD_SECONDS, or, if it never ends, read it as a live stream (--live)."
            )
        content.write(part)
    return content.getvalue()


def download(url: str, max_bytes: int | None = None) -> bytes:
    """Fetch a file over http(s).

    Args:
        url: Of the file.
        max_bytes: How large it may be; `MAX_DOWNLOAD_BYTES` by default.

    Raises:
        VideoDecodeError: If it cannot be had, or is larger, or takes too long.
    """
    try:
        with open_http(url) as response:
            return _gather(url, response.iter_bytes(), max_bytes)  # as they come, for the limit on time
    except VideoDecodeError:
        raise
    except Exception as error:  # which classes depends on the HTTP library that huggingface_hub is built on
        raise VideoDecodeError(f"{url} cannot be downloaded ({type(error).__name__}: {error}).") from error


@contextmanager
def open_http(url: str, timeout: float = 60) -> Iterator[Any]:
    """The response to a request, by the client that reads the Hub: its proxies and its offline switch hold here too.

    Args:
        url: Where to ask.
        timeout: Seconds that the server may be silent.

    Raises:
        VideoDecodeError: If it leads on without end, or to this machine or its network.
        Exception: As the client raises them.
    """
    session = importlib.import_module("huggingface_hub").get_session()
    place = url
    for _ in range(MAX_REDIRECTS):
        with session.stream("GET", place, follow_redirects=False, timeout=timeout) as response:
            if "location" in response.headers and 300 <= response.status_code < 400:
                place = urljoin(place, response.headers["location"])
                _check_redirect(url, place)
                continue
            response.raise_for_status()
            yield response
            return
    raise VideoDecodeError(f"{url} cannot be downloaded (it leads on {MAX_REDIRECTS} times).")


def _check_redirect(url: str, place: str) -> None:
    """Refuse to be led from a URL to this machine or its network."""
    parts = urlsplit(place)
    host = parts.hostname or ""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:  # a proxy may know the name
        addresses = set()
    inner = [each for each in addresses if not ipaddress.ip_address(str(each).partition("%")[0]).is_global]
    if parts.scheme not in ("http", "https") or inner:
        raise VideoDecodeError(f"{url} cannot be downloaded (it leads to {place}, which is no public address).")


def _fetch(url: str) -> Path | bytes:
    """The path of a `file://` URL, or the bytes of another that fsspec knows."""
    fsspec = importlib.import_module("fsspec")
    try:
        if url.startswith("file://") and "::" not in url:
            return _find_file(fsspec.core.url_to_fs(url)[1])
        with fsspec.open(url, "rb") as file:
            return _gather(url, iter(lambda: file.read(BLOCK), b""))
    except VideoDecodeError:
        raise
    except FileNotFoundError as error:
        raise VideoNotFoundError(f"{url} does not exist.") from error
    except Exception as error:  # each file system has its own
        raise VideoDecodeError(f"{url} cannot be read ({type(error).__name__}: {error}).") from error


__all__ = [
    "MAX_DOWNLOAD_BYTES",
    "MAX_DOWNLOAD_SECONDS",
    "Reader",
    "Source",
    "VideoDecodeError",
    "VideoNotFoundError",
    "VideoSource",
    "download",
    "open_http",
    "reason",
]
