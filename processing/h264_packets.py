"""Which packets of an H.264 video a decoder needs for some of its pictures, read from the packets alone.

MP4 and Matroska hold a picture a packet: NAL units, each behind its length. The units' first bytes tell where decoding
can start afresh (IDR pictures) and which pictures no other refers to (ITU-T H.264, 7.4.1), so most of a video need not
be decoded for a few of its frames. Every packet is read all the same, which shows most damage.
"""

from collections.abc import Iterable
from itertools import accumulate, pairwise

LENGTH_BYTES = 4  # before each unit, in nearly every file

SLICE, IDR_SLICE, SPS, PPS = 1, 5, 7, 8
HARMLESS = (6, 9, 10, 11, 12)  # supplementary information, delimiters, ends of sequence and stream, filler


class H264Packets:
    """The packets of one stream, in decoding order.

    `sound` turns False where something speaks against decoding only some of them: damage, or a structure whose needs
    are not known here.

    Args:
        extradata: the stream's decoder configuration.
    """

    def __init__(self, extradata: bytes) -> None:
        # An avcC record (ISO/IEC 14496-15, 5.3.3.1): version, profile, ..., the size of a length less one.
        self.sound = len(extradata) > 6 and extradata[0] == 1 and (extradata[4] & 3) + 1 == LENGTH_BYTES
        self.times: list[int] = []  # when each picture is shown, in the stream's ticks
        self._fresh: list[bool] = []  # IDR: nothing before it is needed
        self._referred: list[bool] = []  # other pictures may refer to it
        self._parameters: set[bytes] = set()

    def add(self, data: bytes, time: int | None) -> None:
        """Take the next packet.

        Args:
            data: its bytes.
            time: when its picture is shown, in the stream's ticks.
        """
        end, kinds, referred, parameters = 0, set(), False, b""
        while end < len(data):
            start = end + LENGTH_BYTES
            end = start + int.from_bytes(data[end:start], "big")
            if end == start or end > len(data) or data[start] & 0x80:
                self.sound = False
                return
            kind = data[start] & 31
            if kind in (SLICE, IDR_SLICE):
                kinds.add(kind)
                referred = referred or bool(data[start] >> 5)
            elif kind in (SPS, PPS):
                parameters += data[start:end]
            elif kind not in HARMLESS:
                self.sound = False
        if parameters:
            self._parameters.add(parameters)
        fresh = kinds == {IDR_SLICE}
        # Parameters that change on the way may come in a packet that is left out.
        if time is None or len(kinds) != 1 or len(self._parameters) > 1 or not (fresh or self.times):
            self.sound = False
            return
        self.times.append(time)
        self._fresh.append(fresh)
        self._referred.append(referred)

    def display_order(self, reorder_depth: int) -> list[int] | None:
        """Packets in the order in which a decoder shows their pictures; None where that is not known.

        Args:
            reorder_depth: how many pictures the decoder holds back to order them.
        """
        order = sorted(range(len(self.times)), key=self.times.__getitem__)
        groups = list(accumulate(self._fresh))
        known = (
            all(self.times[a] < self.times[b] and groups[a] <= groups[b] for a, b in pairwise(order))
            and max((packet - place for place, packet in enumerate(order)), default=0) <= reorder_depth
        )
        return order if known else None

    def needed(self, packets: Iterable[int]) -> list[list[int]]:
        """The packets to decode for the pictures of some: runs that start at an IDR picture, in decoding order."""
        wanted, runs = set(packets), []
        starts = [number for number, fresh in enumerate(self._fresh) if fresh]
        for start, end in pairwise([*starts, len(self.times)]):
            last = max(wanted.intersection(range(start, end)), default=None)
            if last is not None:
                runs.append([i for i in range(start, last + 1) if self._referred[i] or i in wanted])
        return runs
