"""Video in, for training and runtime alike: which files are videos, opening one, a frame upright."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, DeviceError
from fada_deploy.common.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    {
        ".264",
        ".265",
        ".avi",
        ".flv",
        ".h264",
        ".h265",
        ".hevc",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
    }
    | {".mpg", ".mts", ".ts", ".webm", ".wmv"}
)
ALLOWED = (
    f"a video ({' '.join(sorted(VIDEO_SUFFIXES))}) or picture ({' '.join(sorted(IMAGE_SUFFIXES))})"
)
# What decodes video beside the CPU → the encoder there and its options.
HARDWARE = {"cuda": ("h264_nvenc", {"preset": "p4", "rc": "vbr", "cq": "23"})}
# By a frame's tag: red's and blue's part of its brightness (ITU-R BT.709; BT.601 in both systems, and where
# nothing is said, since the way to RGB takes it so too).
BT709, _UNKNOWN, _BT470BG, SMPTE170M = 1, 2, 5, 6
LUMA_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    **dict.fromkeys((_UNKNOWN, _BT470BG, SMPTE170M), (0.299, 0.114)),
}
_FULL_RANGE = 2
# A thread's own converters.
_own = threading.local()
_QUARTER_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


def open_video(path: Path, hardware: str | None = None) -> tuple[Any, Any]:
    """Open a video; return its PyAV container and its first video stream.

    `hardware`, a key of `HARDWARE`, decodes there. Raise `DataError` for no video, `DeviceError` where the
    hardware is not to be had.
    """
    import av

    if hardware is not None:
        return _open_on(path, hardware)
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"{path}: is no video that can be read ({error.strerror}); allowed is {ALLOWED}"
        ) from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: holds no video stream; allowed is {ALLOWED}")
    return container, container.streams.video[0]


def _open_on(path: Path, hardware: str) -> tuple[Any, Any]:
    import av

    try:
        from av.codec.hwaccel import HWAccel

        # Where it cannot, that is said, and not done by the CPU in silence.
        container = av.open(
            str(path), hwaccel=HWAccel(device_type=hardware, allow_software_fallback=False)
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise no_hardware(hardware, "decode", error) from None
    return container, container.streams.video[0]


def no_hardware(hardware: str, what: str, why: object) -> DeviceError:
    """Return the error for hardware that does not decode or encode here."""
    return DeviceError(f"{hardware} does not {what} video here ({why}); leave --video-hardware out")


def converted(picture: Any, pixel_format: str, **options: Any) -> Any:
    """Return a PyAV frame in another pixel format; the options are those of its `reformat`.

    A frame's own `reformat` makes its tables and threads anew each time, which costs more than the conversion
    itself, and on busy cores waits for each of the threads.
    """
    from av.video.reformatter import VideoReformatter

    ways = _own.__dict__.setdefault("ways", {})
    way = ways.setdefault((picture.format.name, pixel_format), VideoReformatter())
    return way.reformat(picture, format=pixel_format, threads=1, **options)


def upright_rgb(picture: Any) -> NDArray[np.uint8]:
    """Return a decoded PyAV frame as (H, W, 3) uint8 RGB, turned as its rotation flag says."""
    rgb = np.asarray(converted(picture, "rgb24").to_ndarray(), np.uint8)
    turn = _QUARTER_TURNS.get(picture.rotation % 360)
    return rgb if turn is None else np.asarray(cv2.rotate(rgb, turn), np.uint8)


def is_plain_yuv420p(picture: Any) -> bool:
    """Say whether overlays can be drawn in a PyAV frame's planes: yuv420p of limited range, even size, upright."""
    return (
        picture.format.name == "yuv420p"
        and picture.width % 2 == picture.height % 2 == 0
        and int(picture.colorspace) in LUMA_WEIGHTS
        and int(picture.color_range) != _FULL_RANGE
        and picture.rotation % 360 == 0
    )
