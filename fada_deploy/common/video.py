"""Open video files and convert decoded frames; shared by training data readers and the runtime."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, DeviceError
from fada_deploy.common.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = frozenset(
    {
        ".264", ".265", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2ts", ".m4v", ".mkv",
        ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv",
    }
)  # fmt: skip
# For messages: the file types that can be read.
SUPPORTED_FILES = (
    f"a video ({' '.join(sorted(VIDEO_SUFFIXES))}) or an image ({' '.join(sorted(IMAGE_SUFFIXES))})"
)
# Decoding device → (H.264 encoder on that device, its FFmpeg options).
HARDWARE_ENCODERS = {"cuda": ("h264_nvenc", {"preset": "p4", "rc": "vbr", "cq": "23"})}

# Values of FFmpeg's AVColorSpace. BT470BG and SMPTE170M are the two variants of ITU-R BT.601.
BT709, _UNSPECIFIED, _BT470BG, SMPTE170M = 1, 2, 5, 6
# Color matrix → weights of red and blue in luma (ITU-R BT.709, BT.601). FFmpeg's conversion to RGB
# uses BT.601 for unspecified matrices as well.
LUMA_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    **dict.fromkeys((_UNSPECIFIED, _BT470BG, SMPTE170M), (0.299, 0.114)),
}
# Value of FFmpeg's AVColorRange for 0…255 (limited range is 16…235).
_FULL_RANGE = 2
_QUARTER_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}
# Reformatters are not thread-safe, so each thread has its own.
_per_thread = threading.local()


def open_video(path: Path, hardware: str | None = None) -> tuple[Any, Any]:
    """Open a video file; return its PyAV container and its first video stream.

    `hardware` is a key of `HARDWARE_ENCODERS`; frames are then decoded on that device. Raise
    `DataError` if the file is not a readable video, `DeviceError` if the device cannot decode it.
    """
    import av

    if hardware is not None:
        return _open_on_device(path, hardware)
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise DataError(
            f"{path}: not a readable video ({error.strerror}); supported is {SUPPORTED_FILES}"
        ) from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: contains no video stream; supported is {SUPPORTED_FILES}")
    return container, container.streams.video[0]


def _open_on_device(path: Path, hardware: str) -> tuple[Any, Any]:
    import av

    try:
        from av.codec.hwaccel import HWAccel

        # No silent fallback to the CPU: the caller asked for this device.
        acceleration = HWAccel(device_type=hardware, allow_software_fallback=False)
        container = av.open(str(path), hwaccel=acceleration)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise video_hardware_error(hardware, "decode", error) from None
    return container, container.streams.video[0]


def video_hardware_error(hardware: str, operation: str, reason: object) -> DeviceError:
    """Return the error for a device that cannot `operation` ("decode" or "encode") video here."""
    return DeviceError(
        f"{hardware} cannot {operation} video on this machine ({reason}); "
        "use the CPU (leave out --video-hardware)"
    )


def convert_frame(frame: Any, pixel_format: str, **options: Any) -> Any:
    """Return a PyAV frame in another pixel format; `options` are those of PyAV's `reformat`.

    `frame.reformat` creates its tables and threads for each frame, which costs more than the
    conversion itself. Here they are cached per thread and format.
    """
    from av.video.reformatter import VideoReformatter

    reformatters = _per_thread.__dict__.setdefault("reformatters", {})
    reformatter = reformatters.setdefault((frame.format.name, pixel_format), VideoReformatter())
    return reformatter.reformat(frame, format=pixel_format, threads=1, **options)


def decode_frames(container: Any, stream: Any) -> Generator[Any, None, None]:
    """Yield the decoded frames of a PyAV video stream, and None for each damaged packet."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            yield None
            return
        if packet is None:
            return
        yield from decode_packet(packet)


def decode_packet(packet: Any) -> Generator[Any, None, None]:
    """Yield the frames of a PyAV packet, and None if the packet is damaged."""
    import av

    if packet.is_corrupt:
        yield None
    flushing = packet.size == 0
    while True:
        try:
            yield from packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            yield None
            # While the decoder is flushed, further frames may follow the damaged one.
            if flushing:
                continue
        return


def upright_rgb(frame: Any) -> NDArray[np.uint8]:
    """Return a decoded PyAV frame as (H, W, 3) uint8 RGB, rotated by its rotation flag."""
    rgb = np.asarray(convert_frame(frame, "rgb24").to_ndarray(), np.uint8)
    turn = _QUARTER_TURNS.get(frame.rotation % 360)
    return rgb if turn is None else np.asarray(cv2.rotate(rgb, turn), np.uint8)


def is_plain_yuv420p(frame: Any) -> bool:
    """Return whether overlays can be drawn directly in the planes of a PyAV frame.

    That needs yuv420p of limited range with a known color matrix, an even size and no rotation.
    """
    return (
        frame.format.name == "yuv420p"
        and frame.width % 2 == frame.height % 2 == 0
        and int(frame.colorspace) in LUMA_WEIGHTS
        and int(frame.color_range) != _FULL_RANGE
        and frame.rotation % 360 == 0
    )
