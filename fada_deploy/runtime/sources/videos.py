"""Video files as a source."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from fada_deploy.common.decoding import TimedFrame, timed_frames
from fada_deploy.common.errors import DataError
from fada_deploy.common.video import is_plain_yuv420p, open_video, orientation, upright_rgb
from fada_deploy.runtime.sources.base import Frame

# Seconds by which the last frame may end before the announced length without a frame missing.
_END_SLACK_S = 0.5


class VideoSource:
    """A video file: each frame with its own timestamp, upright by its display matrix.

    `hardware` is the device that decodes it, a key of `HARDWARE_ENCODERS` [the CPU].
    """

    is_video = True
    is_live = False

    def __init__(self, path: Path, hardware: str | None = None) -> None:
        self.name = str(path)
        self.rate: Fraction | None = None
        self.audio: Path | None = None
        self.pixel_aspect: Fraction | None = None
        self._path = path
        self._hardware = hardware
        self._count: int | None = None

    def probe(self) -> None:
        """Read the header; raise `DataError` if the file is not a readable video."""
        container, stream = open_video(self._path)
        with container:
            self.rate = stream.average_rate
            self.pixel_aspect = stream.sample_aspect_ratio or None
            self.audio = self._path if container.streams.audio else None
            by_length = round(announced_end_s(container, stream) * (self.rate or 0))
            self._count = stream.frames or by_length or None

    def count(self) -> int | None:
        """Return the number of frames from the header, or computed from length and frame rate."""
        with suppress(DataError):
            self.probe()
        return self._count

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield all decodable frames, then an error if the file is truncated, damaged or empty."""
        try:
            self.probe()
            container, stream = open_video(self._path, self._hardware)
        except DataError as error:
            yield error
            return
        with container:
            stream.thread_type = "AUTO"
            damaged, count, start_s, end_s = 0, 0, Fraction(0), Fraction(0)
            for timed in timed_frames(container, stream):
                if timed is None:
                    damaged += 1
                    continue
                if count == 0:
                    start_s = timed.time_s
                    self.turn_pixel_aspect(timed)
                end_s = max(end_s, timed.end_s)
                yield to_frame(timed, self.name, count)
                count += 1
            announced_s = announced_end_s(container, stream, start_s)
            if damage := damage_error(self.name, count, damaged, end_s, announced_s):
                yield damage
            elif count == 0:
                yield DataError(f"{self.name}: contains no frame")

    def turn_pixel_aspect(self, first: TimedFrame) -> None:
        """Adapt the pixel aspect ratio to a video that is shown turned by a quarter."""
        if self.pixel_aspect is not None and orientation(first.decoded).transpose:
            self.pixel_aspect = 1 / self.pixel_aspect


def to_frame(timed: TimedFrame, source: str, index: int) -> Frame:
    """Return a decoded frame as an upright frame of a source."""
    planes = timed.decoded if is_plain_yuv420p(timed.decoded) else None
    return Frame(
        upright_rgb(timed.decoded), source, index, frame_name(index), time.monotonic(),
        timed.pts, timed.time_base, planes,
    )  # fmt: skip


def frame_name(index: int) -> str:
    """Return the name of a frame of a video in output paths."""
    return f"{index:06d}"


def damage_error(
    name: str, frames: int, damaged: int, end_s: Fraction, announced_s: Fraction
) -> DataError | None:
    """Return the error of a video with damaged packets or an early end, None if it is complete.

    Args:
        name: The video.
        frames: Number of frames that were decoded.
        damaged: Number of damaged packets.
        end_s: End of the last decoded frame in seconds.
        announced_s: End of the video in seconds, as its header states it.
    """
    if not damaged and end_s >= announced_s - Fraction(_END_SLACK_S):
        return None
    packets = f", {damaged} damaged packet{'s' * (damaged > 1)}" if damaged else ""
    return DataError(
        f"{name}: truncated or damaged; decoded {frames} frame{'s' * (frames != 1)} up to "
        f"{float(end_s):.2f} s of {float(max(announced_s, end_s)):.2f} s{packets}"
    )


def announced_end_s(container: Any, stream: Any, start_s: Fraction = Fraction(0)) -> Fraction:
    """Return the end of the video from the header in seconds, 0 if the header does not state it.

    `start_s` is the time of the first frame. Some demuxers guess the start from the first packets,
    so a later one is not believed.
    """
    if stream.duration is not None and stream.time_base is not None:
        guessed_s = Fraction((stream.start_time or 0) * stream.time_base)
        return min(guessed_s, start_s) + Fraction(stream.duration * stream.time_base)
    # Matroska states only the length of the file, which may be that of the audio.
    if len(container.streams) == 1 and container.duration is not None:
        return Fraction(container.duration, 1_000_000)
    return Fraction(0)
