"""Draw the overlays of videos and images in one style."""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import LabelSpace
from fada_deploy.runtime.overlay.blend import class_fractions, overlay
from fada_deploy.runtime.overlay.legend import Legend
from fada_deploy.runtime.overlay.region import Region
from fada_deploy.runtime.overlay.style import CORNERS, OverlayStyle
from fada_deploy.runtime.overlay.yuv import (
    color_matrix,
    overlay_yuv,
    palette_to_yuv,
    read_region,
    write_region,
)

logger = logging.getLogger(__name__)


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

    Each source has its own legend, which keeps its corner and its lines from frame to frame. If the
    style names a corner and the images of a source are too small for a legend, one warning is
    logged for the source.

    Args:
        style: How the labels are drawn.
        space: The label space of the model.
        corner: Corner of legends whose position is "auto" ["auto": the first frame decides].

    Raises:
        UsageError: The label space lacks a class that the style selects.
    """

    def __init__(self, style: OverlayStyle, space: LabelSpace, corner: str = "auto") -> None:
        self._style = style
        self._position = corner if style.legend == "auto" else style.legend
        self._space = space
        self._drawn = style.drawn_classes(space)
        self._legends: dict[str, Legend] = {}
        self._warned: set[str] = set()
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
            fractions = self._fractions(result)
            legend = self._legend(result, palette)
            panel = self._update(legend, result, fractions)
            if panel is not None:
                legend.draw_panel(image, (panel.left, panel.top), fractions)
        return np.hstack([result.frame, image]) if style.side_by_side else image

    def legend_corner(self, result: LabeledFrame) -> str:
        """Return the corner of the legend of a video that begins with this frame.

        It is "auto" if the frame gets no legend, so that a later frame decides.
        """
        legend = self._legend(result, self._space.palette)
        self._update(legend, result, self._fractions(result))
        return legend.position

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
        panel = self._update(legend, result, fractions)
        if panel is None:
            return
        region = panel.even()
        rgb = read_region(frame, region)
        legend.draw_panel(rgb, (panel.left - region.left, panel.top - region.top), fractions)
        write_region(frame, region, rgb)

    def _update(
        self, legend: Legend, result: LabeledFrame, fractions: NDArray[np.float64]
    ) -> Region | None:
        """Return the region of the legend's panel; warn once if a requested panel does not fit."""
        panel = legend.update(result.labels, fractions)
        requested = self._style.legend in CORNERS
        if legend.is_too_small and requested and result.source not in self._warned:
            self._warned.add(result.source)
            height, width = legend.size_hw
            logger.warning(
                "%s: no legend is drawn, because %dx%d pixels are too few for it",
                result.source or "image",
                width,
                height,
            )
        return panel

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
            position = self._position
            if legend is not None and not is_image:
                # A video that changes its size keeps the corner.
                position = legend.position
            legend = Legend(self._space.names, palette, size_hw, position)
            self._legends[result.source] = legend
        return legend

    def forget(self, source: str) -> None:
        """Discard the legend of a source that has ended."""
        self._legends.pop(source, None)
