"""Read frames from a stream, a pipe or a camera."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.video import upright_rgb
from fada_deploy.runtime.sources.videos import decoded

PIPE = "-"
# Seconds to connect or to wait for a packet.
CONNECT_TIMEOUT_S = 5.0
# FFmpeg's flag for formats of bare pictures or frames (AVFMT_NOTIMESTAMPS).
_NO_TIMESTAMPS = 0x80
_PLAYLISTS = frozenset({"hls", "dash"})
# Seconds by which a stream of known length may end early.
_SLACK = 1.0

Image = NDArray[np.uint8]
# A frame and its seconds on the stream's own clock, None where it says none.
Timed = tuple[Image, float | None]


class EndOfStream(Exception):
    """A stream of known length came to its end."""


def read_stream(address: str, over: Callable[[], bool], *, whole: bool) -> Iterator[Timed | None]:
    """Yield the pictures of a stream or pipe until it is `over`, None for each damaged packet.

    Raise `DataError` when it breaks, `EndOfStream` when it has its end.
    """
    import av

    # Nobody asks for the rate, and to guess it takes 20 frames or more: ten seconds of a slow camera's. What was
    # read so far is kept, old as it is (the policy drops it): the frames that follow need its key frame.
    options = {"fpsprobesize": "0"} if whole else {"fpsprobesize": "0", "flags": "low_delay"}
    if address.startswith("rtsp"):
        # Over UDP lost packets are torn pictures.
        options["rtsp_transport"] = "tcp"
    source: Any = _stdin() if address == PIPE else address
    timeout = None if address == PIPE else (CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S)
    try:
        with av.open(source, options=options, timeout=timeout) as container:
            if not container.streams.video:
                raise DataError("holds no video")
            stream = container.streams.video[0]
            first = last = None
            # Where a format has no times FFmpeg makes some up.
            has_clock = not int(container.format.flags) & _NO_TIMESTAMPS
            for packet in container.demux(stream):
                for picture in decoded(packet):
                    if over():
                        return
                    if picture is None:
                        yield None
                        continue
                    last = picture.time
                    first = last if first is None else first
                    yield upright_rgb(picture), picture.time if has_clock else None
            # What is cut looks like an end. It is one behind the pictures' length, as far as that is known, or
            # where the server said how many bytes there are: FFmpeg complains when it gives fewer.
            if container.duration:
                ended = (last or 0) - (first or 0) >= _length(container, stream) - _SLACK
            else:
                # A playlist's own length says nothing of its stream's.
                ended = (
                    address != PIPE
                    and container.size > 0
                    and container.format.name.split(",")[0] not in _PLAYLISTS
                )
            if ended:
                raise EndOfStream
    except av.error.ExitError:
        raise DataError(f"no packet for {CONNECT_TIMEOUT_S:g} s") from None
    except av.error.FFmpegError as error:
        raise DataError(error.strerror or str(error)) from None


def _stdin() -> Any:
    """Return what a pipe is read from: without Python's buffer, whose lock a waiting thread takes to its grave."""
    return getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)


def _length(container: Any, stream: Any) -> float:
    """Return how many seconds a stream's pictures last, 0 where its header does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # The length of the whole may be that of its sound.
    return float(container.duration / 1_000_000) if len(container.streams) == 1 else 0.0


def read_camera(number: int, over: Callable[[], bool]) -> Iterator[Timed]:
    """Yield the pictures of a camera by its number until it is `over`."""
    import cv2

    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise DataError(
                f"camera {number} does not open; is it connected, and may this user read it?"
            )
        while not over():
            there, picture = camera.read()
            if not there:
                return
            yield np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8), None
    finally:
        with suppress(Exception):
            camera.release()
