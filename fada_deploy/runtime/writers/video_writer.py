"""Write H.264 videos from RGB images.

```python
with VideoWriter("out.mp4", (540, 960), fps=25) as writer:
    for image in images:
        writer.write(image)
```
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import resize_frame
from fada_deploy.common.video import BT709, HARDWARE_ENCODERS, upright_rgb
from fada_deploy.runtime.writers.audio import AudioCopier
from fada_deploy.runtime.writers.encoder import (
    PART_SUFFIX,
    MonotonicClock,
    VideoEncoder,
    open_output,
    shift_to_zero,
)

if TYPE_CHECKING:
    from av import VideoFrame

Image = NDArray[np.uint8]

# From the fastest, with the largest files, to the slowest.
X264_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
# Constant rate factor: at 18 hardly any difference from the original is visible; x264's default
# is 23.
X264_CRF = "20"
_DEFAULT_TIME_BASE = Fraction(1, 90_000)


class VideoWriter:
    """Write an H.264 MP4 file that browsers play. Use it as a context manager.

    The file appears under its final name only when the block succeeds.

    Args:
        path: Name of the file; it must end in .mp4. The folder is created.
        size_hw: Height and width of the video in pixels. Images of another size are resized. An odd
            size is padded by one row or column, because H.264 stores color at half the resolution.
        fps: Frames per second. Required if frames are written without timestamps.
        time_base: Seconds per unit of `pts` [1 / `fps`, or 1/90000 without `fps`].
        audio: File whose first audio track is copied, if MP4 can hold its codec.
        x264_preset: Trade-off between speed and file size, one of `X264_PRESETS`.
        pixel_aspect: Width of a pixel divided by its height [square pixels].
        hardware: Encode on this device instead of with x264, a key of `HARDWARE_ENCODERS`.
        color_matrix: Color matrix of the video and of PyAV frames that are written, `BT709` or
            `SMPTE170M`; RGB images are converted to it.
        faststart: Put the index at the start of the file, so that it plays while it is downloaded.
            This writes the file a second time at the end. Set it to False for recordings of hours:
            they can be played up to their last seconds if the process is killed, they are kept
            after an error, and an earlier file of that name gets a number.

    Raises:
        UsageError: An argument is not allowed.
        DataError: The file cannot be written, no frame was written, or `audio` cannot be read (on
            entering the block, or later).
        DeviceError: The hardware encoder is not available (on entering the block).
    """

    def __init__(
        self,
        path: str | Path,
        size_hw: tuple[int, int],
        *,
        fps: Fraction | float | None = None,
        time_base: Fraction | None = None,
        audio: str | Path | None = None,
        x264_preset: str = X264_PRESETS[0],
        pixel_aspect: Fraction | None = None,
        hardware: str | None = None,
        color_matrix: int = BT709,
        faststart: bool = True,
    ) -> None:
        self._faststart = faststart
        self._path = Path(path)
        if self._path.suffix.lower() not in (".mp4", PART_SUFFIX):
            raise UsageError(f"{path}: the name of a video must end in .mp4")
        if min(size_hw) < 1:
            raise UsageError(f"size_hw must be at least (1, 1), got {size_hw}")
        if fps is not None and not 0 < fps < float("inf"):
            raise UsageError(f"fps must be greater than 0, got {fps}")
        rate = None if fps is None else Fraction(fps).limit_denominator(100_000)
        if x264_preset not in X264_PRESETS:
            raise UsageError(
                f"x264 preset must be one of {', '.join(X264_PRESETS)}, got {x264_preset!r}"
            )
        if hardware is not None and hardware not in HARDWARE_ENCODERS:
            raise UsageError(
                f"hardware must be one of {', '.join(HARDWARE_ENCODERS)}, got {hardware!r}"
            )
        self._size_hw = size_hw
        self._fps = rate
        self._time_base = time_base or (1 / rate if rate else _DEFAULT_TIME_BASE)
        self._audio_path = None if audio is None else Path(audio)
        self._x264_preset = x264_preset
        self._pixel_aspect = pixel_aspect
        self._hardware = hardware
        self._color_matrix = color_matrix
        self._clock = MonotonicClock(self._time_base)
        self._frames = self._shift = 0
        self._last_s, self._audio_end_s = 0.0, float("inf")
        self._block: AbstractContextManager[None] | None = None

    def write(self, image: Image | VideoFrame, pts: int | None = None) -> None:
        """Append a frame.

        Args:
            image: (H, W, 3) uint8 RGB, or a PyAV frame in yuv420p and the writer's color matrix.
            pts: Timestamp in units of `time_base`. A timestamp that does not increase is corrected
                (see `MonotonicClock`). If the first one is negative, the video begins at 0. Without
            timestamps, frames are spaced by `fps`.
        """
        if self._block is None:
            raise UsageError("VideoWriter is not open; use `with VideoWriter(…) as writer`")
        if pts is None:
            if self._fps is None:
                raise UsageError("a frame without pts needs the frame rate: VideoWriter(…, fps=25)")
            pts = round(self._frames / (self._fps * self._time_base))
        if self._frames == 0 and self._path.suffix != PART_SUFFIX:
            self._shift = shift_to_zero(pts)
            self._audio.shift_s = self._shift * self._time_base
        self._frames += 1
        pts = self._clock.next(pts + self._shift)
        self._last_s = float(pts * self._time_base)
        self._audio.copy_until(self._last_s)
        if not isinstance(image, np.ndarray):
            if (image.height, image.width) == self._size_hw:
                self._encoder.encode(image, pts)
                return
            image = upright_rgb(image)
        elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(
                f"an image must be uint8 of shape (H, W, 3), got {image.dtype} {image.shape}"
            )
        # Some cameras change their resolution during a recording, which a video file cannot.
        self._encoder.encode_image(resize_frame(image, self._size_hw), pts)

    def end_audio(self) -> None:
        """End the audio with the last frame, instead of copying it to its end."""
        self._audio_end_s = self._last_s

    def __enter__(self) -> Self:
        if self._frames:
            raise UsageError("a VideoWriter writes one video; make another one")
        block = self._open()
        block.__enter__()
        self._block = block
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block, self._block = self._block, None
        if block is not None:
            block.__exit__(kind, error, trace)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with open_output(self._path, faststart=self._faststart) as (container, stack):
            x264 = ("libx264", {"preset": self._x264_preset, "crf": X264_CRF})
            self._encoder = VideoEncoder(
                container,
                self._size_hw,
                self._time_base,
                self._fps,
                HARDWARE_ENCODERS[self._hardware] if self._hardware else x264,
                color_matrix=self._color_matrix,
                pixel_aspect=self._pixel_aspect,
            )
            if self._hardware:
                self._encoder.open_on(self._hardware)
            self._audio = AudioCopier(container, self._audio_path, stack)
            yield
            if self._frames == 0:
                raise DataError(f"{self._path}: no frame was written, so there is no video")
            self._encoder.flush()
            self._audio.copy_until(self._audio_end_s)
