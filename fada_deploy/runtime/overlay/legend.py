"""A panel that names the colors of an overlay and says how much of the picture each class holds."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

# Classes below this share of the pictures so far are not worth a line of the legend.
_WORTH_A_LINE = 0.002
# A panel wider than this share of the picture hides more than it tells; of a higher one the rarest lines go.
_WIDEST, _HIGHEST = 0.4, 0.6
_PANEL, _RIM = 24, 110
_INK, _FAINT = (238, 238, 238), (150, 150, 150)
_PANEL_OPACITY = 0.72


class Legend:
    """A panel of color, name and share for the classes that a film shows, made for one picture size.

    The lines are the classes most seen so far, in the label space's order, so that the panel does not
    jump about; as many as fit into six tenths of the height. A picture too small for a panel gets none.
    """

    def __init__(
        self, names: Sequence[str], palette: NDArray[np.uint8], size_hw: tuple[int, int]
    ) -> None:
        height, width = size_hw
        self._names = names
        self.size_hw = size_hw
        # Below 11 pixels letters fall apart; above, a 36th of the height reads well on any screen.
        self._letter = max(11, round(min(height, width * 0.6) / 36))
        self._row = round(self._letter * 1.55)
        self._pad = round(self._letter * 0.7)
        self._seen = np.zeros(len(names))
        self._lines: list[int] = []
        self._name_width = max(_text_width(n, self._letter) for n in names)
        self._share_width = _text_width("100%", self._letter)
        self._swatch_wh = round(self._letter * 1.5), round(self._letter * 0.86)
        # Drawn once: their round corners would take most of a frame's time for the panel.
        self._swatches = [_swatch(color, self._swatch_wh) for color in palette[: len(names)]]

    def draw(self, picture: Picture, fractions: NDArray[np.float64]) -> None:
        """Draw into a picture (H, W, 3) uint8 of the legend's size; `fractions` (K,) are this picture's."""
        if any(self.place(fractions)):
            self.paint(picture, fractions)

    def place(self, fractions: NDArray[np.float64]) -> tuple[int, int]:
        """Choose the lines; return the width and height of the corner that `paint` then needs, (0, 0) for none."""
        self._seen += fractions
        most = round(_HIGHEST * self.size_hw[0] - 2 * self._pad) // self._row
        worthy = np.flatnonzero(self._seen > _WORTH_A_LINE * self._seen.sum())
        order = np.argsort(-self._seen[worthy], kind="stable")
        self._lines = sorted(worthy[order][: max(most, 0)].tolist())
        width, height = self._panel_wh
        if not self._lines or width > _WIDEST * self.size_hw[1]:
            return 0, 0
        return self._pad + width, self._pad + height

    @property
    def _panel_wh(self) -> tuple[int, int]:
        width = (
            round(self._letter * 1.5)
            + self._name_width
            + self._share_width
            + round(4.2 * self._pad)
        )
        return width, len(self._lines) * self._row + self._pad

    def paint(self, picture: Picture, fractions: NDArray[np.float64]) -> None:
        """Draw the chosen lines into a picture's upper left corner, at least as large as `place` says."""
        left = top = self._pad
        width, height = self._panel_wh
        _panel(picture, (left, top), (width, height), radius=self._pad)
        for place, index in enumerate(self._lines):
            middle = top + self._pad // 2 + place * self._row + self._row // 2
            self._line(
                picture, index, fractions[index], (left + self._pad, middle), width - 2 * self._pad
            )

    def _line(
        self, picture: Picture, index: int, fraction: float, at: tuple[int, int], width: int
    ) -> None:
        x, middle = at
        swatch = self._swatches[index]
        top = middle - self._swatch_wh[1] // 2 - 1
        picture[top : top + swatch.shape[0], x - 1 : x - 1 + swatch.shape[1]] = swatch
        ink = _INK if fraction >= 0.0005 else _FAINT
        base = middle + round(self._letter * 0.36)
        _text(
            picture,
            self._names[index],
            (x + self._swatch_wh[0] + self._pad, base),
            self._letter,
            ink,
        )
        text = f"{100 * fraction:.0f}%" if fraction >= 0.01 or fraction < 0.0005 else "<1%"
        _text(picture, text, (x + width - _text_width(text, self._letter), base), self._letter, ink)


def _swatch(color: NDArray[np.uint8], size_wh: tuple[int, int]) -> Picture:
    """Return a class's color in a rim, which sets one as dark as the panel (car, truck, building) off from it."""
    width, height = size_wh
    swatch = np.full((height + 2, width + 2, 3), _PANEL, np.uint8)
    _rounded(swatch, (0, 0), (width + 2, height + 2), radius=(height + 2) // 4, color=(_RIM,) * 3)
    _rounded(swatch, (1, 1), size_wh, radius=height // 4, color=tuple(int(v) for v in color))
    return swatch


def _panel(picture: Picture, at: tuple[int, int], size_wh: tuple[int, int], *, radius: int) -> None:
    """Darken a rounded rectangle."""
    (x, y), (width, height) = at, size_wh
    under = picture[y : y + height, x : x + width]
    dark = under.copy()
    _rounded(dark, (0, 0), (under.shape[1], under.shape[0]), radius=radius, color=(_PANEL,) * 3)
    cv2.addWeighted(dark, _PANEL_OPACITY, under, 1 - _PANEL_OPACITY, 0, dst=under)


def _rounded(
    picture: Picture,
    at: tuple[int, int],
    size_wh: tuple[int, int],
    *,
    radius: int,
    color: tuple[int, ...],
) -> None:
    (x, y), (width, height) = at, size_wh
    right, bottom = x + width - 1, y + height - 1
    cv2.rectangle(picture, (x + radius, y), (right - radius, bottom), color, cv2.FILLED)
    cv2.rectangle(picture, (x, y + radius), (right, bottom - radius), color, cv2.FILLED)
    for center in ((x + radius, y + radius), (right - radius, y + radius)):
        cv2.circle(picture, center, radius, color, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(picture, (center[0], bottom - radius), radius, color, cv2.FILLED, cv2.LINE_AA)


# OpenCV 5 has a real typeface; before, there are only stroke letters.
_HAS_TYPE = hasattr(cv2, "FontFace")
_WEIGHT = 500


def _text_width(text: str, letter: int) -> int:
    if _HAS_TYPE:
        return int(cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), letter, _WEIGHT)[2])
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, letter / 30, 1)[0][0])


def _text(
    picture: Picture, text: str, at: tuple[int, int], letter: int, color: tuple[int, ...]
) -> None:
    if _HAS_TYPE:
        cv2.putText(picture, text, at, color, cv2.FontFace("sans"), letter, _WEIGHT)
    else:
        cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, letter / 30, color, 1, cv2.LINE_AA)
