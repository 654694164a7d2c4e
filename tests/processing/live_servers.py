"""Live streams on this machine: encoded by PyAV as they play, and served over HTTP, RTSP or a pipe."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np


class Sink(io.RawIOBase):
    """What a muxer writes to, which cannot seek: bytes that are taken away as they come."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> list[bytes]:
        parts, self.parts = self.parts, []
        return parts


def stream(
    frames: Iterable[tuple[float, np.ndarray]],
    container: str = "mpegts",
    codec: str = "mpeg4",
    gop: int = 8,
    rate: int = 30,
    **options: str,
) -> Iterator[tuple[float, list[bytes]]]:
    """Encode and mux as it goes; gives for each frame its time in seconds, and the bytes that it made, by writes."""
    sink = Sink()
    with av.open(sink, "w", format=container, options={"flush_packets": "1", **options}) as output:
        video = None
        for seconds, image in frames:
            if video is None:
                video = output.add_stream(codec, rate=rate, options={"g": str(gop), "bf": "0"})
                video.height, video.width = image.shape[:2]
                video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                video.codec_context.time_base = Fraction(1, 1000)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            output.mux(video.encode(frame))
            yield seconds, sink.take()
        if video is not None:
            output.mux(video.encode())
    yield seconds, sink.take()


def in_time(pieces: Iterable[tuple[float, list[bytes]]], speed: float = 1.0) -> Iterator[bytes]:
    """The bytes of a stream, each frame's when it is due."""
    first, begun = None, time.monotonic()
    for seconds, parts in pieces:
        first = seconds if first is None else first
        time.sleep(max(0.0, begun + (seconds - first) / speed - time.monotonic()))
        yield b"".join(parts)


@contextmanager
def http_server(*connections: Callable[[], Iterable[bytes]], content_type: str = "video/mp2t") -> Iterator[str]:
    """The address of a server whose n-th connection gets what the n-th function gives, and later ones a 404."""
    waiting, lock, stop = list(connections), threading.Lock(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                connection = waiting.pop(0) if waiting else None
            if connection is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            with suppress(OSError):  # the client has gone
                for part in connection():
                    if stop.is_set():
                        return
                    self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


@contextmanager
def rtsp_server(*connections: Callable[[], Iterable[tuple[float, list[bytes]]]]) -> Iterator[str]:
    """The address of a small RTSP server, which sends RTP over the connection itself (RFC 2326, section 10.12).

    The n-th connection that plays gets what the n-th function gives: packets of the muxer `rtp`, MPEG-4 part 2.
    """
    waiting, stop = list(connections), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with client, suppress(OSError), client.makefile("rb") as lines:
            while request := lines.readline().decode():
                method, headers = request.split()[0], {}
                while line := lines.readline().decode().strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                sequence, body, more = headers.get("cseq", "0"), "", ""
                if method == "OPTIONS":
                    more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                elif method == "DESCRIBE":
                    body = (
                        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
                        "m=video 0 RTP/AVP 96\r\na=rtpmap:96 MP4V-ES/90000\r\na=control:track0\r\n"
                    )
                    more = "Content-Type: application/sdp\r\n"
                elif method == "SETUP":
                    assert "TCP" in headers["transport"], headers
                    more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                more += f"Content-Length: {len(body)}\r\n" if body else ""
                client.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\n{more}\r\n{body}".encode())
                if method == "PLAY":
                    play(client)
                if method in ("PLAY", "TEARDOWN"):
                    return

    def play(client: socket.socket) -> None:
        begun, first = time.monotonic(), None
        for seconds, packets in waiting.pop(0)():
            first = seconds if first is None else first
            time.sleep(max(0.0, begun + seconds - first - time.monotonic()))
            for packet in packets:
                if stop.is_set():
                    return
                channel = 1 if 192 <= packet[1] <= 223 else 0  # RTCP has types of its own
                client.sendall(b"$" + bytes([channel]) + len(packet).to_bytes(2, "big") + packet)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/live"
    finally:
        stop.set()
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
