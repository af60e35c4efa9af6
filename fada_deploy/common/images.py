"""Read, write and resize images; training, verification and runtime share the resize function."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UnwritableFrameError, UsageError
from fada_deploy.common.files import atomic_path

# OpenCV prints warnings and errors about damaged files to stderr; our errors name these files.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_FATAL)

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
PNG = b"\x89PNG\r\n\x1a\n"


def _decode(path: Path, flags: int) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if _is_animated_webp(data):
        raise DataError(
            f"{path}: an animated WebP file, which FFmpeg cannot decode; convert it to GIF or MP4, "
            "for example with ImageMagick: magick FILE.webp FILE.gif"
        )
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        image = None
    if image is None:
        raise DataError(
            f"{path}: not a readable image (empty, truncated or of an unsupported format)"
        )
    return np.asarray(image)


def _is_animated_webp(data: NDArray[np.uint8]) -> bool:
    header = data[:21].tobytes()
    return header[8:16] == b"WEBPVP8X" and len(header) == 21 and bool(header[20] & 0x02)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Return an image as (H, W, 3) uint8 RGB, rotated according to its EXIF orientation.

    Raise `DataError` if it cannot be read.
    """
    return np.asarray(cv2.cvtColor(_decode(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def read_raw(path: Path) -> NDArray[np.generic]:
    """Return an image with its own bit depth and channels (color images are BGR)."""
    return _decode(path, cv2.IMREAD_UNCHANGED)


def read_indices(path: Path) -> NDArray[np.integer[Any]]:
    """Return the ids of a label image, (H, W): gray values, or the **indices** of a palette PNG.

    Colors of a palette are never used, because two ids may have the same color. An alpha channel is
    left out. A color image is gray if its channels are equal. A .npy file holds an array (H, W) of
    integers. Raise `DataError` for other files.
    """
    if path.suffix.lower() == ".npy":
        return _array_indices(path)
    try:
        with path.open("rb") as handle:
            header = handle.read(26)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if header[:8] == PNG and header[25:26] == b"\x03":
        return _palette_indices(path)
    image = read_raw(path)
    if image.ndim == 2 and header[:8] == PNG and header[25:26] == b"\x00" and 0 < header[24] < 8:
        # PNG optimizers store few ids with 1, 2 or 4 bits; OpenCV scales these values to 0…255.
        return np.asarray(image, np.uint8) // np.uint8(255 // (2 ** header[24] - 1))
    if image.ndim == 3 and image.shape[2] in (3, 4) and np.issubdtype(image.dtype, np.integer):
        blue, green, red = (image[..., c] for c in range(3))
        if np.array_equal(blue, green) and np.array_equal(green, red):
            return _without_negative(blue)
        if not blue.any() and not green.any():
            raise DataError(
                f"{path}: the ids are in the red channel of a color image; "
                'set channel = "red" in [labels] of a custom data set'
            )
    if image.ndim != 2 or not np.issubdtype(image.dtype, np.integer):
        raise DataError(
            f"{path}: labels must be a gray or palette image of ids, got shape {image.shape} "
            f"{image.dtype}; for color labels, name the colors in `palette` of a custom data set"
        )
    return _without_negative(image)


def read_red_channel(path: Path) -> NDArray[np.integer[Any]]:
    """Return the red channel of a color image as ids, (H, W); raise `DataError` for others."""
    image = read_raw(path)
    if image.ndim != 3 or image.shape[2] < 3 or not np.issubdtype(image.dtype, np.integer):
        raise DataError(
            f"{path}: expected ids in the red channel of a color image, got shape {image.shape} "
            f"{image.dtype}"
        )
    return _without_negative(image[..., 2])


def _without_negative(ids: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """Return ids as unsigned integers of at most 16 bits; negative ones become 65535, unknown."""
    if ids.dtype.kind == "i":
        return np.asarray(np.clip(ids.astype(np.int64), -1, 65535) % 65536, np.uint16)
    if ids.dtype.itemsize > 2:
        return np.asarray(np.minimum(ids, 65535), np.uint16)
    return cast("NDArray[np.integer[Any]]", np.ascontiguousarray(ids))


def _array_indices(path: Path) -> NDArray[np.integer[Any]]:
    try:
        # A map, so that a header with a large shape allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:
        # A damaged header raises errors of Python's parser, which share no base class.
        raise DataError(f"{path}: not a readable .npy file") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "iu":
        found = getattr(array, "shape", "several arrays")
        raise DataError(f"{path}: labels must be an array (H, W) of integers, got {found}")
    if array.size == 0:
        raise DataError(f"{path}: the array is empty")
    return _without_negative(array)


def size_without_orientation(path: Path) -> tuple[int, int]:
    """Return height and width of an image as it is stored, without its EXIF orientation."""
    image = _decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return image.shape[0], image.shape[1]


def _palette_indices(path: Path) -> NDArray[np.uint8]:
    # OpenCV converts a palette to colors; FFmpeg's decoder returns the indices.
    import av

    decoder = av.CodecContext.create("png", "r")
    try:
        frames = decoder.decode(av.Packet(path.read_bytes())) or decoder.decode(None)
    except av.error.FFmpegError:
        frames = []
    if not frames or frames[0].format.name != "pal8":
        raise DataError(
            f"{path}: not a readable image (empty, truncated or of an unsupported format)"
        )
    frame = frames[0]
    rows = np.frombuffer(memoryview(frame.planes[0]), np.uint8).reshape(
        -1, frame.planes[0].line_size
    )
    return rows[: frame.height, : frame.width].copy()


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write (H, W) uint8, or (H, W, 3) uint8 RGB, as PNG or JPEG by the suffix, atomically.

    Raise `UsageError` for another suffix and `DataError` if the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"{path}: the suffix must be .png, .jpg or .jpeg")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    options = [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 95]
    encoded, data = cv2.imencode(suffix, bgr, options)
    if not encoded:
        raise UnwritableFrameError(
            f"{path}: an image of shape {image.shape} cannot be encoded as {suffix}"
        )
    try:
        with atomic_path(path) as temporary:
            data.tofile(temporary)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write (H, W) uint8, or (H, W, 3) uint8 RGB, as PNG; the write is atomic."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    ok, data = cv2.imencode(".png", bgr)
    if not ok:
        raise DataError(f"{path}: cannot write an image of shape {image.shape} as PNG")
    with atomic_path(path) as temporary:
        data.tofile(temporary)


def resize_frame(frame: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a frame (H, W, 3) to `size_hw` without keeping its aspect ratio.

    Shrinking uses area averaging, anything else bilinear interpolation. Training, calibration,
    verification and the runtime all resize frames with this function, so they see the same pixels.
    Area averaging is antialiased like the paper's bicubic resize, and much faster
    (docs/explanation/design.md).
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
