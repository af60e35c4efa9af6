"""Overlays drawn in a video frame's own planes: brightness at full size, color at half, as nearly all films are.

Blending is linear, and so is the way from RGB to these planes: drawn there, a picture need not be turned to RGB
and back, which costs more than the drawing. It differs from the picture drawn in RGB by rounding alone.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.video import BT709, LUMA_WEIGHTS, SMPTE170M, converted
from fada_deploy.runtime.kernels.loader import compiled

Plane = NDArray[np.uint8]


def matrix_of(picture: Any) -> int:
    """Return the tag that a film of such frames needs."""
    return BT709 if int(picture.colorspace) == BT709 else SMPTE170M


def palette_planes(palette: NDArray[np.uint8], matrix: int) -> NDArray[np.uint8]:
    """Return RGB colors (256, 3) as Y′, Cb, Cr tables (3, 256) uint8 of limited range."""
    red, blue = LUMA_WEIGHTS[matrix]
    r, g, b = (palette.astype(np.float64) / 255).T
    y = red * r + (1 - red - blue) * g + blue * b
    tables = [
        16 + 219 * y,
        128 + 224 * (b - y) / (2 * (1 - blue)),
        128 + 224 * (r - y) / (2 * (1 - red)),
    ]
    return np.stack(tables).round().astype(np.uint8)


def overlay_planes(
    picture: Any, labels: NDArray[np.uint8], tables: NDArray[np.uint8], alpha: float
) -> Any:
    """Return a new PyAV frame: `picture` with the colors of labels (H, W) over it, as `overlay` in RGB."""
    import av

    drawn = av.VideoFrame(picture.width, picture.height, "yuv420p")
    drawn.colorspace = matrix_of(picture)
    # The kernel looks at no bounds.
    if compiled.ready is not None and labels.shape == (picture.height, picture.width):
        rows = [_rows(plane) for plane in (*picture.planes, *drawn.planes)]
        compiled.ready.blend(np.ascontiguousarray(labels), tables, np.float32(alpha), *rows)
        return drawn
    half = (picture.width // 2, picture.height // 2)
    for table, under, into in zip(tables, planes_of(picture), planes_of(drawn), strict=True):
        color = cv2.LUT(labels, table)
        if under.shape != labels.shape:
            color = cv2.resize(color, half, interpolation=cv2.INTER_AREA)
        cv2.addWeighted(color, alpha, under, 1 - alpha, 0, dst=into)
    return drawn


def planes_of(picture: Any) -> list[Plane]:
    """Return views of a yuv420p frame's three planes."""
    planes = []
    for plane, halved in zip(picture.planes, (1, 2, 2), strict=True):
        planes.append(_rows(plane)[: picture.height // halved, : picture.width // halved])
    return planes


def _rows(plane: Any) -> Plane:
    """Return a plane as it lies in memory, its lines as long as they are there."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)


def corner_rgb(picture: Any, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a frame's upper left corner of an even size as (H, W, 3) uint8 RGB."""
    return np.asarray(converted(_corner(picture, size_wh), "rgb24").to_ndarray(), np.uint8)


def set_corner(picture: Any, rgb: NDArray[np.uint8]) -> None:
    """Write RGB (H, W, 3) of an even size into a frame's upper left corner."""
    import av

    corner = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    corner = converted(corner, "yuv420p", dst_colorspace=int(picture.colorspace))
    for into, plane in zip(planes_of(picture), planes_of(corner), strict=True):
        into[: plane.shape[0], : plane.shape[1]] = plane


def _corner(picture: Any, size_wh: tuple[int, int]) -> Any:
    import av

    corner = av.VideoFrame(*size_wh, "yuv420p")
    corner.colorspace = picture.colorspace
    for into, plane in zip(planes_of(corner), planes_of(picture), strict=True):
        into[:] = plane[: into.shape[0], : into.shape[1]]
    return corner
