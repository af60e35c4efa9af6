"""Parts of a video between two keyframes, which can be processed independently of each other.

A frame belongs to the chunk whose range of timestamps it is in, not to the chunk of its packet.
Frames that are stored behind a keyframe and shown before it (open groups of pictures) therefore
belong to the previous chunk, which reads on until it has decoded them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Generator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from fada_deploy.common.decoding import PacketId, TimedFrame, timed_frames
from fada_deploy.common.errors import DataError
from fada_deploy.common.video import open_video, upright_rgb
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.videos import VideoSource, announced_end_s, to_frame

# Largest number of packets between a keyframe and one that is shown before it. H.264 and HEVC allow
# 16 frames to be reordered, each of which may be two packets.
_MAX_REORDERED = 32


class VideoChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One of the `count` chunks of a video, from 0.

    Attributes:
        index: Number of the chunk.
        count: Number of chunks.
        start: Packet from which to decode: the keyframe before the first frame of the chunk. None
            for the start of the file.
        first_pts: Timestamp of the first frame that belongs to the chunk; None for the first one.
        end_pts: Timestamp of the first frame that belongs to the next chunk; None for the end.
        first_index: Number of the first frame in the video, if each packet gives one frame.
        frames: Number of frames, if each packet gives one frame.
    """

    index: int
    count: int
    start: PacketId | None
    first_pts: int | None
    end_pts: int | None
    first_index: int
    frames: int


class ChunkReport(msgspec.Struct, kw_only=True):
    """What was decoded of a chunk.

    Attributes:
        frames: Number of its frames.
        damaged: Number of damaged packets among them.
        start_s: Time of the first frame in seconds.
        end_s: End of the last frame in seconds.
        announced_s: End of the video in seconds by its header; only known in the first chunk.
        first_hash: Hash of the first frame, "" if there is none.
        next_hash: Hash of the frame behind the chunk, "" if there is none. It equals `first_hash`
            of the next chunk if both were decoded correctly.
    """

    frames: int = 0
    damaged: int = 0
    start_s: tuple[int, int] = (0, 1)
    end_s: tuple[int, int] = (0, 1)
    announced_s: tuple[int, int] = (0, 1)
    first_hash: str = ""
    next_hash: str = ""


def plan_chunks(path: Path, frames: int) -> list[VideoChunk]:
    """Divide a video into chunks of `frames` frames or more, which begin at keyframes.

    The last chunk may have half as many.

    Only packets are read. The result is a single chunk if the video is short or has no keyframe at
    which it can be divided: raw streams and AVI have no timestamps of display, and where timestamps
    jump back the order of the frames is not known. Raise `DataError` if the file is unreadable.
    """
    pts, keyframes = _read_packets(path)
    starts = [0, *_boundaries(pts, keyframes, frames)]
    ends = [*starts[1:], len(pts)]
    decode_from = dict(zip(starts[1:], _previous_keyframes(keyframes, starts[1:]), strict=True))
    first_indices = [_frames_before(pts, start) for start in starts]
    chunks = []
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        is_last = end == len(pts)
        next_index = len(pts) if is_last else first_indices[index + 1]
        chunks.append(
            VideoChunk(
                index=index,
                count=len(starts),
                start=decode_from.get(start),
                first_pts=pts[start] if start else None,
                end_pts=None if is_last else pts[end],
                first_index=first_indices[index],
                frames=next_index - first_indices[index],
            )
        )
    return chunks


def _read_packets(path: Path) -> tuple[array[int], dict[int, PacketId]]:
    """Return the timestamp of each packet, and the keyframes by their number.

    There are no keyframes if the video cannot be divided.
    """
    import av

    pts, keyframes = array("q"), dict[int, PacketId]()
    container, stream = open_video(path)
    with container:
        is_divisible = container.format.name != "avi"
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.pts is None:
                    is_divisible = False
                elif packet.is_keyframe and packet.dts is not None:
                    keyframes[len(pts)] = PacketId(packet.pts, packet.dts)
                pts.append(packet.pts or 0)
        except av.error.FFmpegError:
            # Damage: the reader finds the frames behind it, but their number is not known.
            is_divisible = False
    return pts, keyframes if is_divisible else {}


def _boundaries(pts: array[int], keyframes: dict[int, PacketId], frames: int) -> list[int]:
    """Return the numbers of the keyframes that begin a chunk, without the first one."""
    # Smallest timestamp of each packet and all later ones.
    smallest_later = array("q", pts)
    for index in range(len(pts) - 2, -1, -1):
        smallest_later[index] = min(pts[index], smallest_later[index + 1])
    boundaries: list[int] = []
    largest_before, last = pts[0] if pts else 0, 0
    for index in range(1, len(pts)):
        if index in keyframes and index - last >= frames and len(pts) - index >= frames // 2:
            behind = index + 1 + _MAX_REORDERED
            is_ordered = behind >= len(pts) or smallest_later[behind] > pts[index]
            is_unique = pts[index] not in pts[index + 1 : behind]
            if largest_before < pts[index] and is_ordered and is_unique:
                boundaries.append(index)
                last = index
        largest_before = max(largest_before, pts[index])
    return boundaries


def _previous_keyframes(
    keyframes: dict[int, PacketId], boundaries: list[int]
) -> list[PacketId | None]:
    """Return the keyframe before each boundary, None if that is the first packet.

    Decoding from there gives the decoder the frames to which those at the boundary may refer.
    """
    numbers = sorted({0, *keyframes})
    before = {later: earlier for earlier, later in pairwise(numbers)}
    return [keyframes.get(before[b]) if before[b] else None for b in boundaries]


def _frames_before(pts: array[int], boundary: int) -> int:
    """Return the number of frames that are shown before the frame of a packet."""
    behind = pts[boundary + 1 : boundary + 1 + _MAX_REORDERED]
    return boundary + sum(each < pts[boundary] for each in behind)


class VideoChunkSource(VideoSource):
    """The frames of one chunk, numbered as in the whole video.

    Its name is that of the video. `report` is complete when all frames were read. A damaged packet
    is counted, not yielded as an error, because only all chunks together know the whole damage.
    """

    def __init__(self, path: Path, chunk: VideoChunk) -> None:
        super().__init__(path)
        self.report = ChunkReport()
        self._chunk = chunk

    def probe(self) -> None:
        """Read the header; the audio is copied when the chunks are joined."""
        super().probe()
        self.audio = None

    def count(self) -> int | None:
        """Return the expected number of frames."""
        return self._chunk.frames

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield the frames of the chunk that can be decoded."""
        try:
            self.probe()
            container, stream = open_video(self._path)
        except DataError as error:
            yield error
            return
        with container:
            stream.thread_type = "AUTO"
            yield from self._read(container, stream)
            start_s = Fraction(*self.report.start_s)
            self.report.announced_s = _pair(announced_end_s(container, stream, start_s))

    def _read(self, container: Any, stream: Any) -> Generator[Frame, None, None]:
        chunk, report = self._chunk, self.report
        end_s = Fraction(0)
        # The damage before the first frame belongs to the previous chunk, if there is one.
        is_inside = chunk.first_pts is None
        for timed in timed_frames(container, stream, chunk.start):
            if timed is None:
                report.damaged += is_inside
                continue
            if chunk.first_pts is not None and timed.pts < chunk.first_pts:
                continue
            if chunk.end_pts is not None and timed.pts >= chunk.end_pts:
                report.next_hash = _hash(timed)
                break
            if report.frames == 0:
                is_inside = True
                report.first_hash, report.start_s = _hash(timed), _pair(timed.time_s)
                self.turn_pixel_aspect(timed)
            end_s = max(end_s, timed.end_s)
            yield to_frame(timed, self.name, chunk.first_index + report.frames)
            report.frames += 1
        report.end_s = _pair(end_s)


def _pair(seconds: Fraction) -> tuple[int, int]:
    return seconds.numerator, seconds.denominator


def _hash(timed: TimedFrame) -> str:
    """Return a hash of the time and the pixels of a decoded frame."""
    digest = hashlib.sha256(str(timed.time_s).encode())
    digest.update(upright_rgb(timed.decoded).tobytes())
    return digest.hexdigest()
