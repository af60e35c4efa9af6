"""Draw the overlays of videos and images in one style."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import LabelSpace
from fada_deploy.runtime.overlay.blend import class_fractions, overlay
from fada_deploy.runtime.overlay.legend import Legend
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.overlay.yuv import (
    color_matrix,
    overlay_yuv,
    palette_to_yuv,
    read_region,
    write_region,
)


class LabeledFrame(Protocol):
    """The attributes of a `Result` that the renderer reads."""

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
    """Draws results in one style.

    Each source has its own legend, which keeps its corner and its lines from frame to frame.

    Args:
        style: How the labels are drawn.
        space: The label space of the model.

    Raises:
        UsageError: The label space lacks a class that the style selects.
    """

    def __init__(self, style: OverlayStyle, space: LabelSpace) -> None:
        self._style = style
        self._space = space
        self._drawn = style.drawn_classes(space)
        self._legends: dict[str, Legend] = {}
        self._yuv_tables: dict[int, NDArray[np.uint8]] = {}

    def draw(self, result: LabeledFrame) -> NDArray[np.uint8]:
        """Return the overlay (H, W, 3) uint8 in the channel order of the frame.

        With `side_by_side` it is (H, 2 W, 3).
        """
        style, palette = self._style, self._space.palette
        if result.color == "bgr":
            palette = palette[:, ::-1]
        image = overlay(
            result.frame,
            result.labels,
            palette,
            style.alpha,
            drawn=self._drawn,
            contours=style.contours,
        )
        if style.legend != "none":
            self._legend(result, palette).draw(image, result.labels, self._fractions(result))
        return np.hstack([result.frame, image]) if style.side_by_side else image

    def draw_for_video(self, result: LabeledFrame) -> Any:
        """Return the overlay for a video encoder: a PyAV frame drawn in YUV, or `draw`'s RGB image.

        YUV drawing is faster. It needs a decoded yuv420p frame, all classes and no contours.
        """
        style, decoded = self._style, result.decoded
        if decoded is None or style.contours or style.side_by_side or self._drawn is not None:
            return self.draw(result)
        matrix = color_matrix(decoded)
        if matrix not in self._yuv_tables:
            self._yuv_tables[matrix] = palette_to_yuv(self._space.palette, matrix)
        frame = overlay_yuv(decoded, result.labels, self._yuv_tables[matrix], style.alpha)
        if style.legend != "none":
            self._draw_legend_yuv(frame, result)
        return frame

    def _draw_legend_yuv(self, frame: Any, result: LabeledFrame) -> None:
        """Draw the legend into a yuv420p frame; only its region is converted to RGB and back."""
        fractions = self._fractions(result)
        legend = self._legend(result, self._space.palette)
        panel = legend.update(result.labels, fractions)
        if panel is None:
            return
        region = panel.even()
        rgb = read_region(frame, region)
        legend.draw_panel(rgb, (panel.left - region.left, panel.top - region.top), fractions)
        write_region(frame, region, rgb)

    def _fractions(self, result: LabeledFrame) -> NDArray[np.float64]:
        """Return the fractions of the classes that are drawn."""
        fractions = class_fractions(result.labels, self._space.num_classes)
        if self._drawn is None:
            return fractions
        return np.where(self._drawn[: len(fractions)], fractions, 0.0)

    def _legend(self, result: LabeledFrame, palette: NDArray[np.uint8]) -> Legend:
        size_hw = (result.labels.shape[0], result.labels.shape[1])
        legend = self._legends.get(result.source)
        # Images are unrelated to each other, so each has a legend of its own.
        is_image = result.time_s is None
        if legend is None or legend.size_hw != size_hw or is_image:
            position = self._style.legend
            if legend is not None and not is_image:
                # A video that changes its size keeps the corner.
                position = legend.position
            legend = Legend(self._space.names, palette, size_hw, position)
            self._legends[result.source] = legend
        return legend

    def forget(self, source: str) -> None:
        """Discard the legend of a source that has ended."""
        self._legends.pop(source, None)
