"""What a caller gets for one frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import LabelSpace
from fada_deploy.runtime.overlay.blend import class_fractions
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.overlay.style import OverlayStyle


@dataclass(frozen=True, repr=False)
class Result:
    """The labels of one frame and where the frame came from.

    `labels`: (H, W) uint8 class indices of `space`, at the frame's own size. `frame`: (H, W, 3)
    uint8 in the order `color` ("rgb" or "bgr"). `source` and `index`: which frame of what; `item` is
    its name there ("" for a picture on its own). `pts` × `time_base`: seconds within the source, None
    for a still picture. `captured`: `time.monotonic()` when the frame was read; `latency_s`: from then
    until the labels were there. `confidence`: (H, W) float32, softmax probability of the class, if asked for.
    `decoded`: the decoder's own PyAV frame, where overlays can be drawn in its planes.
    """

    labels: NDArray[np.uint8]
    frame: NDArray[np.uint8]
    space: LabelSpace
    captured: float
    latency_s: float
    color: str = "rgb"
    source: str = ""
    index: int = 0
    item: str = ""
    pts: int | None = None
    time_base: Fraction | None = None
    confidence: NDArray[np.float32] | None = None
    decoded: Any = None

    def __repr__(self) -> str:
        height, width = self.labels.shape
        where = f"{self.source!r} {self.index}, " if self.source else ""
        return f"Result({where}{width}x{height}, {1000 * self.latency_s:.1f} ms)"

    @property
    def time_s(self) -> float | None:
        """Seconds within the source; None for a still picture."""
        return (
            None if self.pts is None or self.time_base is None else float(self.pts * self.time_base)
        )

    @property
    def fractions(self) -> NDArray[np.float64]:
        """The share of the picture that each class holds, (K,), summing to 1."""
        return class_fractions(self.labels, self.space.num_classes)

    def overlay(
        self,
        alpha: float = 0.5,
        *,
        legend: bool = False,
        contours: bool = False,
        classes: Sequence[str] = (),
    ) -> NDArray[np.uint8]:
        """Return the frame with the classes' colors laid over it, in the frame's own channel order.

        The arguments are those of `OverlayStyle`; `OverlayRenderer` draws a film, whose legend keeps its lines.
        """
        look = OverlayStyle(alpha, legend=legend, contours=contours, classes=tuple(classes))
        return OverlayRenderer(look, self.space).draw(self)
