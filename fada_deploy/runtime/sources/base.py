"""The interface of a source, and the items that it yields."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a source.

    Attributes:
        rgb: (H, W, 3) uint8 RGB image.
        source: Name of the source.
        index: Number of the frame within the source, from 0.
        item: Name of the frame within the source; "" if the source is a single image.
        captured: `time.monotonic()` when the frame was read.
        pts: Presentation timestamp in units of `time_base`; None for still images.
        time_base: Seconds per unit of `pts`; None for still images.
        decoded: The PyAV frame that `rgb` was converted from, if an overlay can be drawn in its
            YUV planes.
    """

    rgb: NDArray[np.uint8]
    source: str
    index: int
    item: str
    captured: float
    pts: int | None = None
    time_base: Fraction | None = None
    decoded: Any = None


class Pause:
    """Emitted while a source waits, so that its reader can be stopped.

    `PAUSE`: no further frame is ready, so a partial batch is processed at once. `BUSY`: frames are
    on their way, and the next one is read when they have arrived; a partial batch waits for it.
    """


PAUSE, BUSY = Pause(), Pause()
Item = Frame | DataError | Pause


class Source(Protocol):
    """A named sequence of frames.

    Attributes:
        name: Path, address or other unique name.
        is_video: Whether the frames form one video; otherwise they are independent still images.
        is_live: Whether frames arrive in real time; such a source is a `StoppableSource`.
        rate: Frames per second of a video, if known.
        pixel_aspect: Width of a pixel divided by its height, if known; otherwise pixels are square.
        audio: File that holds the audio track of a video, if there is one.
    """

    name: str
    is_video: bool
    is_live: bool
    rate: Fraction | None
    pixel_aspect: Fraction | None
    audio: Path | None

    def count(self) -> int | None:
        """Return the expected number of frames, or None if it is unknown."""
        ...

    def frames(self) -> Generator[Item, None, None]:
        """Yield the frames in order, and a `DataError` for each frame or file that is unreadable.

        A live source yields `PAUSE` before it waits.
        """
        ...


class StoppableSource(Source, Protocol):
    """A live source: `is_live` is True and `stop` ends it."""

    def stop(self) -> None:
        """End `frames` as if the source had ended; may be called from a signal handler."""
        ...


def live_sources(sources: Iterable[Source]) -> list[StoppableSource]:
    """Return the live ones of some sources."""
    return [cast("StoppableSource", source) for source in sources if source.is_live]


@dataclass(frozen=True)
class SourceEnd:
    """Follows the last frame of a source, so that its output files can be finished.

    `is_interrupted` says that the source was stopped before its end.
    """

    source: Source
    is_interrupted: bool = False
