"""H.264 encoding into an MP4 file, shared by the video writers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.video import BT709, convert_frame, video_hardware_error
from fada_deploy.runtime.writers.recovery import recording_path

if TYPE_CHECKING:
    from av import VideoFrame

Image = NDArray[np.uint8]

# Values of FFmpeg's AVColorRange.
_LIMITED_RANGE, _FULL_RANGE = 1, 2
# The rate only guides the encoder; exact times come from the time base.
_DEFAULT_RATE = 25


_FRAGMENT_S = 2
# Options of FFmpeg's MP4 muxer, with and without faststart.
_MP4_OPTIONS = {
    True: {"movflags": "+faststart"},
    # The header is written after the first packets, because it contains the first timestamp.
    False: {
        "movflags": "+hybrid_fragmented+delay_moov",
        "frag_duration": str(_FRAGMENT_S * 1_000_000),
    },
}
# Parts of a video that are joined later; NUT stores timestamps in any time base.
PART_SUFFIX = ".nut"


@contextmanager
def open_output(path: Path, *, faststart: bool = True) -> Iterator[tuple[Any, ExitStack]]:
    """Open a video file for writing; yield its container, and a stack that is closed before it.

    The format is MP4, or NUT if the name ends in `PART_SUFFIX`. With `faststart` the index of an
    MP4 file is moved to its start at the end, which writes the whole file again. Without it, the
    file has fragments of `_FRAGMENT_S` until its end, so that it can be played if there is no end
    (`recovery.recover_recordings`).

    The file is written under a temporary name and renamed when the block succeeds. Without
    `faststart` it is kept after an error, too, and an earlier file of that name is not replaced
    (`recovery.recording_path`). Raise `DataError` if it cannot be written.
    """
    import av

    caller_error: BaseException | None = None
    try:
        with ExitStack() as stack:
            new_path = atomic_path if faststart else recording_path
            temporary = stack.enter_context(new_path(path))
            options = {} if path.suffix == PART_SUFFIX else _MP4_OPTIONS[faststart]
            # Without the protocol, FFmpeg reads a colon in the path as the end of one.
            container = stack.enter_context(av.open(f"file:{temporary}", "w", options=options))
            try:
                yield container, stack
            except BaseException as error:
                caller_error = error
                raise
    except (av.error.FFmpegError, OSError) as error:
        # Also errors at the end, where the file is completed, flushed and renamed.
        if caller_error is not None and not isinstance(caller_error, av.error.FFmpegError):
            raise caller_error from None
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


class VideoEncoder:
    """Encodes images into a video stream of a container.

    Args:
        container: A PyAV container that is open for writing.
        size_hw: Height and width of the images; an odd size is padded by one row or column,
            because H.264 stores color at half the resolution.
        time_base: Seconds per unit of the timestamps.
        rate: Frames per second, if known.
        codec: Name of FFmpeg's encoder, and its options.
        color_matrix: `BT709` or `SMPTE170M`.
        gray: Encode (H, W) images of full range (0…255) instead of RGB.
        pixel_aspect: Width of a pixel divided by its height [square pixels].
    """

    def __init__(
        self,
        container: Any,
        size_hw: tuple[int, int],
        time_base: Fraction,
        rate: Fraction | None,
        codec: tuple[str, dict[str, str]],
        *,
        color_matrix: int = BT709,
        gray: bool = False,
        pixel_aspect: Fraction | None = None,
    ) -> None:
        self._container = container
        self._color_matrix = color_matrix
        self._time_base = time_base
        self._gray = gray
        height, width = size_hw
        self._padding_hw = height % 2, width % 2
        name, options = codec
        self._stream = container.add_stream(name, rate=rate or _DEFAULT_RATE, options=options)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "gray" if gray else "yuv420p"
        context = self._stream.codec_context
        context.time_base = time_base
        if pixel_aspect is not None:
            context.sample_aspect_ratio = pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = color_matrix
        context.color_range = _FULL_RANGE if gray else _LIMITED_RANGE

    def open_on(self, hardware: str) -> None:
        """Open a hardware encoder now rather than at the first frame; raise `DeviceError`."""
        try:
            self._stream.codec_context.open()
        except (OSError, ValueError) as error:
            raise video_hardware_error(hardware, "encode", error) from None

    def encode_image(self, image: Image, pts: int) -> None:
        """Encode (H, W, 3) uint8 RGB, or (H, W) uint8 if the encoder is gray."""
        import av

        if any(self._padding_hw):
            bottom, right = self._padding_hw
            image = np.asarray(
                cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE), np.uint8
            )
        image = np.ascontiguousarray(image)
        if self._gray:
            frame = av.VideoFrame.from_ndarray(image, format="gray")
        else:
            rgb = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame = convert_frame(rgb, "yuv420p", dst_colorspace=self._color_matrix)
        self.encode(frame, pts)

    def encode(self, frame: VideoFrame, pts: int) -> None:
        """Encode a PyAV frame of the encoder's size and pixel format."""
        frame.pts, frame.time_base = pts, self._time_base
        self._container.mux(self._stream.encode(frame))

    def flush(self) -> None:
        """Write the frames that the encoder still holds."""
        self._container.mux(self._stream.encode(None))


def shift_to_zero(pts: int) -> int:
    """Return what to add to all timestamps of a video whose first one is `pts`, at least 0.

    Players do not show the frames of an MP4 file before the time 0. A recording may have such
    frames where the counter of its timestamps has started anew.
    """
    return max(0, -pts)


class MonotonicClock:
    """Make timestamps strictly increasing, because MP4 allows no others.

    A timestamp that repeats or runs back by up to a second, as in damaged recordings, becomes the
    previous one plus 1. A jump back by more than a second, as where recordings were joined, shifts
    all later timestamps.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._ticks_per_second = 1 / time_base
        self._last: int | None = None
        self._step = 1
        self._offset = 0
        # The last timestamp before a jump back.
        self._before_jump: int | None = None

    def next(self, pts: int) -> int:
        """Return the timestamp to write for a frame whose own timestamp is `pts`."""
        original = pts
        if self._before_jump is not None and original > self._before_jump:
            # The timestamps are back where they were: only one was wrong, so undo the shift.
            self._offset, self._before_jump = 0, None
        pts += self._offset
        if self._last is not None:
            if self._last - pts > self._ticks_per_second:
                self._before_jump = None if self._offset else self._last
                self._offset += self._last + self._step - pts
                pts = self._last + self._step
            pts = max(pts, self._last + 1)
            self._step = min(pts - self._last, max(1, int(self._ticks_per_second)))
        self._last = pts
        return pts
