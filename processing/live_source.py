"""What never ends: a camera, a stream over HTTP, a device or a pipe, opened again and again.

Streams over HTTP and pipes are read here, so that FFmpeg gets bytes and opens nothing; only RTSP and devices are its
own business, and only for an address that a user names, see `video_file.NamedInput`.
"""

import os
import select
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from .sources import DEVICE, RTSP, STDIN
from .video_file import NamedInput, VideoFile, open_live
from .video_source import HTTP, VideoDecodeError, VideoNotFoundError, open_http

KINDS = "an rtsp:// or http(s):// address, a device such as /dev/video0, a pipe, '-' for the standard input, or a file"
LOOK = 0.1  # seconds from one look at a pipe to the next


class ClosedError(Exception):
    """The stream was closed from this side."""


class LiveSource:
    """Where a live stream comes from.

    Args:
        source: `rtsp://…`, `rtsps://…` (over TCP), `http(s)://…`, `/dev/video0` (Linux), `-` for the standard input,
            the path of a named pipe, or a binary file object that is read as it comes.

    Attributes:
        name: What messages call it, without a password.
        kind: "rtsp", "rtsps", "http", "device" or "pipe".
        reconnects: Whether it can be opened again.

    Raises:
        VideoDecodeError: For a path of something else.
        FileNotFoundError: If there is nothing at the path (a `VideoDecodeError` too).
        TypeError: If it is none of these.
    """

    def __init__(self, source: Any) -> None:
        self._place, self._lock = source, threading.Lock()
        self._open: HttpBytes | PipeBytes | None = None
        if isinstance(source, os.PathLike):
            self._place = source = os.fspath(source)
        if isinstance(source, str):
            self.kind = _kind_of(source)
            self.name = "standard input" if source == STDIN else _without_password(source)
        elif callable(getattr(source, "read", None)):
            self.kind, self.name = "pipe", str(getattr(source, "name", None) or f"stream in a {type(source).__name__}")
        else:
            raise TypeError(f"a live source must be {KINDS} object, got {type(source).__name__}.")
        self.reconnects = self.kind != "pipe"

    @contextmanager
    def open(self, timeout: float) -> Iterator[VideoFile]:
        """Connect, and read the beginning; closed on leaving.

        Args:
            timeout: Seconds that the other side may be silent; a pipe may for ever.

        Raises:
            VideoDecodeError: If it can't be opened, or is no video.
        """
        with ExitStack() as stack:
            place: Any = None
            if self.kind == "http":
                place = stack.enter_context(HttpBytes(self._place, timeout))
            elif self.kind == "pipe":
                place = stack.enter_context(PipeBytes(self._place))
            else:
                if self.kind == "device" and not os.path.exists(self._place):
                    raise VideoNotFoundError(f"{self.name} does not exist: there is no such camera.")
                place = NamedInput(self.kind, self._place, timeout)
            if not isinstance(place, NamedInput):
                with self._lock:
                    self._open = place
                stack.callback(self._forget)
            yield stack.enter_context(open_live(self.name, place))

    def _forget(self) -> None:
        with self._lock:
            self._open = None

    def interrupt(self) -> None:
        """Break the connection off, from another thread; RTSP and a device end by their timeout."""
        with self._lock:
            if self._open is not None:
                self._open.interrupt()

    def hide_password(self, text: str) -> str:
        """A message without the user's password."""
        return text.replace(self._place, self.name) if isinstance(self._place, str) else text


def _kind_of(source: str) -> str:
    """The kind of a source that is named.

    Raises:
        VideoDecodeError: For what is none.
    """
    for prefix in (*RTSP, *HTTP):
        if source.startswith(prefix):
            return "http" if prefix in HTTP else prefix.removesuffix("://")
    if source == STDIN:
        return "pipe"
    if DEVICE.fullmatch(source):
        return "device"
    try:
        mode = os.stat(source).st_mode
    except (OSError, ValueError) as error:
        raise VideoNotFoundError(f"{source} does not exist, and is no live source: name {KINDS} object.") from error
    if stat.S_ISFIFO(mode):
        return "pipe"
    raise VideoDecodeError(
        f"{source} is a file, not a live stream: leave --live out (classify_windows leaves no window out)."
    )


def _without_password(source: str) -> str:
    user, at, _ = urlsplit(source).netloc.rpartition("@") if "://" in source else ("", "", "")
    return source.replace(f"{user}@", "", 1) if at else source


class HttpBytes:
    """The body of an HTTP response, as it comes.

    Args:
        url: Its address.
        timeout: Seconds that the server may be silent.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._url, self._timeout, self._stack = url, timeout, ExitStack()
        self._left, self._closed = b"", False

    def __enter__(self) -> "HttpBytes":
        try:
            self._response = self._stack.enter_context(open_http(self._url, self._timeout))
        except VideoDecodeError:
            raise
        except Exception as error:  # which classes depends on the HTTP library that huggingface_hub is built on
            raise VideoDecodeError(f"{self._url} cannot be opened ({self._say(error)}).") from error
        self._parts = self._response.iter_bytes()
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(Exception):  # of a connection that is broken
            self._stack.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end."""
        try:
            while not self._left:
                part = next(self._parts, None)
                if part is None:
                    break
                self._left = part
        except Exception as error:
            if self._closed:
                raise ClosedError from error
            raise (TimeoutError if _is_timeout(error) else OSError)(self._say(error)) from error
        given, self._left = self._left[:size], self._left[size:]
        return given

    def interrupt(self) -> None:
        """End a `read` that waits in another thread."""
        self._closed = True
        stream = self._response.extensions.get("network_stream")
        with suppress(Exception):  # it may be closed already
            stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def _say(self, error: Exception) -> str:
        if _is_timeout(error):
            return f"nothing came for {self._timeout:g} s"
        return f"{type(error).__name__}: {error}"


def _is_timeout(error: Exception) -> bool:
    return "Timeout" in type(error).__name__  # of which library, see `HttpBytes.__enter__`


class PipeBytes:
    """The standard input, a named pipe or a file object, as it comes.

    Args:
        place: `-`, the path of a named pipe, or a binary file object, which stays open.
    """

    def __init__(self, place: Any) -> None:
        self._place, self._closed, self._begun = place, False, False
        self._own: int | None = None

    def __enter__(self) -> "PipeBytes":
        self._file: Any = None
        if self._place == STDIN:
            self._number: int | None = sys.stdin.fileno()
        elif isinstance(self._place, str):
            self._number = self._own = os.open(self._place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        else:
            self._file, self._number = self._place, _number_of(self._place)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._own is not None:
            os.close(self._own)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as soon as there are any; none at the end."""
        while not self._closed:
            if self._number is None:
                return getattr(self._file, "read1", self._file.read)(size)
            if os.name == "posix" and not select.select([self._number], [], [], LOOK)[0]:
                continue
            try:
                part = os.read(self._number, size)
            except BlockingIOError:
                continue
            if part or self._begun or self._own is None:
                self._begun = True
                return part
            threading.Event().wait(LOOK)  # nobody writes to the named pipe yet
        raise ClosedError

    def interrupt(self) -> None:
        """End a `read` that waits in another thread, at its next look."""
        self._closed = True


def _number_of(file: Any) -> int | None:
    """The descriptor of a file that is not buffered; None if it has none, and is read by its own methods."""
    try:
        return file.fileno() if not hasattr(file, "peek") else None
    except (AttributeError, OSError, ValueError):
        return None


__all__ = ["ClosedError", "LiveSource"]
