"""Draw the overlays of one video or image after another in one style."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import LabelSpace
from fada_deploy.runtime.overlay.blend import class_fractions, overlay
from fada_deploy.runtime.overlay.legend import Legend
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.overlay.yuv import (
    corner_rgb,
    matrix_of,
    overlay_planes,
    palette_planes,
    set_corner,
)


class LabeledFrame(Protocol):
    """What is drawn: the part of a `Result` that the renderer reads."""

    @property
    def labels(self) -> NDArray[np.uint8]: ...
    @property
    def frame(self) -> NDArray[np.uint8]: ...
    @property
    def color(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def decoded(self) -> Any: ...
    @property
    def time_s(self) -> float | None: ...


class OverlayRenderer:
    """Draws results in one look; one source's legend keeps its lines from frame to frame."""

    def __init__(self, look: OverlayStyle, space: LabelSpace) -> None:
        self._look = look
        self._space = space
        self._shown = look.shown(space)
        self._legends: dict[str, Legend] = {}
        self._tables: dict[int, NDArray[np.uint8]] = {}

    def draw(self, result: LabeledFrame) -> NDArray[np.uint8]:
        """Return a result's picture, (H, W, 3) uint8 in its frame's channel order; `beside` doubles the width."""
        look, palette = self._look, self._space.palette
        if result.color == "bgr":
            palette = palette[:, ::-1]
        picture = overlay(
            result.frame,
            result.labels,
            palette,
            look.alpha,
            shown=self._shown,
            contours=look.contours,
        )
        if look.legend:
            self._legend(result, palette).draw(picture, self._fractions(result))
        return np.hstack([result.frame, picture]) if look.beside else picture

    def draw_for_film(self, result: LabeledFrame) -> Any:
        """Return what `draw` does, or where the frame's own planes can be drawn in, a PyAV frame, for less."""
        look, decoded = self._look, result.decoded
        if decoded is None or look.contours or look.beside or self._shown is not None:
            return self.draw(result)
        matrix = matrix_of(decoded)
        if matrix not in self._tables:
            self._tables[matrix] = palette_planes(self._space.palette, matrix)
        picture = overlay_planes(decoded, result.labels, self._tables[matrix], look.alpha)
        if look.legend:
            fractions = self._fractions(result)
            legend = self._legend(result, self._space.palette)
            width, height = legend.place(fractions)
            if width:
                corner = corner_rgb(picture, (width + width % 2, height + height % 2))
                legend.paint(corner, fractions)
                set_corner(picture, corner)
        return picture

    def _fractions(self, result: LabeledFrame) -> NDArray[np.float64]:
        """Return the fractions of the classes that are colored."""
        fractions = class_fractions(result.labels, self._space.num_classes)
        return (
            fractions
            if self._shown is None
            else np.where(self._shown[: len(fractions)], fractions, 0.0)
        )

    def _legend(self, result: LabeledFrame, palette: NDArray[np.uint8]) -> Legend:
        size = (result.labels.shape[0], result.labels.shape[1])
        legend = self._legends.get(result.source)
        # Still pictures have nothing to do with each other.
        if legend is None or legend.size_hw != size or result.time_s is None:
            legend = Legend(self._space.names, palette, size)
            self._legends[result.source] = legend
        return legend

    def forget(self, source: str) -> None:
        """Let a source's legend go."""
        self._legends.pop(source, None)
