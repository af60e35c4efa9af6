"""Video files as a source."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DataError
from fada_deploy.common.video import (
    decode_frames,
    is_plain_yuv420p,
    open_video,
    upright_rgb,
)
from fada_deploy.runtime.sources.base import Frame

# Seconds by which the last frame may end before the announced length without a frame missing.
_END_SLACK_S = 0.5
# Frames per second of a file that does not state its rate, as in FFmpeg.
_DEFAULT_RATE = Fraction(25)


class VideoSource:
    """A video file: each frame with its own timestamp, rotated according to its rotation flag.

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
        self._last_pts: int | None = None

    def probe(self) -> None:
        """Read the header; raise `DataError` if the file is not a readable video."""
        container, stream = open_video(self._path)
        with container:
            self.rate = stream.average_rate
            self.pixel_aspect = stream.sample_aspect_ratio or None
            self.audio = self._path if container.streams.audio else None
            by_length = round(_announced_end_s(container, stream) * (self.rate or 0))
            self._count = stream.frames or by_length or None

    def count(self) -> int | None:
        """Return the number of frames from the header, or computed from length and frame rate."""
        with suppress(DataError):
            self.probe()
        return self._count

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield all decodable frames, then an error if the file is truncated or damaged."""
        try:
            self.probe()
            container, stream = open_video(self._path, self._hardware)
        except DataError as error:
            yield error
            return
        with container:
            stream.thread_type = "AUTO"
            damaged, count, end_s = 0, 0, Fraction(0)
            self._last_pts = None
            for decoded in decode_frames(container, stream):
                if decoded is None:
                    damaged += 1
                    continue
                frame = self._to_frame(decoded, count)
                count += 1
                assert frame.pts is not None and frame.time_base is not None
                end_s = max(end_s, (frame.pts + (decoded.duration or 0)) * frame.time_base)
                yield frame
            announced_s = _announced_end_s(container, stream)
            if damaged or end_s < announced_s - Fraction(_END_SLACK_S):
                packets = f", {damaged} damaged packet{'s' * (damaged > 1)}" if damaged else ""
                frames = f"{count} frame{'s' * (count != 1)}"
                yield DataError(
                    f"{self.name}: truncated or damaged; decoded {frames} up to "
                    f"{float(end_s):.2f} s of {float(max(announced_s, end_s)):.2f} s{packets}"
                )

    def _to_frame(self, decoded: Any, index: int) -> Frame:
        pts, time_base = decoded.pts, decoded.time_base
        if time_base is None:
            # Raw H.264 and HEVC streams have no timestamps.
            pts, time_base = index, 1 / (self.rate or _DEFAULT_RATE)
        elif pts is None:
            # Some files have a timestamp for every other frame only.
            step = 1 / ((self.rate or _DEFAULT_RATE) * time_base)
            pts = 0 if self._last_pts is None else self._last_pts + max(1, round(step))
        self._last_pts = pts
        if index == 0 and self.pixel_aspect is not None and decoded.rotation % 180:
            self.pixel_aspect = 1 / self.pixel_aspect
        planes = decoded if is_plain_yuv420p(decoded) else None
        rgb, item = upright_rgb(decoded), f"{index:06d}"
        return Frame(rgb, self.name, index, item, time.monotonic(), pts, time_base, planes)


def _announced_end_s(container: Any, stream: Any) -> Fraction:
    """Return the end of the video from the header in seconds, 0 if the header does not state it."""
    if stream.duration is not None and stream.time_base is not None:
        return Fraction((stream.start_time or 0) + stream.duration) * Fraction(stream.time_base)
    # Matroska states only the length of the file, which may be that of the audio.
    if len(container.streams) == 1 and container.duration is not None:
        return Fraction(container.duration, 1_000_000)
    return Fraction(0)
