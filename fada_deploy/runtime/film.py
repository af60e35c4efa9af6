"""An H.264 film that every browser plays, with the source's timestamps and sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.images import resize_frame

Picture = NDArray[np.uint8]

# Codecs that may lie in an MP4 file and that browsers know.
_SOUND = frozenset({"aac", "mp3", "ac3", "eac3", "opus", "flac", "alac"})
_ENCODER = {"preset": "ultrafast", "crf": "20"}
_BT709 = 1
_LIMITED_RANGE = 1


@contextmanager
def film(
    path: Path, size_hw: tuple[int, int], *, time_base: Fraction, rate: Fraction | None, audio: Path | None
) -> Iterator[Callable[[Picture, int], None]]:
    """Open an MP4 and yield `add(picture, pts)`; the file appears under its name when the block succeeds.

    Pictures are (H, W, 3) uint8 RGB; one of odd size gains a row or column, since H.264 halves its
    colour planes. `pts` counts `time_base` and is kept. The sound of the file `audio` is copied beside
    it where an MP4 can hold it. Raise `DataError` when the file cannot be written.
    """
    import av

    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(atomic_path(path))
            container = stack.enter_context(av.open(str(temporary), "w", options={"movflags": "+faststart"}))
            encoder = _Encoder(container, size_hw, time_base, rate)
            sound = _Sound(container, audio, stack)

            def add(picture: Picture, pts: int) -> None:
                sound.until(float(pts * time_base))
                encoder.add(picture, pts)

            yield add
            encoder.flush()
            sound.until(float("inf"))
        except av.error.FFmpegError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


class _Encoder:
    def __init__(
        self, container: Any, size_hw: tuple[int, int], time_base: Fraction, rate: Fraction | None
    ) -> None:
        self._container = container
        self._size_hw = size_hw
        self._time_base = time_base
        self._last: int | None = None
        height, width = size_hw
        # The rate only guides the encoder; the time base makes every timestamp exact.
        self._stream = container.add_stream("libx264", rate=rate or 25, options=_ENCODER)
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE

    def add(self, picture: Picture, pts: int) -> None:
        import av

        # Some cameras change their size on the way; a film has one.
        picture = resize_frame(picture, self._size_hw)
        height, width = self._size_hw
        if height % 2 or width % 2:
            padded = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
            picture = np.asarray(padded, np.uint8)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        # An encoder refuses a clock that stands still or runs back, as damaged recordings have it.
        self._last = pts if self._last is None else max(pts, self._last + 1)
        frame.pts, frame.time_base = self._last, self._time_base
        self._container.mux(self._stream.encode(frame))

    def flush(self) -> None:
        self._container.mux(self._stream.encode(None))


class _Sound:
    """Packets of a source's first sound track, handed on in step with the pictures."""

    def __init__(self, container: Any, audio: Path | None, stack: ExitStack) -> None:
        import av

        self._container = container
        self._packets: Iterator[Any] = iter(())
        self._waiting: Any = None
        if audio is None:
            return
        source = stack.enter_context(av.open(str(audio)))
        if source.streams.audio and source.streams.audio[0].codec_context.name in _SOUND:
            track = source.streams.audio[0]
            self._stream = container.add_stream_from_template(track)
            # The packet that ends a stream has no timestamp.
            self._packets = (p for p in source.demux(track) if p.dts is not None)

    def until(self, seconds: float) -> None:
        import av

        while True:
            try:
                self._waiting = self._waiting or next(self._packets, None)
            except av.error.FFmpegError:
                # Sound cut short is no reason to lose the pictures.
                self._packets = iter(())
                return
            if self._waiting is None or float(self._waiting.dts * self._waiting.time_base) > seconds:
                return
            self._waiting.stream = self._stream
            self._container.mux(self._waiting)
            self._waiting = None
