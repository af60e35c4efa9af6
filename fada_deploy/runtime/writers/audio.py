"""Copy the audio of a source into an output video, encoded again only where MP4 needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DataError
from fada_deploy.common.video import open_media
from fada_deploy.runtime.writers.encoder import MonotonicClock

# FFmpeg's decoder names of the codecs that MP4 can hold and browsers play.
_CODECS = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "flac", "alac"})
# Sample rates that AAC knows, in Hz.
_AAC_RATES = (
    7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000,
)  # fmt: skip


class AudioCopier:
    """Copies the packets of the first audio track of a file, in step with the video frames.

    Audio that MP4 cannot hold, such as the PCM and ADPCM of cameras, is encoded as AAC. Copies
    nothing if `audio` is None, or if the file has no audio that FFmpeg can decode. `stack` closes
    the file. Raise `DataError` if the file cannot be read.
    """

    def __init__(self, container: Any, audio: Path | None, stack: ExitStack) -> None:
        import av

        self._container = container
        # Added to all times of the audio, in seconds; see `encoder.shift_to_zero`.
        self.shift_s = Fraction(0)
        self._packets: Iterator[Any] = iter(())
        self._next_packet: Any = None
        if audio is None:
            return
        try:
            source = stack.enter_context(open_media(audio))
        except av.error.FFmpegError as error:
            raise DataError(f"{audio}: not a readable audio file ({error.strerror})") from None
        track = source.streams.audio[0] if source.streams.audio else None
        # A track that FFmpeg cannot decode has no codec context.
        if track is None or track.codec_context is None or not track.codec_context.sample_rate:
            return
        if track.codec_context.name in _CODECS:
            self._stream = container.add_stream_from_template(track)
            assert track.time_base is not None
            clock = MonotonicClock(track.time_base)
            # The packet that ends a stream has no timestamp.
            self._packets = (_retime(p, clock) for p in source.demux(track) if p.dts is not None)
        else:
            rate = min(_AAC_RATES, key=lambda r: abs(r - track.codec_context.sample_rate))
            layout = "mono" if track.codec_context.channels == 1 else "stereo"
            self._stream = container.add_stream("aac", rate=rate, layout=layout)
            self._packets = _encoded(source, track, self._stream, rate, layout)

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
            if packet is None or float(packet.dts * packet.time_base + self.shift_s) > seconds:
                return
            shift = round(self.shift_s / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            packet.stream = self._stream
            self._container.mux(packet)
            self._next_packet = None


def _encoded(source: Any, track: Any, stream: Any, rate: int, layout: str) -> Iterator[Any]:
    """Yield the packets of an audio track, encoded again by the encoder of `stream`."""
    import av

    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    for packet in source.demux(track):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        for frame in frames:
            try:
                pieces = resampler.resample(frame)
            except ValueError:
                # The layout or the rate of the track has changed.
                pieces = resampler.resample(None)
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
                pieces += resampler.resample(frame)
            for resampled in pieces:
                yield from stream.encode(resampled)
    for resampled in resampler.resample(None):
        yield from stream.encode(resampled)
    yield from stream.encode(None)


def _retime(packet: Any, clock: MonotonicClock) -> Any:
    shift = clock.next(packet.dts) - packet.dts
    packet.dts += shift
    packet.pts = packet.dts if packet.pts is None else packet.pts + shift
    return packet
