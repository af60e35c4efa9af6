"""H.264 films with the source's timestamps: pictures with its sound, for people, and label maps without loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.video import BT709, HARDWARE, converted, no_hardware, upright_rgb

if TYPE_CHECKING:
    from av import VideoFrame

Picture = NDArray[np.uint8]

# Codecs, by the names of FFmpeg's decoders, that may lie in an MP4 file and that browsers know.
_SOUND = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "flac", "alac"})
_LIMITED_RANGE, _FULL_RANGE = 1, 2
PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)
# Of a picture's quality for people: 18 can hardly be told from the original, 23 is x264's own choice.
_CRF = "20"


@contextmanager
def film(
    path: Path,
    size_hw: tuple[int, int],
    *,
    time_base: Fraction,
    rate: Fraction | None,
    audio: Path | None,
    preset: str = PRESETS[0],
    matrix: int = BT709,
    pixel_aspect: Fraction | None = None,
    hardware: str | None = None,
) -> Iterator[Callable[[Picture, int], None]]:
    """Open an MP4 and yield `add(picture, pts)`; the file appears under its name when the block succeeds.

    Pictures are (H, W, 3) uint8 RGB, or PyAV frames of planes in `matrix` (see `runtime.overlay.yuv`); one of odd size
    gains a row or column, since H.264 halves its color planes. `pixel_aspect` is a pixel's width by its height
    [1]. `hardware` is a key of `HARDWARE`. `pts` counts `time_base` and is kept; where it jumps back by more than
    a second, as in recordings that were joined, the film goes on from where it was. The sound of the file `audio`
    is copied beside it where an MP4 can hold it. Raise
    `DataError` when the file cannot be written, `DeviceError` where the hardware is not to be had.
    """
    with _mp4(path) as (container, stack):
        codec = HARDWARE[hardware] if hardware else ("libx264", {"preset": preset, "crf": _CRF})
        encoder = _Encoder(
            container, size_hw, time_base, rate, codec, matrix=matrix, pixel_aspect=pixel_aspect
        )
        if hardware:
            encoder.open(hardware)
        sound, clock = _Sound(container, audio, stack), _Clock(time_base)

        def add(picture: Picture | VideoFrame, pts: int) -> None:
            pts = clock.onward(pts)
            sound.until(float(pts * time_base))
            if not isinstance(picture, np.ndarray):
                if (picture.height, picture.width) == size_hw:
                    encoder.encode(picture, pts)
                    return
                picture = upright_rgb(picture)
            # Some cameras change their size on the way; a film has one.
            encoder.add(resize_frame(picture, size_hw), pts)

        yield add
        encoder.flush()
        sound.until(float("inf"))


@contextmanager
def label_video(
    path: Path,
    size_hw: tuple[int, int],
    *,
    time_base: Fraction,
    rate: Fraction | None,
    pixel_aspect: Fraction | None = None,
) -> Iterator[Callable[[Picture, int], None]]:
    """Open an MP4 of label maps (H, W) uint8 and yield `add(labels, pts)`, else as `film`.

    It is gray, lossless and of full range: whoever decodes it to gray has the very ids.
    """
    with _mp4(path) as (container, _):
        codec = ("libx264", {"preset": PRESETS[0], "qp": "0"})
        encoder = _Encoder(
            container, size_hw, time_base, rate, codec, gray=True, pixel_aspect=pixel_aspect
        )
        clock = _Clock(time_base)
        yield lambda labels, pts: encoder.add(resize_labels(labels, size_hw), clock.onward(pts))
        encoder.flush()


@contextmanager
def _mp4(path: Path) -> Iterator[tuple[Any, ExitStack]]:
    """Open a file for writing, and what is closed with it."""
    import av

    with ExitStack() as stack:
        try:
            temporary = stack.enter_context(atomic_path(path))
            container = stack.enter_context(
                av.open(str(temporary), "w", options={"movflags": "+faststart"})
            )
            yield container, stack
        except av.error.FFmpegError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None


class _Encoder:
    def __init__(
        self,
        container: Any,
        size_hw: tuple[int, int],
        time_base: Fraction,
        rate: Fraction | None,
        codec: tuple[str, dict[str, str]],
        *,
        matrix: int = BT709,
        gray: bool = False,
        pixel_aspect: Fraction | None = None,
    ) -> None:
        self._container = container
        self._matrix = matrix
        self._time_base = time_base
        self._gray = gray
        height, width = size_hw
        self._pad_hw = height % 2, width % 2
        # The rate only guides the encoder; the time base makes every timestamp exact.
        self._stream = container.add_stream(codec[0], rate=rate or 25, options=codec[1])
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "gray" if gray else "yuv420p"
        context = self._stream.codec_context
        context.time_base = time_base
        if pixel_aspect is not None:
            context.sample_aspect_ratio = pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = matrix
        context.color_range = _FULL_RANGE if gray else _LIMITED_RANGE

    def open(self, hardware: str) -> None:
        """Begin now rather than at the first picture; raise `DeviceError` where the hardware is not to be had."""
        try:
            self._stream.codec_context.open()
        except (OSError, ValueError) as error:
            raise no_hardware(hardware, "encode", error) from None

    def add(self, picture: Picture, pts: int) -> None:
        import av

        if any(self._pad_hw):
            below, beside = self._pad_hw
            picture = np.asarray(
                cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_REPLICATE), np.uint8
            )
        picture = np.ascontiguousarray(picture)
        if self._gray:
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
        else:
            rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = converted(rgb, "yuv420p", dst_colorspace=self._matrix)
        self.encode(frame, pts)

    def encode(self, frame: VideoFrame, pts: int) -> None:
        frame.pts, frame.time_base = pts, self._time_base
        self._container.mux(self._stream.encode(frame))

    def flush(self) -> None:
        self._container.mux(self._stream.encode(None))


class _Clock:
    """Timestamps that only rise, since nothing else can be written.

    One that stands still or runs back a little, as in damaged recordings, is set one tick onward. One that jumps
    back, as where recordings were joined, is shifted for good.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._second = 1 / time_base
        self._last: int | None = None
        self._step = 1
        self._shift = 0
        # Where the source's clock was before it jumped back.
        self._before: int | None = None

    def onward(self, pts: int) -> int:
        raw = pts
        if self._before is not None and raw > self._before:
            # It is back where it was, so one stray timestamp was all.
            self._shift, self._before = 0, None
        pts += self._shift
        if self._last is not None:
            if self._last - pts > self._second:
                self._before = None if self._shift else self._last
                self._shift += self._last + self._step - pts
                pts = self._last + self._step
            pts = max(pts, self._last + 1)
            self._step = min(pts - self._last, max(1, int(self._second)))
        self._last = pts
        return pts


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
        track = source.streams.audio[0] if source.streams.audio else None
        # What FFmpeg cannot decode has no context.
        if (
            track is not None
            and track.codec_context is not None
            and track.codec_context.name in _SOUND
        ):
            self._stream = container.add_stream_from_template(track)
            assert track.time_base is not None
            clock = _Clock(track.time_base)
            # The packet that ends a stream has no timestamp.
            self._packets = (
                _set_onward(p, clock) for p in source.demux(track) if p.dts is not None
            )

    def until(self, seconds: float) -> None:
        import av

        while True:
            try:
                self._waiting = self._waiting or next(self._packets, None)
            except av.error.FFmpegError:
                # Sound cut short is no reason to lose the pictures.
                self._packets = iter(())
                return
            if (
                self._waiting is None
                or float(self._waiting.dts * self._waiting.time_base) > seconds
            ):
                return
            self._waiting.stream = self._stream
            self._container.mux(self._waiting)
            self._waiting = None


def _set_onward(packet: Any, clock: _Clock) -> Any:
    shift = clock.onward(packet.dts) - packet.dts
    packet.dts += shift
    packet.pts = packet.dts if packet.pts is None else packet.pts + shift
    return packet
