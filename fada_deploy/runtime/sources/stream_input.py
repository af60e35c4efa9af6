"""Read frames from a stream, the standard input or a camera."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.decoding import decode_packet
from fada_deploy.common.errors import DataError
from fada_deploy.common.video import allowed_formats, best_stream, upright_rgb
from fada_deploy.runtime.sources.addresses import PIPE

# Seconds to wait for a connection or for the next packet.
CONNECT_TIMEOUT_S = 5.0
# FFmpeg's flag for formats without timestamps (AVFMT_NOTIMESTAMPS), such as raw frames.
_NO_TIMESTAMPS = 0x80
_PLAYLISTS = frozenset({"hls", "dash"})
_PLAYLIST_SUFFIXES = (".m3u8", ".mpd")
# A live playlist grows by one segment at a time, which may have ten seconds.
_PLAYLIST_TIMEOUT_S = 20.0
# With low delay, these decoders of FFmpeg output frames in the order of decoding.
_REORDERED_BY_LOW_DELAY = frozenset({"mpeg1video", "mpeg2video"})
# Scheme of an address → the protocols that FFmpeg may use for it.
_PROTOCOLS = {
    "http": "http,https,httpproxy,tls,tcp,crypto,data",
    "https": "https,http,httpproxy,tls,tcp,crypto,data",
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsps,rtsp,srtp,rtp,rtcp,udp,tls,tcp",
    "rtmp": "rtmp,tcp",
}
# Seconds by which a stream of known length may end early.
_END_SLACK_S = 1.0

Image = NDArray[np.uint8]
# An RGB image and its timestamp in seconds, None if the stream has no timestamps.
TimedImage = tuple[Image, float | None]


class EndOfStream(Exception):
    """A stream of known length has ended as announced."""


def read_stream(
    address: str,
    stopped: Callable[[], bool],
    *,
    every_frame: bool,
    on_file: Callable[[], None] = lambda: None,
    on_segments: Callable[[], None] = lambda: None,
) -> Iterator[TimedImage | None]:
    """Yield the images of a stream until `stopped()`, and None for each damaged packet.

    With `every_frame` the decoder may delay frames; otherwise it is set to low delay. `on_file` is
    called first if the address is a file of known length, of which every frame is read, and
    `on_segments` if it is a live playlist, whose frames arrive one segment at a time. Raise
    `DataError` when the connection breaks, `EndOfStream` when a stream of known length is complete.
    """
    import av
    from av.codec.context import Flags

    file: Any = _standard_input() if address == PIPE else address
    first = last = None
    timeout_s = packet_timeout_s(address)
    timeout = None if address == PIPE else (CONNECT_TIMEOUT_S, timeout_s)
    try:
        with av.open(
            file, options=_options(address), timeout=timeout, metadata_errors="replace"
        ) as container:
            if not container.streams.video:
                raise DataError("contains no video stream")
            is_file = _is_file(address, container)
            if is_file:
                every_frame = True
                on_file()
            elif _has_playlist(container):
                on_segments()
            stream = best_stream(container)
            _discard_others(container, stream)
            if not every_frame and stream.codec_context.name not in _REORDERED_BY_LOW_DELAY:
                stream.codec_context.flags |= Flags.low_delay
            # Without timestamps in the format, FFmpeg invents them.
            has_timestamps = not int(container.format.flags) & _NO_TIMESTAMPS
            last_packet = time.monotonic()
            # All streams: RTSP delivers discarded ones too, and the packets of the sound must not
            # hide that the camera shows nothing any more.
            for packet in container.demux():
                if packet.stream.index != stream.index:
                    waited_s = time.monotonic() - last_packet
                    if waited_s > timeout_s and not is_file and address != PIPE:
                        raise DataError(f"no packet of the video for {timeout_s:g} s")
                    continue
                for frame in decode_packet(packet):
                    if stopped():
                        return
                    if frame is None:
                        yield None
                        continue
                    last = frame.time
                    first = last if first is None else first
                    yield upright_rgb(frame), frame.time if has_timestamps else None
                # After the frames were taken, which may last.
                last_packet = time.monotonic()
            if _is_complete(address, container, stream, (last or 0) - (first or 0)):
                raise EndOfStream
    except av.error.ExitError:
        raise DataError(f"no packet for {timeout_s:g} s") from None
    except av.error.FFmpegError as error:
        if address == PIPE and first is None:
            raise DataError(
                "no data, or not a video that can be read from a pipe; an MP4 file needs its index "
                "at the beginning (ffmpeg -movflags +faststart), or name the file"
            ) from None
        raise DataError(_unknown_host(address) or error.strerror or str(error)) from None


def _discard_others(container: Any, stream: Any) -> None:
    """Tell FFmpeg that the other streams are not needed."""
    from av.stream import Discard

    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all


def packet_timeout_s(address: str) -> float:
    """Return the seconds without a packet after which a connection counts as broken."""
    return _PLAYLIST_TIMEOUT_S if _is_playlist(address) else CONNECT_TIMEOUT_S


def _is_playlist(address: str) -> bool:
    return "://" in address and urlsplit(address).path.lower().endswith(_PLAYLIST_SUFFIXES)


def _options(address: str) -> dict[str, str]:
    """Return the options with which FFmpeg opens a stream."""
    scheme = address.partition("://")[0].lower()
    options = {
        # FFmpeg would read 20 frames or more to guess a frame rate that nothing here uses; a slow
        # camera needs ten seconds for that. Packets read while probing are not discarded
        # ("nobuffer"), because later frames depend on their key frame.
        "fpsprobesize": "0",
        # A playlist must not name local files or other services.
        "protocol_whitelist": _PROTOCOLS.get(scheme, scheme),
    }
    if address == PIPE:
        return {**options, "protocol_whitelist": "pipe", "format_whitelist": allowed_formats()}
    if scheme.startswith("rtsp"):
        # Over UDP, lost packets become corrupt images.
        options["rtsp_transport"] = "tcp"
    return options


def _unknown_host(address: str) -> str:
    """Return a message if the host of an address has no entry in DNS, "" otherwise."""
    host = urlsplit(address).hostname if "://" in address else None
    if host is None:
        return ""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return f"the host name {host} is unknown"
    return ""


def _has_playlist(container: Any) -> bool:
    return container.format.name.split(",")[0] in _PLAYLISTS


def _is_file(address: str, container: Any) -> bool:
    """Return whether an address is a recording of known length.

    That is a file whose server states its number of bytes, or a playlist that has an end.
    """
    if address == PIPE:
        return False
    return bool(container.duration if _has_playlist(container) else container.size > 0)


def _standard_input() -> Any:
    if sys.stdin is None:
        raise DataError("it is closed")
    # The unbuffered reader: Python's buffer has a lock, which a daemon thread that still waits
    # for input would hold while the interpreter shuts down.
    return getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)


def _is_complete(address: str, container: Any, stream: Any, seconds: float) -> bool:
    """Return whether a stream that stopped after `seconds` has ended rather than been cut.

    A broken connection looks like an end. A stream is complete if its announced length was
    reached, or if the server announced the number of bytes (FFmpeg fails if fewer arrive).
    """
    if _has_playlist(container):
        # FFmpeg ends a playlist only after its last segment; its timestamps may begin anew.
        return bool(container.duration)
    if container.duration:
        return bool(seconds >= _announced_seconds(container, stream) - _END_SLACK_S)
    return _is_file(address, container)


def _announced_seconds(container: Any, stream: Any) -> float:
    """Return the length of the video from its header in seconds, 0 if the header has none."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    # With several streams the container's length may be that of the audio.
    return float(container.duration / 1_000_000) if len(container.streams) == 1 else 0.0


def read_camera(number: int, stopped: Callable[[], bool]) -> Iterator[TimedImage]:
    """Yield the images of a camera until `stopped()`; raise `DataError` if it cannot be opened."""
    import cv2

    camera = cv2.VideoCapture(number)
    try:
        if not camera.isOpened():
            raise DataError(
                f"camera {number} cannot be opened; check that it is connected and that this user "
                "may read it"
            )
        while not stopped():
            success, image = camera.read()
            if not success:
                return
            yield np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), None
    finally:
        with suppress(Exception):
            camera.release()
