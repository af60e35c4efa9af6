"""Draw the JSON line of a frame: the scene over the frame, and a status bar below it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from perception import DYNAMIC, Corridor

Image = NDArray[np.uint8]
Color = tuple[int, int, int]

GREEN, AMBER, RED, WHITE, GRAY, DARK = (
    (60, 200, 120), (250, 180, 40), (240, 70, 60), (240, 240, 240), (150, 150, 150), (24, 24, 26),
)  # fmt: skip
# Narrower frames are enlarged, so that text is legible.
_MIN_WIDTH = 960


def annotate(
    frame: Image, line: dict[str, Any], corridor: Corridor, budget_s: float | None
) -> Image:
    """Return the annotated image (H, W, 3) uint8 RGB of a frame (h, w, 3) and its JSON line.

    Narrow frames are enlarged, and a status bar is added below.
    """
    factor = max(1, round(_MIN_WIDTH / frame.shape[1]))
    image = np.asarray(
        cv2.resize(frame, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8
    )
    font_size = max(11, image.shape[0] // 40)
    _draw_road(image, line, corridor)
    for obstacle in reversed(line["obstacles"]):
        _draw_obstacle(image, obstacle, font_size)
    return np.vstack([image, _status_bar(image.shape[1], line, budget_s, font_size)])


def _draw_road(image: Image, line: dict[str, Any], corridor: Corridor) -> None:
    end = corridor.bottom - line["free_ahead"]
    blocked = line["free_until"] in DYNAMIC
    tint = image.copy()
    _fill_polygon(tint, np.array(line["drivable"]["polygon"]), GREEN)
    cv2.addWeighted(tint, 0.22, image, 0.78, 0, dst=image)
    tint = image.copy()
    ahead = corridor.polygon(min(end, corridor.far))
    _fill_polygon(tint, ahead, RED if blocked else GRAY)
    _fill_polygon(tint, corridor.polygon(end), GREEN)
    cv2.addWeighted(tint, 0.4, image, 0.6, 0, dst=image)
    cv2.polylines(image, [_to_pixels(image, ahead)], True, WHITE, 1, cv2.LINE_AA)
    left, right = _to_pixels(image, corridor.polygon(end))[:2].tolist()
    cv2.line(image, left, right, RED if blocked else WHITE, max(2, len(image) // 200), cv2.LINE_AA)


def _draw_obstacle(image: Image, obstacle: dict[str, Any], font_size: int) -> None:
    color = WHITE if obstacle["ahead"] is None else RED
    (left, top), (right, bottom) = _to_pixels(
        image, np.array(obstacle["box"]).reshape(2, 2)
    ).tolist()
    cv2.rectangle(image, (left, top), (right, bottom), color, max(1, font_size // 9), cv2.LINE_AA)
    position = (
        obstacle["position"] if obstacle["ahead"] is None else f"{obstacle['ahead']:.2f} ahead"
    )
    text = f"{obstacle['name']}, {position}"
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font_size / 30, 1)[0][0] + font_size
    x, base = max(min(left, image.shape[1] - width), 0), max(top - font_size // 3, font_size)
    cv2.rectangle(image, (x, base - font_size), (x + width, base + font_size // 3), DARK, -1)
    _put_text(image, text, (x + 3, base), font_size, color)


def _status_bar(width: int, line: dict[str, Any], budget_s: float | None, font_size: int) -> Image:
    bar = np.full((3 * font_size, width, 3), DARK, np.uint8)
    base = 2 * font_size - font_size // 6
    budget = "" if budget_s is None else f" of {1000 * budget_s:g}"
    reused = f", result from {line['age_ms']:.0f} ms ago" if line["stale"] else ""
    mode = f"HALF RATE{reused}" if line["degraded"] else "full rate"
    drift = "drift unknown" if line["drift"] is None else f"drift {line['drift']:.2f}"
    ahead = f"free {line['free_ahead']:.2f}" + (
        f" to {line['free_until']}" if line["free_until"] else ""
    )
    cells = (
        (f"latency {line['latency_ms']:.0f}{budget} ms", RED if line["late"] else GREEN),
        (mode, AMBER if line["degraded"] else GREEN),
        (
            f"{drift}: UNLIKE THE EXPORT" if line["drifting"] else drift,
            RED if line["drifting"] else GREEN,
        ),
        (ahead, RED if line["free_until"] in DYNAMIC else GREEN),
    )
    for i, (text, color) in enumerate(cells):
        x = font_size + i * (width - font_size) // len(cells)
        cv2.circle(
            bar, (x + font_size // 3, base - font_size // 3), font_size // 3, color, -1, cv2.LINE_AA
        )
        _put_text(bar, text, (x + font_size, base), font_size, WHITE)
    return bar


def _to_pixels(image: Image, points: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.round(points.reshape(-1, 2) * image.shape[1::-1]).astype(np.int32)


def _fill_polygon(image: Image, points: NDArray[np.float64], color: Color) -> None:
    if len(points):
        cv2.fillPoly(image, [_to_pixels(image, points)], color, cv2.LINE_AA)


def _put_text(
    image: Image, text: str, origin: tuple[int, int], font_size: int, color: Color
) -> None:
    cv2.putText(
        image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, font_size / 30, color, 1, cv2.LINE_AA
    )
