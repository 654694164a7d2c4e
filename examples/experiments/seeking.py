"""Would seeking to key frames, and finding frames by their time stamps, give what decoding in order gives?

    python examples/experiments/seeking.py

For H.264, HEVC, VP9 and AV1: a clip of 60 frames with a key frame every 10, and the same with some bytes damaged, 40
times. Asks for 8 frames by both ways and counts the files in which a frame, or the number of frames, differs, and
those that seeking gives up. About a minute.
"""

import io
import random
from contextlib import suppress

import av
import numpy as np

ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "H.264": ("libx264", "mp4", {"g": "10"}),
    "HEVC": ("libx265", "mp4", {"x265-params": "keyint=10:min-keyint=10:open-gop=0:log-level=none"}),
    "VP9": ("libvpx-vp9", "matroska", {"g": "10", "deadline": "realtime", "cpu-used": "8"}),
    "AV1": ("libsvtav1", "mp4", {"g": "10", "preset": "11"}),
}
DAMAGED = 40


def encode(codec: str, container_format: str, options: dict[str, str]) -> bytes:
    """A clip of moving noise, 96 x 96."""
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    content = io.BytesIO()
    with av.open(content, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for index in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * index, axis=1), format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()


def damaged(content: bytes, seed: int) -> bytes:
    """The file with zeros or random bytes somewhere between its first and last tenth."""
    draw, changed = random.Random(seed), bytearray(content)
    place, length = draw.randrange(len(content) // 10, len(content) * 9 // 10), draw.choice((1, 1, 16, 300))
    length = min(length, len(content) - place)
    changed[place : place + length] = bytes(length) if seed % 2 else draw.randbytes(length)
    return bytes(changed)


def in_order(content: bytes) -> list[bytes]:
    """Every frame up to the first error."""
    frames: list[bytes] = []
    with suppress(av.FFmpegError), av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="gray").tobytes())
    return frames


def by_seeking(content: bytes, index: int) -> tuple[int, bytes] | None:
    """The number of packets, and the frame of this rank among their stamps, decoded from the key frame before it."""
    with av.open(io.BytesIO(content)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    stamps = sorted({packet.pts for packet in packets if packet.pts is not None})
    if len(stamps) < len(packets) or any(packet.is_corrupt or packet.is_discard for packet in packets):
        return None
    wanted = stamps[min(index, len(stamps) - 1)]
    keys = [packet.pts for packet in packets if packet.is_keyframe and packet.pts <= wanted]
    if not keys:
        return None
    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        container.seek(max(keys), stream=stream)
        for frame in container.decode(stream):
            if frame.pts == wanted and not frame.is_corrupt:
                return len(stamps), frame.to_ndarray(format="gray").tobytes()
    return None


def main() -> None:
    av.logging.set_level(None)
    for name, encoder in ENCODERS.items():
        whole = encode(*encoder)
        differ = given_up = 0
        for seed in range(DAMAGED + 1):
            content = damaged(whole, seed) if seed else whole
            frames, found = in_order(content), []
            for index in np.linspace(0, len(frames) - 1, 8).astype(int) if frames else ():
                with suppress(av.FFmpegError):
                    found.append((frames[index], by_seeking(content, int(index))))
            differs = any(got is not None and got != (len(frames), right) for right, got in found)
            differ += differs
            given_up += not differs and (len(found) < 8 or any(got is None for _, got in found))
            if not seed:
                print(f"{name}: the whole file {'differs' if differs else 'is the same'}")
        print(f"{name}: of {DAMAGED} damaged files {differ} differ, {given_up} are given up", flush=True)


if __name__ == "__main__":
    main()
