"""Video files as a source."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DataError
from fada_deploy.common.video import is_plain_yuv420p, open_video, upright_rgb
from fada_deploy.runtime.sources.base import Frame

# A container's length may end half a second after the last picture without anything being missing.
_SLACK_S = 0.5


class VideoSource:
    """A video file: every frame with its own timestamp, turned as its rotation flag says.

    `hardware`, a key of `common.video.HARDWARE`, decodes it.
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
        # The time of the picture before.
        self._last: int | None = None

    def probe(self) -> None:
        """Read the header; raise `DataError` for what is no video."""
        container, stream = open_video(self._path)
        with container:
            self.rate = stream.average_rate
            self.pixel_aspect = stream.sample_aspect_ratio or None
            self.audio = self._path if container.streams.audio else None
            self._count = stream.frames or round(_end(container, stream) * (self.rate or 0)) or None

    def count(self) -> int | None:
        """Return the number of frames as the header has it, or by length and rate."""
        with suppress(DataError):
            self.probe()
        return self._count

    def frames(self) -> Generator[Frame | DataError, None, None]:
        """Yield all frames that decode; behind them the error, if the file is cut short or damaged."""
        try:
            self.probe()
            container, stream = open_video(self._path, self._hardware)
        except DataError as error:
            yield error
            return
        with container:
            stream.thread_type = "AUTO"
            damaged, count, end = 0, 0, Fraction(0)
            self._last = None
            for picture in _decode(container, stream):
                if picture is None:
                    damaged += 1
                    continue
                frame = self._frame(picture, count)
                count += 1
                assert frame.pts is not None and frame.time_base is not None
                end = max(end, (frame.pts + (picture.duration or 0)) * frame.time_base)
                yield frame
            promised = _end(container, stream)
            if damaged or end < promised - Fraction(_SLACK_S):
                lost = f", {damaged} packet{'s' * (damaged > 1)} could not" if damaged else ""
                yield DataError(
                    f"{self.name}: cut short or damaged; {count} frames up to {float(end):.2f} s "
                    f"of {float(max(promised, end)):.2f} s could be decoded{lost}"
                )

    def _frame(self, picture: Any, index: int) -> Frame:
        pts, time_base = picture.pts, picture.time_base
        if time_base is None:
            # Bare streams carry no clock.
            pts, time_base = index, 1 / (self.rate or Fraction(25))
        elif pts is None:
            # Some give a time to every other picture alone; the first has none where none has.
            step = 1 / ((self.rate or Fraction(25)) * time_base)
            pts = 0 if self._last is None else self._last + max(1, round(step))
        self._last = pts
        if index == 0 and self.pixel_aspect is not None and picture.rotation % 180:
            self.pixel_aspect = 1 / self.pixel_aspect
        decoded = picture if is_plain_yuv420p(picture) else None
        rgb, item = upright_rgb(picture), f"{index:06d}"
        return Frame(rgb, self.name, index, item, time.monotonic(), pts, time_base, decoded)


def _end(container: Any, stream: Any) -> Fraction:
    """Return when the header says that the pictures end, in seconds; 0 where it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return Fraction((stream.start_time or 0) + stream.duration) * Fraction(stream.time_base)
    # Matroska knows the length of the whole alone, which may be that of its sound.
    alone = len(container.streams) == 1 and container.duration is not None
    return Fraction(container.duration, 1_000_000) if alone else Fraction(0)


def _decode(container: Any, stream: Any) -> Generator[Any, None, None]:
    """Yield decoded frames, and None for each packet that is broken."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            yield None
            return
        if packet is None:
            return
        yield from decoded(packet)


def decoded(packet: Any) -> Generator[Any, None, None]:
    """Yield the frames that a PyAV packet gives, and None where it is broken."""
    import av

    if packet.is_corrupt:
        yield None
    flushing = packet.size == 0
    while True:
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            yield None
            # While the decoder is emptied, the frames behind the broken one are still to be had.
            if flushing:
                continue
        return
