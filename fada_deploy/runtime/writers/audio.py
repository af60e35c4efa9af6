"""Copy the audio of a source into an output video without encoding it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.writers.encoder import MonotonicClock

# FFmpeg's decoder names of the codecs that MP4 can hold and browsers play.
_CODECS = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "flac", "alac"})


class AudioCopier:
    """Copies the packets of the first audio track of a file, in step with the video frames.

    Copies nothing if `audio` is None, if the file has no audio, or if MP4 cannot hold its codec.
    `stack` closes the file. Raise `DataError` if the file cannot be read.
    """

    def __init__(self, container: Any, audio: Path | None, stack: ExitStack) -> None:
        import av

        self._container = container
        self._packets: Iterator[Any] = iter(())
        self._next_packet: Any = None
        if audio is None:
            return
        try:
            source = stack.enter_context(av.open(str(audio)))
        except av.error.FFmpegError as error:
            raise DataError(f"{audio}: not a readable audio file ({error.strerror})") from None
        track = source.streams.audio[0] if source.streams.audio else None
        # A track that FFmpeg cannot decode has no codec context.
        if track is None or track.codec_context is None or track.codec_context.name not in _CODECS:
            return
        self._stream = container.add_stream_from_template(track)
        assert track.time_base is not None
        clock = MonotonicClock(track.time_base)
        # The packet that ends a stream has no timestamp.
        self._packets = (_retime(p, clock) for p in source.demux(track) if p.dts is not None)

    def copy_until(self, seconds: float) -> None:
        """Copy all packets up to a time; truncated audio ends without an error."""
        import av

        while True:
            try:
                self._next_packet = self._next_packet or next(self._packets, None)
            except av.error.FFmpegError:
                self._packets = iter(())
                return
            packet = self._next_packet
            if packet is None or float(packet.dts * packet.time_base) > seconds:
                return
            packet.stream = self._stream
            self._container.mux(packet)
            self._next_packet = None


def _retime(packet: Any, clock: MonotonicClock) -> Any:
    shift = clock.next(packet.dts) - packet.dts
    packet.dts += shift
    packet.pts = packet.dts if packet.pts is None else packet.pts + shift
    return packet
