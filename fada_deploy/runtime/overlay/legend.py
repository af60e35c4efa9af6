"""The legend: a panel with the color, name and pixel fraction of each class."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.runtime.overlay.region import Region
from fada_deploy.runtime.overlay.style import CORNERS

Image = NDArray[np.uint8]

# Classes below this fraction of all pixels so far get no line.
_MIN_FRACTION = 0.002
# Largest panel, as a fraction of the image: wider ones are not drawn, higher ones lose lines.
_MAX_WIDTH, _MAX_HEIGHT = 0.4, 0.6
# On small images a panel of this many pixels is allowed up to a larger fraction of the width.
_SMALL_IMAGE_WIDTH, _SMALL_IMAGE_MAX_WIDTH = 160, 0.6
# An image with room for fewer lines has no legend.
_MIN_LINES = 2
# Letters are 1/36 of the image size (the smaller of the height and 60 % of the width), but at least
# 11 pixels; 9 pixels are still readable where larger ones do not fit, below this image size.
_MIN_LETTER, _MIN_LETTER_SMALL_IMAGE, _SMALL_IMAGE = 11, 9, 240
_PANEL_GRAY, _BORDER_GRAY = 24, 110
_TEXT_COLOR, _FAINT_COLOR = (238, 238, 238), (150, 150, 150)
_PANEL_OPACITY = 0.72
# A panel with position "auto" avoids these classes.
_IMPORTANT_CLASSES = frozenset(
    (
        *("road", "pole", "traffic light", "traffic sign", "person", "rider"),
        *("car", "truck", "bus", "train", "motorcycle", "bicycle"),
    )
)


class Legend:
    """The legend of one source, for one image size.

    The lines are the most frequent classes so far, in the order of the label space, as many as fit
    into 60 % of the height. The longest name among them sets the width of the panel. A panel that
    is wider than 40 % of the image and than 160 pixels, or than 60 % of the image, is not drawn.
    `position` is a corner or "auto"; "auto" is replaced by a corner when the first panel is placed.

    `is_too_small` says whether the image has no room for a panel with the lines of the last frame.
    """

    def __init__(
        self,
        names: Sequence[str],
        palette: NDArray[np.uint8],
        size_hw: tuple[int, int],
        position: str = "top-left",
    ) -> None:
        height, width = size_hw
        self._names = names
        self.size_hw = size_hw
        self.position = position
        self.is_too_small = False
        size = min(height, width * 0.6)
        smallest = _MIN_LETTER if size >= _SMALL_IMAGE else _MIN_LETTER_SMALL_IMAGE
        self._letter = max(smallest, round(size / 36))
        self._max_width = min(
            max(_MAX_WIDTH * width, _SMALL_IMAGE_WIDTH), _SMALL_IMAGE_MAX_WIDTH * width
        )
        self._line_height = round(self._letter * 1.55)
        self._padding = round(self._letter * 0.7)
        self._total = np.zeros(len(names))
        self._lines: list[int] = []
        self._name_widths = [_text_width(name, self._letter) for name in names]
        self._percent_width = _text_width("100%", self._letter)
        self._swatch_wh = round(self._letter * 1.5), round(self._letter * 0.86)
        # Drawn once: rounded corners would take most of the panel's time in each frame.
        self._swatches = [_swatch(color, self._swatch_wh) for color in palette[: len(names)]]
        important = [i for i, name in enumerate(names) if name.lower() in _IMPORTANT_CLASSES]
        self._important = np.zeros(256, np.bool_)
        self._important[important] = True

    def draw(self, image: Image, labels: NDArray[np.uint8], fractions: NDArray[np.float64]) -> None:
        """Draw the legend of a frame into an image (H, W, 3) uint8 of the legend's size.

        `labels` (H, W) and `fractions` (K,) are those of the frame.
        """
        panel = self.update(labels, fractions)
        if panel is not None:
            self.draw_panel(image, (panel.left, panel.top), fractions)

    def update(self, labels: NDArray[np.uint8], fractions: NDArray[np.float64]) -> Region | None:
        """Count a frame, choose the lines and return the panel's region, None for no panel."""
        self._total += fractions
        max_lines = round(_MAX_HEIGHT * self.size_hw[0] - 2 * self._padding) // self._line_height
        frequent = np.flatnonzero(self._total > _MIN_FRACTION * self._total.sum())
        order = np.argsort(-self._total[frequent], kind="stable")
        self._lines = sorted(frequent[order][: max(max_lines, 0)].tolist())
        self.is_too_small = bool(frequent.size) and (
            max_lines < _MIN_LINES or self._panel_wh[0] > self._max_width
        )
        if not self._lines or self.is_too_small:
            return None
        if self.position == "auto":
            # min returns the first corner on a tie: top-left.
            self.position = min(CORNERS, key=lambda corner: self._hidden_pixels(corner, labels))
        return self._panel_region(self.position)

    def _hidden_pixels(self, corner: str, labels: NDArray[np.uint8]) -> int:
        """Return how many pixels of important classes a panel in a corner would hide."""
        return int(self._important[labels[self._panel_region(corner).slices]].sum())

    def _panel_region(self, corner: str) -> Region:
        """Return the region of the panel in a corner, one padding away from both edges."""
        width, height = self._panel_wh
        vertical, horizontal = corner.split("-")
        left = self._padding
        if horizontal == "right":
            left = self.size_hw[1] - self._padding - width
        top = self._padding
        if vertical == "bottom":
            top = self.size_hw[0] - self._padding - height
        return Region(left, top, width, height)

    @property
    def _panel_wh(self) -> tuple[int, int]:
        width = (
            round(self._letter * 1.5)
            + max(self._name_widths[index] for index in self._lines)
            + self._percent_width
            + round(4.2 * self._padding)
        )
        return width, len(self._lines) * self._line_height + self._padding

    def draw_panel(self, image: Image, at: tuple[int, int], fractions: NDArray[np.float64]) -> None:
        """Draw the panel that `update` chose, with its upper left corner at `at` (x, y)."""
        left, top = at
        width, height = self._panel_wh
        _darken(image, (left, top), (width, height), radius=self._padding)
        x = left + self._padding
        for row, index in enumerate(self._lines):
            middle = top + self._padding // 2 + row * self._line_height + self._line_height // 2
            self._draw_line(image, index, fractions[index], (x, middle), width - 2 * self._padding)

    def _draw_line(
        self, image: Image, index: int, fraction: float, at: tuple[int, int], width: int
    ) -> None:
        x, middle = at
        swatch = self._swatches[index]
        top = middle - self._swatch_wh[1] // 2 - 1
        image[top : top + swatch.shape[0], x - 1 : x - 1 + swatch.shape[1]] = swatch
        color = _TEXT_COLOR if fraction >= 0.0005 else _FAINT_COLOR
        base = middle + round(self._letter * 0.36)
        name_x = x + self._swatch_wh[0] + self._padding
        _draw_text(image, self._names[index], (name_x, base), self._letter, color)
        percent = f"{100 * fraction:.0f}%" if fraction >= 0.01 or fraction < 0.0005 else "<1%"
        percent_x = x + width - _text_width(percent, self._letter)
        _draw_text(image, percent, (percent_x, base), self._letter, color)


def _swatch(color: NDArray[np.uint8], size_wh: tuple[int, int]) -> Image:
    """Return a patch of a class color; its border separates dark colors from the dark panel."""
    width, height = size_wh
    swatch = np.full((height + 2, width + 2, 3), _PANEL_GRAY, np.uint8)
    border = (_BORDER_GRAY,) * 3
    _rounded(swatch, (0, 0), (width + 2, height + 2), radius=(height + 2) // 4, color=border)
    _rounded(swatch, (1, 1), size_wh, radius=height // 4, color=tuple(int(v) for v in color))
    return swatch


def _darken(image: Image, at: tuple[int, int], size_wh: tuple[int, int], *, radius: int) -> None:
    """Darken a rounded rectangle of an image."""
    (x, y), (width, height) = at, size_wh
    area = image[y : y + height, x : x + width]
    dark = area.copy()
    _rounded(dark, (0, 0), (area.shape[1], area.shape[0]), radius=radius, color=(_PANEL_GRAY,) * 3)
    cv2.addWeighted(dark, _PANEL_OPACITY, area, 1 - _PANEL_OPACITY, 0, dst=area)


def _rounded(
    image: Image,
    at: tuple[int, int],
    size_wh: tuple[int, int],
    *,
    radius: int,
    color: tuple[int, ...],
) -> None:
    """Fill a rectangle with rounded corners."""
    (x, y), (width, height) = at, size_wh
    right, bottom = x + width - 1, y + height - 1
    cv2.rectangle(image, (x + radius, y), (right - radius, bottom), color, cv2.FILLED)
    cv2.rectangle(image, (x, y + radius), (right, bottom - radius), color, cv2.FILLED)
    for center in ((x + radius, y + radius), (right - radius, y + radius)):
        cv2.circle(image, center, radius, color, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(image, (center[0], bottom - radius), radius, color, cv2.FILLED, cv2.LINE_AA)


# OpenCV 5 has a real typeface; earlier versions have stroke fonts only.
_HAS_TYPEFACE = hasattr(cv2, "FontFace")
_FONT_WEIGHT = 500


def _text_width(text: str, letter: int) -> int:
    if _HAS_TYPEFACE:
        font = cv2.FontFace("sans")
        return int(cv2.getTextSize((0, 0), text, (0, 0), font, letter, _FONT_WEIGHT)[2])
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, letter / 30, 1)[0][0])


def _draw_text(
    image: Image, text: str, at: tuple[int, int], letter: int, color: tuple[int, ...]
) -> None:
    if _HAS_TYPEFACE:
        cv2.putText(image, text, at, color, cv2.FontFace("sans"), letter, _FONT_WEIGHT)
    else:
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, letter / 30, color, 1, cv2.LINE_AA)
