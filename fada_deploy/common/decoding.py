"""Decode the frames of a video with their times, for training and inference alike."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, NamedTuple

from fada_deploy.common.hdr import HDR_TRANSFERS

logger = logging.getLogger(__name__)

# Frames per second of a file that does not state its rate, as in FFmpeg.
_DEFAULT_RATE = Fraction(25)
# Errors in a row after which a demuxer is given up.
_MAX_READ_ERRORS = 10
# Errors in a row after which a decoder that is being flushed is given up.
_MAX_FLUSH_ERRORS = 100
# Packets that are kept to be decoded again: at most, and how many a decoder may hold back.
_MAX_TAIL, _MAX_HELD_BACK = 400, 64


class PacketId(NamedTuple):
    """The timestamps of a packet, which identify it in its stream."""

    pts: int
    dts: int | None


@dataclass(frozen=True, eq=False)
class TimedFrame:
    """A decoded PyAV frame, and when it is shown: `pts` in units of `time_base` seconds."""

    decoded: Any
    pts: int
    time_base: Fraction

    @property
    def time_s(self) -> Fraction:
        """The time at which it is shown, in seconds."""
        return self.pts * self.time_base

    @property
    def end_s(self) -> Fraction:
        """The time at which it is no longer shown, in seconds, if the file states its duration."""
        return (self.pts + (self.decoded.duration or 0)) * self.time_base


def timed_frames(
    container: Any, stream: Any, start: PacketId | None = None
) -> Generator[TimedFrame | None, None, None]:
    """Yield the frames of a PyAV video stream in the order of display, and None for each damage.

    Training and inference read all videos with this function. Damage ends no video: the frames
    behind it follow. Decoding begins with the packet `start` [the first one].
    """
    if len(container.streams.video) > 1:
        logger.info(
            "%s: using video stream %d (%dx%d) of %d",
            container.name.removeprefix("file:"), stream.index, stream.width, stream.height,
            len(container.streams.video),
        )  # fmt: skip
    clock = _FrameClock(container, stream)
    is_first = True
    for decoded in decode_frames(container, stream, start):
        if is_first and decoded is not None:
            is_first = False
            if (transfer := HDR_TRANSFERS.get(int(decoded.color_trc))) is not None:
                logger.info(
                    "%s: HDR video (%s), converted to SDR colors",
                    container.name.removeprefix("file:"), transfer,
                )  # fmt: skip
        yield None if decoded is None else clock.timed(decoded)


class _FrameClock:
    """Gives each frame its timestamp, also where the file has none or wrong ones."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._rate = Fraction(stream.average_rate or _DEFAULT_RATE)
        # AVI stores only the order of decoding, in which frames that refer to later ones come late.
        self._has_decode_times = container.format.name == "avi"
        self._first_dts: int | None = None
        self._last_pts: int | None = None
        self._index = 0

    def timed(self, decoded: Any) -> TimedFrame:
        pts, time_base = decoded.pts, decoded.time_base
        if self._has_decode_times and time_base is not None:
            pts = decoded.dts
            if self._first_dts is None:
                self._first_dts = pts
            if pts is not None and self._first_dts is not None:
                pts -= self._first_dts
        if time_base is None:
            # Raw H.264 and HEVC streams have no timestamps.
            pts, time_base = self._index, 1 / self._rate
        elif pts is None:
            # Some files have a timestamp for every other frame only.
            step = max(1, round(1 / (self._rate * time_base)))
            pts = 0 if self._last_pts is None else self._last_pts + step
        self._last_pts = pts
        self._index += 1
        return TimedFrame(decoded, pts, Fraction(time_base))


def decode_frames(
    container: Any, stream: Any, start: PacketId | None = None
) -> Generator[Any, None, None]:
    """Yield the decoded frames of a PyAV video stream, and None for each damaged packet.

    Decoding begins with the packet `start` [the first one].
    """
    import av

    packets = container.demux(stream) if start is None else _packets_from(container, stream, start)
    errors, tail = 0, _Tail(stream)
    while errors < _MAX_READ_ERRORS:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            yield None
            # A demuxer may find the next packet behind the damage.
            errors += 1
            packets = container.demux(stream)
            continue
        if packet is None:
            return
        errors = 0
        yield from tail.decode(packet)


class _Tail:
    """Decodes packets, and those at the end of a stream once more if frames of them are lost.

    A decoder with several threads holds back as many frames. PyAV gives up the rest of them at the
    first damaged packet among them, so the number of frames would depend on the number of cores.
    One thread holds back none.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Whole groups of pictures: the last packets, from a keyframe on.
        self._packets: deque[Any] = deque()
        self._shown: deque[int | None] = deque(maxlen=2 * _MAX_TAIL)
        # How many packets were decoded when each damage was reported.
        self._damages: deque[int] = deque(maxlen=_MAX_TAIL)
        # All packets, and those that have given neither a frame nor an error.
        self._sent = self._missing = 0

    def decode(self, packet: Any) -> Generator[Any, None, None]:
        """Yield the frames of a packet, and None if it is damaged; see `decode_packet`."""
        if packet.size:
            self._remember(packet)
        for frame in decode_packet(packet):
            self._missing -= 1
            if frame is None:
                self._damages.append(self._sent)
            else:
                self._shown.append(frame.pts)
            yield frame
        if packet.size == 0 and self._missing > 0 and None not in self._shown:
            yield from self._decode_again()

    def _remember(self, packet: Any) -> None:
        self._sent += 1
        self._missing += 1
        self._packets.append(packet)
        if packet.is_keyframe:
            keyframes = [i for i, each in enumerate(self._packets) if each.is_keyframe]
            # The last one behind which there are as many packets as a decoder holds back.
            enough = [i for i in keyframes if len(self._packets) - i > _MAX_HELD_BACK]
            for _ in range(enough[-1] if enough else keyframes[0]):
                self._packets.popleft()
        elif len(self._packets) > _MAX_TAIL:
            self._packets.clear()

    def _decode_again(self) -> Generator[Any, None, None]:
        """Yield the frames of the last packets that were not shown, and None for each damage."""
        import av

        original = self._stream.codec_context
        first = next(iter(self._packets), None)
        if first is None or not first.is_keyframe or getattr(original, "is_hwaccel", False):
            return
        decoder = av.CodecContext.create(original.codec.name, "r")
        decoder.thread_count, decoder.extradata = 1, original.extradata
        shown, damaged = set(self._shown), 0
        for packet in [*self._packets, None]:
            try:
                frames = decoder.decode(packet)
            except av.error.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                if frame.pts not in shown:
                    frame.time_base = self._stream.time_base
                    yield frame
        known = sum(sent > self._sent - len(self._packets) for sent in self._damages)
        yield from [None] * (damaged - known)


def _packets_from(container: Any, stream: Any, start: PacketId) -> Iterator[Any]:
    """Return the packets of a stream from one on; none if the stream does not contain it.

    A demuxer that seeks inexactly may pass the packet, so the file is then read from its start.
    """
    for position in (start.pts, min(stream.start_time or 0, start.pts)):
        if (packets := _seek(container, stream, position, start)) is not None:
            return packets
    return iter(())


def _seek(container: Any, stream: Any, position: int, start: PacketId) -> Iterator[Any] | None:
    import av

    try:
        container.seek(position, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if (packet.pts, packet.dts) == start:
                return chain((packet,), packets)
            if packet.dts is not None and start.dts is not None and packet.dts > start.dts:
                return None
    except av.error.FFmpegError:
        return None
    return None


def decode_packet(packet: Any) -> Generator[Any, None, None]:
    """Yield the frames of a PyAV packet, and None if the packet is damaged."""
    import av

    if packet.is_corrupt:
        yield None
    # While the decoder is flushed, further frames may follow a damaged one.
    attempts = _MAX_FLUSH_ERRORS if packet.size == 0 else 1
    while attempts:
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            yield None
            attempts -= 1
        else:
            return
