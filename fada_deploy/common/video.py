"""Open video files and convert decoded frames; shared by training data readers and the runtime."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, DeviceError
from fada_deploy.common.hdr import is_hdr, tone_mapped_rgb
from fada_deploy.common.images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {
        ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dav", ".dv", ".f4v", ".flv", ".gif",
        ".h264", ".h265", ".hevc", ".ivf", ".m2t", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv",
        ".mod", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu", ".ogg", ".ogv",
        ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv", ".y4m",
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
# Color matrices that FFmpeg refuses to convert, such as YCgCo and ICtCp.
_UNKNOWN_MATRICES = frozenset({3, 8, 10, 11, 12, 13, 14, 15})
# Demuxers that open further files or connections, which the opened file names.
_PLAYLISTS = frozenset({"applehttp", "concat", "dash", "hls", "imf", "rtsp", "sdp"})
# Reformatters are not thread-safe, so each thread has its own.
_per_thread = threading.local()


def open_video(path: Path, hardware: str | None = None) -> tuple[Any, Any]:
    """Open a video file; return its PyAV container and its best video stream.

    `hardware` is a key of `HARDWARE_ENCODERS`; frames are then decoded on that device. Raise
    `DataError` if the file is not a readable video, or a playlist, which could name any other file
    or address. Raise `DeviceError` if the device cannot decode it.
    """
    import av

    if hardware is not None:
        return _open_on_device(path, hardware)
    try:
        container = open_media(path)
    except (av.error.FFmpegError, OSError) as error:
        if _is_playlist(path):
            raise DataError(
                f"{path} is a playlist, which names other files; name these files instead"
            ) from None
        remedy = "it may be empty or incomplete; copy it again"
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            remedy = f"supported is {SUPPORTED_FILES}"
        raise DataError(f"{path}: not a readable video ({error.strerror}); {remedy}") from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: contains no video stream; supported is {SUPPORTED_FILES}")
    stream = best_stream(container)
    if stream.codec_context is None:
        container.close()
        raise DataError(f"{path}: FFmpeg has no decoder for its codec; convert it to H.264 first")
    return container, stream


def open_media(path: Path) -> Any:
    """Open a local video or audio file with PyAV; the file may come from anywhere.

    It cannot make FFmpeg open another file or address. Raise PyAV's errors.
    """
    import av

    return av.open(_file_url(path), **_open_options())


def best_stream(container: Any) -> Any:
    """Return the largest video stream of a PyAV container; cover pictures come last."""
    from av.stream import Disposition

    def rank(stream: Any) -> tuple[bool, bool, int]:
        is_cover = bool(stream.disposition & Disposition.attached_pic)
        size = stream.codec_context
        area = 0 if size is None else size.width * size.height
        return not is_cover, stream.frames != 1, area

    return max(container.streams.video, key=rank)


def _file_url(path: Path) -> str:
    """Return the address of a local file for FFmpeg, to which `a:b.mp4` would be a protocol."""
    return f"file:{path}"


@cache
def allowed_formats() -> str:
    """Return FFmpeg's demuxers except for those that open further files."""
    import av

    names = {name for each in av.formats_available for name in each.split(",")}
    return ",".join(sorted(names - _PLAYLISTS))


def _open_options() -> dict[str, Any]:
    """Return arguments of `av.open` for a local file that may come from anywhere."""
    return {
        "options": {"protocol_whitelist": "file", "format_whitelist": allowed_formats()},
        # Tags may be in any encoding.
        "metadata_errors": "replace",
    }


def _is_playlist(path: Path) -> bool:
    """Return whether a file that FFmpeg does not open looks like a playlist."""
    try:
        with path.open("rb") as handle:
            start = handle.read(1024).lstrip()
    except OSError:
        return False
    return start.startswith((b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD"))


def _open_on_device(path: Path, hardware: str) -> tuple[Any, Any]:
    import av

    try:
        from av.codec.hwaccel import HWAccel

        # No silent fallback to the CPU: the caller asked for this device.
        acceleration = HWAccel(device_type=hardware, allow_software_fallback=False)
        container = av.open(_file_url(path), hwaccel=acceleration, **_open_options())
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise video_hardware_error(hardware, "decode", error) from None
    return container, best_stream(container)


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

    if int(frame.colorspace) in _UNKNOWN_MATRICES:
        frame.colorspace = _UNSPECIFIED
    reformatters = _per_thread.__dict__.setdefault("reformatters", {})
    reformatter = reformatters.setdefault((frame.format.name, pixel_format), VideoReformatter())
    return reformatter.reformat(frame, format=pixel_format, threads=1, **options)


@dataclass(frozen=True)
class Orientation:
    """How a decoded image becomes upright: first exchange its axes, then mirror them."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image (H, W, C) upright."""
        if self.transpose:
            image = np.asarray(cv2.transpose(image), np.uint8)
        if self.flip_x or self.flip_y:
            axis = -1 if self.flip_x and self.flip_y else int(self.flip_x)
            image = np.asarray(cv2.flip(image, axis), np.uint8)
        return image


UPRIGHT = Orientation()


def orientation(frame: Any) -> Orientation:
    """Return the orientation in the display matrix of a decoded PyAV frame.

    The matrix maps (x, y) to (a x + c y, b x + d y). Cameras write quarter turns and mirror images;
    another angle is rounded to the next quarter turn.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    a, b, _, c, d = (float(v) for v in np.frombuffer(bytes(data), np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def upright_rgb(frame: Any) -> NDArray[np.uint8]:
    """Return a decoded PyAV frame as (H, W, 3) uint8 RGB, turned and mirrored as players do.

    HDR frames are converted to SDR colors.
    """
    if is_hdr(frame):
        rgb = tone_mapped_rgb(frame)
    else:
        rgb = np.asarray(convert_frame(frame, "rgb24").to_ndarray(), np.uint8)
    return orientation(frame).apply(rgb)


def is_plain_yuv420p(frame: Any) -> bool:
    """Return whether overlays can be drawn directly in the planes of a PyAV frame.

    That needs yuv420p of limited range with a known color matrix, SDR colors, an even size, and no
    rotation or mirroring.
    """
    return (
        frame.format.name == "yuv420p"
        and frame.width % 2 == frame.height % 2 == 0
        and int(frame.colorspace) in LUMA_WEIGHTS
        and int(frame.color_range) != _FULL_RANGE
        and not is_hdr(frame)
        and orientation(frame) == UPRIGHT
    )
