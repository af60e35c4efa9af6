"""Decode the frames of a video with their times, for training and inference alike."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from fada_deploy.common.hdr import HDR_TRANSFERS

logger = logging.getLogger(__name__)

# Frames per second of a file that does not state its rate, as in FFmpeg.
_DEFAULT_RATE = Fraction(25)
# Errors in a row after which a demuxer is given up.
_MAX_READ_ERRORS = 10
# Errors in a row after which a decoder that is being flushed is given up.
_MAX_FLUSH_ERRORS = 100
# The most packets that a decoder holds back, and that are decoded again.
_MAX_HELD_BACK, _MAX_TAIL = 64, 1000


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
    errors, tail = 0, _Tail(container, stream)
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
    """Decodes packets, and those at the end of a file once more if frames of them are lost.

    A decoder with several threads holds back as many frames. PyAV gives up the rest of them at the
    first damaged packet among them, so the number of frames would depend on the number of cores.
    One thread holds back none.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._sent = self._received = 0
        # Keyframes and how many packets were sent before; the decoder holds back none before the
        # first of them.
        self._keyframes: deque[tuple[int, PacketId]] = deque()
        self._last_pts: int | None = None
        # Damages that were reported after the last frame.
        self._damages = 0

    def decode(self, packet: Any) -> Generator[Any, None, None]:
        """Yield the frames of a packet, and None if it is damaged; see `decode_packet`."""
        if packet.size:
            self._remember(packet)
        for frame in decode_packet(packet):
            self._received += 1
            if frame is None:
                self._damages += 1
            else:
                self._damages = 0
                if frame.pts is not None and (self._last_pts is None or frame.pts > self._last_pts):
                    self._last_pts = frame.pts
            yield frame
        if packet.size == 0 and self._received < self._sent:
            yield from self._decode_again()

    def _remember(self, packet: Any) -> None:
        if packet.is_keyframe and packet.pts is not None:
            self._keyframes.append((self._sent, PacketId(packet.pts, packet.dts)))
            while len(self._keyframes) > 1 and self._sent - self._keyframes[1][0] > _MAX_HELD_BACK:
                self._keyframes.popleft()
        self._sent += 1

    def _decode_again(self) -> Generator[Any, None, None]:
        """Yield the frames behind the last one that was shown, and None for each damage there."""
        import av

        from fada_deploy.common.video import open_media

        if not self._keyframes or self._last_pts is None:
            return
        sent_before, keyframe = self._keyframes[0]
        if self._sent - sent_before > _MAX_TAIL or self._stream.codec_context.is_hwaccel:
            return
        damages = 0
        try:
            with open_media(Path(self._container.name.removeprefix("file:"))) as container:
                stream = container.streams[self._stream.index]
                stream.codec_context.thread_count = 1
                for packet in _packets_from(container, stream, keyframe):
                    is_lost = packet.pts is None or packet.pts > self._last_pts
                    for frame in decode_packet(packet):
                        if frame is None:
                            damages += is_lost
                        elif frame.pts is not None and frame.pts > self._last_pts:
                            yield frame
        except av.error.FFmpegError:
            # The first pass has met the same error.
            pass
        yield from [None] * (damages - self._damages)


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
