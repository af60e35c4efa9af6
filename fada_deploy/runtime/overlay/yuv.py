"""Overlays drawn in the YUV planes of a video frame (yuv420p: full-size luma, half-size chroma).

Both blending and the conversion from RGB to YUV are linear, so blending in YUV gives the result of
blending in RGB up to rounding. It avoids two conversions that cost more than the drawing itself.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.video import BT709, LUMA_WEIGHTS, SMPTE170M, convert_frame
from fada_deploy.runtime.kernels.loader import kernel_loader
from fada_deploy.runtime.overlay.region import Region

Plane = NDArray[np.uint8]


def color_matrix(frame: Any) -> int:
    """Return the color matrix tag (BT709 or SMPTE170M) of a PyAV frame."""
    return BT709 if int(frame.colorspace) == BT709 else SMPTE170M


def palette_to_yuv(palette: NDArray[np.uint8], matrix: int) -> NDArray[np.uint8]:
    """Return RGB colors (256, 3) as Y′, Cb and Cr tables (3, 256) uint8 of limited range."""
    red, blue = LUMA_WEIGHTS[matrix]
    r, g, b = (palette.astype(np.float64) / 255).T
    y = red * r + (1 - red - blue) * g + blue * b
    tables = [
        16 + 219 * y,
        128 + 224 * (b - y) / (2 * (1 - blue)),
        128 + 224 * (r - y) / (2 * (1 - red)),
    ]
    return np.stack(tables).round().astype(np.uint8)


def overlay_yuv(
    frame: Any, labels: NDArray[np.uint8], tables: NDArray[np.uint8], alpha: float
) -> Any:
    """Return a new PyAV frame: `frame` with the colors of labels (H, W) blended over it.

    `tables` (3, 256) are the palette of `palette_to_yuv`. The input frame is not changed.
    """
    import av

    output = av.VideoFrame(frame.width, frame.height, "yuv420p")
    output.colorspace = color_matrix(frame)
    # The kernel does no bounds checks, so the sizes must match exactly.
    if kernel_loader.ready is not None and labels.shape == (frame.height, frame.width):
        planes = [_padded_plane(plane) for plane in (*frame.planes, *output.planes)]
        kernel_loader.ready.blend(np.ascontiguousarray(labels), tables, np.float32(alpha), *planes)
        return output
    half_wh = (frame.width // 2, frame.height // 2)
    for table, source, target in zip(tables, yuv_planes(frame), yuv_planes(output), strict=True):
        color = cv2.LUT(labels, table)
        if source.shape != labels.shape:
            color = cv2.resize(color, half_wh, interpolation=cv2.INTER_AREA)
        cv2.addWeighted(color, alpha, source, 1 - alpha, 0, dst=target)
    return output


def yuv_planes(frame: Any) -> list[Plane]:
    """Return writable views of the three planes of a yuv420p frame."""
    planes = []
    for plane, divisor in zip(frame.planes, (1, 2, 2), strict=True):
        planes.append(_padded_plane(plane)[: frame.height // divisor, : frame.width // divisor])
    return planes


def _padded_plane(plane: Any) -> Plane:
    """Return a view of a plane that includes the padding at the end of its lines."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)


def read_region(frame: Any, region: Region) -> NDArray[np.uint8]:
    """Return a region of a yuv420p frame as (H, W, 3) uint8 RGB; its edges must be even."""
    import av

    part = av.VideoFrame(region.width, region.height, "yuv420p")
    part.colorspace = frame.colorspace
    for target, source in zip(yuv_planes(part), _region_planes(frame, region), strict=True):
        target[:] = source
    return np.asarray(convert_frame(part, "rgb24").to_ndarray(), np.uint8)


def write_region(frame: Any, region: Region, rgb: NDArray[np.uint8]) -> None:
    """Write RGB (H, W, 3) into a region of a yuv420p frame; its edges must be even."""
    import av

    part = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    part = convert_frame(part, "yuv420p", dst_colorspace=int(frame.colorspace))
    for target, source in zip(_region_planes(frame, region), yuv_planes(part), strict=True):
        target[:] = source


def _region_planes(frame: Any, region: Region) -> list[Plane]:
    """Return views of the part of each plane that belongs to a region."""
    assert not any(edge % 2 for edge in region), f"odd region {region}"
    rows, columns = region.slices
    planes = []
    for plane, divisor in zip(yuv_planes(frame), (1, 2, 2), strict=True):
        planes.append(
            plane[
                rows.start // divisor : rows.stop // divisor,
                columns.start // divisor : columns.stop // divisor,
            ]
        )
    return planes
