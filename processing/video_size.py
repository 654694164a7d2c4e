"""How long and how large a video is, found without decoding it."""

from typing import NamedTuple

from .video_file import is_flush, open_video
from .video_source import Source, VideoSource


class VideoSize(NamedTuple):
    """What a video's packets say.

    Attributes:
        seconds: From its first frame to the end of its last.
        num_frames: As many as it has packets.
        height: Of a frame, in pixels, as the header says.
        width: The same.
    """

    seconds: float
    num_frames: int
    height: int
    width: int

    @property
    def gigapixels(self) -> float:
        """All that there is to decode."""
        return self.num_frames * self.height * self.width / 1e9


def measure_video(video: VideoSource) -> VideoSize:
    """Read the packets of a video, and none of its pictures.

    Args:
        video: A path, a URL, the bytes of a file, or a binary file object.

    Raises:
        VideoDecodeError: If it cannot be opened.
        FileNotFoundError: If there is no file at the path (a `VideoDecodeError` too).
    """
    start, end, num_frames = float("inf"), 0.0, 0
    with open_video(Source(video)) as file:
        for packet in file.packets():
            if is_flush(packet):
                continue
            seconds, num_frames = file.clock.seconds(packet), num_frames + 1
            start = min(start, seconds)
            end = max(end, seconds + float((packet.duration or 0) * (packet.time_base or 0)))
        return VideoSize(max(0.0, end - start), num_frames, file.stream.height, file.stream.width)


__all__ = ["VideoSize", "measure_video"]
