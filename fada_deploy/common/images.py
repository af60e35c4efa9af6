"""Still images in and out, and the one resize that training, reference and runtime share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import atomic_path

# OpenCV writes remarks of its own about damaged files between our lines; what matters is raised.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
PNG = b"\x89PNG\r\n\x1a\n"


def _decode(path: Path, flags: int) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise DataError(
            f"{path}: not an image that can be decoded (empty, cut short or another format)"
        )
    return np.asarray(image)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8 RGB, rotated as its EXIF says; raise `DataError` naming it."""
    return np.asarray(cv2.cvtColor(_decode(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def read_raw(path: Path) -> NDArray[np.generic]:
    """Read an image with its own depth and channels (BGR order where colored)."""
    return _decode(path, cv2.IMREAD_UNCHANGED)


def read_indices(path: Path) -> NDArray[np.integer[Any]]:
    """Read a label image (H, W) of 8- or 16-bit ids: a gray image, or a palette PNG **as its indices**.

    A palette is decoration: two ids may share a color, so the index is read and never the color.
    Raise `DataError` for an image of true colors.
    """
    head = b""
    try:
        with path.open("rb") as handle:
            head = handle.read(26)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if head[:8] == PNG and head[25:26] == b"\x03":
        return _palette_indices(path)
    image = read_raw(path)
    if image.ndim == 2 and head[:8] == PNG and head[25:26] == b"\x00" and 0 < head[24] < 8:
        # Gray of 1, 2 or 4 bits, as PNG optimizers write few ids, is decoded spread over 0…255.
        return np.asarray(image, np.uint8) // np.uint8(255 // (2 ** head[24] - 1))
    if image.ndim != 2 or not np.issubdtype(image.dtype, np.integer):
        raise DataError(
            f"{path}: is no image of ids (shape {image.shape}, {image.dtype}); labels are gray or palette ids, "
            "or colors named in the `palette` of a custom data set"
        )
    return cast("NDArray[np.integer[Any]]", image)


def _palette_indices(path: Path) -> NDArray[np.uint8]:
    # OpenCV turns a palette into colors; FFmpeg's decoder hands the indices over untouched.
    import av

    decoder = av.CodecContext.create("png", "r")
    try:
        frames = decoder.decode(av.Packet(path.read_bytes())) or decoder.decode(None)
    except av.error.FFmpegError:
        frames = []
    if not frames or frames[0].format.name != "pal8":
        raise DataError(
            f"{path}: not an image that can be decoded (empty, cut short or another format)"
        )
    frame = frames[0]
    rows = np.frombuffer(memoryview(frame.planes[0]), np.uint8).reshape(
        -1, frame.planes[0].line_size
    )
    return rows[: frame.height, : frame.width].copy()


def write_image(path: Path, image: NDArray[np.uint8], *, jpeg_quality: int = 95) -> None:
    """Write (H, W) uint8, or (H, W, 3) uint8 RGB, as PNG or JPEG by the suffix, atomically.

    Raise `UsageError` for another suffix and `DataError` if the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"{path}: the suffix must be .png, .jpg or .jpeg")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    options = [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    encoded, data = cv2.imencode(suffix, bgr, options)
    if not encoded:
        raise DataError(f"{path}: an image of shape {image.shape} cannot be encoded as {suffix}")
    try:
        with atomic_path(path) as temporary:
            data.tofile(temporary)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write (H, W) uint8, or (H, W, 3) uint8 RGB, as PNG, atomically."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", bgr)
    if not ok:
        raise DataError(f"{path}: an image of shape {image.shape} cannot be written as PNG")
    with atomic_path(path) as temporary:
        data.tofile(temporary)


def resize_frame(frame: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Stretch a frame (H, W, 3) to `size_hw`: area averaging when shrinking, bilinear otherwise.

    The only resize of pictures in the package, so that training, calibration, reference and runtime see
    the same pixels. Area averaging is antialiased, as the published bicubic is, and many times
    faster (docs/design-notes.md).
    """
    height, width = size_hw
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = height <= frame.shape[0] and width <= frame.shape[1]
    mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(frame, (width, height), interpolation=mode), np.uint8)


def resize_labels(labels: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a label map (H, W) to `size_hw` by nearest neighbor."""
    height, width = size_hw
    if labels.shape == (height, width):
        return labels
    resized = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(resized, np.uint8)
