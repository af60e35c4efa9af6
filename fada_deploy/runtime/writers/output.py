"""What the writer of one kind of output gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import LabelSpace
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.sources.base import Source
from fada_deploy.runtime.writers.options import SaveOptions

if TYPE_CHECKING:
    from av import VideoFrame

Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class DrawnResult:
    """A result and its overlay; `overlay` is None if overlays are not saved.

    The overlay is (H, W, 3) uint8 RGB, or a PyAV frame if it was drawn in YUV.
    """

    result: Result
    overlay: Image | VideoFrame | None


@dataclass
class Output:
    """One kind of output of one source.

    Attributes:
        source: The source.
        name: Name of the source in output paths.
        first: Its first result, which sets the size and time base of videos.
        options: What is saved, and where.
        is_interrupted: Whether the source was stopped before its end; set before the output is
            completed.
    """

    source: Source
    name: str
    first: DrawnResult
    options: SaveOptions
    is_interrupted: bool = False

    @property
    def space(self) -> LabelSpace:
        """The label space of the results."""
        return self.first.result.space

    @property
    def time_base(self) -> Fraction:
        """Seconds per unit of the timestamps of a video."""
        assert self.first.result.time_base is not None
        return self.first.result.time_base

    def source_path(self, kind: str, suffix: str) -> Path:
        """Return the file that holds all results of the source."""
        return self.options.file or self.options.out / kind / f"{self.name}{suffix}"

    def frame_path(self, kind: str, suffix: str, result: Result) -> Path:
        """Return the file of one result; a single image has no folder of its own."""
        if self.options.file is not None:
            return self.options.file
        folder = self.options.out / kind
        if result.item:
            return folder / self.name / f"{result.item}{suffix}"
        return folder / f"{self.name}{suffix}"


WriteResult = Callable[[DrawnResult], None]
