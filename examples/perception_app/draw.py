"""A frame's JSON line, drawn over the frame; below it a bar with latency, mode and drift."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from perception import DYNAMIC, Corridor

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]

GREEN, AMBER, RED, WHITE, GREY, DARK = (
    (60, 200, 120), (250, 180, 40), (240, 70, 60), (240, 240, 240), (150, 150, 150), (24, 24, 26),
)  # fmt: skip
# Below so many columns a picture is drawn enlarged, or its letters would fall apart.
_WIDTH = 960


def annotated(
    frame: Picture, line: dict[str, Any], corridor: Corridor, budget_s: float | None
) -> Picture:
    """Return a film's picture (H, W, 3) uint8 RGB for a frame (h, w, 3) and what `App.step` said of it."""
    factor = max(1, round(_WIDTH / frame.shape[1]))
    picture = np.asarray(
        cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8
    )
    letter = max(11, picture.shape[0] // 40)
    _road(picture, line, corridor)
    for obstacle in reversed(line["obstacles"]):
        _box(picture, obstacle, letter)
    return np.vstack([picture, _bar(picture.shape[1], line, budget_s, letter)])


def _road(picture: Picture, line: dict[str, Any], corridor: Corridor) -> None:
    end = corridor.bottom - line["free_ahead"]
    blocked = line["free_until"] in DYNAMIC
    tinted = picture.copy()
    _fill(tinted, np.array(line["drivable"]["polygon"]), GREEN)
    cv2.addWeighted(tinted, 0.22, picture, 0.78, 0, dst=picture)
    tinted = picture.copy()
    ahead = corridor.polygon(min(end, corridor.far))
    _fill(tinted, ahead, RED if blocked else GREY)
    _fill(tinted, corridor.polygon(end), GREEN)
    cv2.addWeighted(tinted, 0.4, picture, 0.6, 0, dst=picture)
    cv2.polylines(picture, [_pixels(picture, ahead)], True, WHITE, 1, cv2.LINE_AA)
    left, right = _pixels(picture, corridor.polygon(end))[:2].tolist()
    cv2.line(
        picture, left, right, RED if blocked else WHITE, max(2, len(picture) // 200), cv2.LINE_AA
    )


def _box(picture: Picture, obstacle: dict[str, Any], letter: int) -> None:
    color = WHITE if obstacle["ahead"] is None else RED
    (left, top), (right, bottom) = _pixels(
        picture, np.array(obstacle["box"]).reshape(2, 2)
    ).tolist()
    cv2.rectangle(picture, (left, top), (right, bottom), color, max(1, letter // 9), cv2.LINE_AA)
    where = obstacle["position"] if obstacle["ahead"] is None else f"{obstacle['ahead']:.2f} ahead"
    name = f"{obstacle['name']}, {where}"
    width = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, letter / 30, 1)[0][0] + letter
    x, base = max(min(left, picture.shape[1] - width), 0), max(top - letter // 3, letter)
    cv2.rectangle(picture, (x, base - letter), (x + width, base + letter // 3), DARK, -1)
    _text(picture, name, (x + 3, base), letter, color)


def _bar(width: int, line: dict[str, Any], budget_s: float | None, letter: int) -> Picture:
    bar = np.full((3 * letter, width, 3), DARK, np.uint8)
    base = 2 * letter - letter // 6
    budget = "" if budget_s is None else f" of {1000 * budget_s:g}"
    held = f", held from {line['age_ms']:.0f} ms ago" if line["stale"] else ""
    mode = f"HALF RATE{held}" if line["degraded"] else "full rate"
    drift = "drift unknown" if line["drift"] is None else f"drift {line['drift']:.2f}"
    ahead = f"free {line['free_ahead']:.2f}" + (
        f" to {line['free_until']}" if line["free_until"] else ""
    )
    cells = (
        (f"latency {line['latency_ms']:.0f}{budget} ms", RED if line["late"] else GREEN),
        (mode, AMBER if line["degraded"] else GREEN),
        (
            f"{drift}: NOT AS EXPORTED" if line["drifting"] else drift,
            RED if line["drifting"] else GREEN,
        ),
        (ahead, RED if line["free_until"] in DYNAMIC else GREEN),
    )
    for place, (text, color) in enumerate(cells):
        x = letter + place * (width - letter) // len(cells)
        cv2.circle(bar, (x + letter // 3, base - letter // 3), letter // 3, color, -1, cv2.LINE_AA)
        _text(bar, text, (x + letter, base), letter, WHITE)
    return bar


def _pixels(picture: Picture, points: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.round(points.reshape(-1, 2) * picture.shape[1::-1]).astype(np.int32)


def _fill(picture: Picture, points: NDArray[np.float64], color: Color) -> None:
    if len(points):
        cv2.fillPoly(picture, [_pixels(picture, points)], color, cv2.LINE_AA)


def _text(picture: Picture, text: str, at: tuple[int, int], letter: int, color: Color) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, letter / 30, color, 1, cv2.LINE_AA)
