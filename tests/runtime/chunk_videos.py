"""Videos of many kinds of groups of pictures, whose frames all differ."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAMES = 72
# Name of a file → encoder, its options, whether its rate varies, whether it has sound.
KINDS: dict[str, tuple[str, dict[str, str], bool, bool]] = {
    "b-frames.mp4": ("libx264", {"bf": "3", "g": "12", "preset": "medium"}, False, True),
    "open-gop.ts": (
        "libx264", {"x264-params": "open-gop=1:bframes=3:keyint=12:min-keyint=12"}, False, True,
    ),
    "open-gop.mp4": (
        "libx265",
        {"x265-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:log-level=none:pools=1"},
        False,
        False,
    ),
    "variable-rate.mkv": ("libx264", {"bf": "3", "g": "12"}, True, False),
    "mpeg4.mp4": ("mpeg4", {"bf": "2", "g": "12"}, False, False),
}  # fmt: skip
# No frame but the first can be decoded without those before it.
INTRA_REFRESH = ("libx264", {"x264-params": "intra-refresh=1:keyint=24:bframes=0"}, False, False)


def write(
    path: Path, codec: str, options: dict[str, str], varies: bool, sound: bool, frames: int = FRAMES
) -> Path:
    """Write a moving pattern of blocks as a video of 128×64 pixels."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (8, 40, 3), dtype=np.uint8)
    pattern = blocks.repeat(8, 0).repeat(8, 1)
    times = np.cumsum(rng.integers(20, 70, frames)) if varies else 40 * np.arange(frames)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        tone = out.add_stream("aac", rate=16_000) if sound else None
        for index in range(frames):
            image = np.ascontiguousarray(pattern[:, 2 * index : 2 * index + 128])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = int(times[index]), Fraction(1, 1000)
            out.mux(stream.encode(frame))
            if tone is not None:
                wave = np.sin(np.arange(640, dtype=np.float32) / (5 + index % 7))[None]
                samples = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 16_000, 640 * index
                out.mux(tone.encode(samples))
        out.mux(stream.encode())
        if tone is not None:
            out.mux(tone.encode())
    return path


def damage(path: Path) -> Path:
    """Overwrite a part of the middle of a file."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = np.random.default_rng(1).bytes(1500)
    path.write_bytes(data)
    return path


def truncate(path: Path) -> Path:
    """Remove the last third of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])
    return path
