"""What a source of frames is, and what it yields."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError


@dataclass(frozen=True)
class Frame:
    """One picture: `rgb` (H, W, 3) uint8, where and when it comes from.

    `source` is the source's name, `index` counts its frames from 0, and `item` names the frame
    within it ("" where the source is one picture). `pts` × `time_base` are seconds (None for a still
    picture). `captured` is `time.monotonic()` when it was read. `decoded`: see `Result`.
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
    """Comes where nothing more lies ready: what was gathered goes on without it."""


PAUSE = Pause()
Item = Frame | DataError | Pause


class Source(Protocol):
    """Frames with a name.

    `moving`: the frames make one film, at `rate` frames a second, with sound in the file `audio`.
    """

    name: str
    is_video: bool
    is_live: bool
    rate: Fraction | None
    pixel_aspect: Fraction | None
    audio: Path | None

    def count(self) -> int | None:
        """Return how many frames to expect, if that can be known."""
        ...

    def frames(self) -> Generator[Item, None, None]:
        """Yield the frames in order, a `DataError` for what cannot be read, `PAUSE` before a wait."""
        ...


@dataclass(frozen=True)
class SourceEnd:
    """Comes behind the last frame of a source, so that its files can be finished."""

    source: Source
