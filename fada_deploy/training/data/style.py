"""Give source frames the style of random target frames, which needs no labels of the target.

| style | what a source frame takes from a target frame | source |
|---|---|---|
| statistics | mean and standard deviation of each channel in CIELAB | Reinhard et al., 2001 |
| fourier | the amplitude of the lowest frequencies | FDA: Yang and Soatto, CVPR 2020, eq. 3-4 |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import resize_frame
from fada_deploy.data.base import FrameDataset

Frame = NDArray[np.uint8]

# Part of the source frames that get another style; the others keep their own.
PROBABILITY = 0.5
# Half the side of the square of exchanged frequencies, relative to the shorter side of the frame.
# Larger values of FDA copy structures of the target frame.
LOW_FREQUENCIES = 0.01


def match_statistics(frame: Frame, style: Frame) -> Frame:
    """Return a frame (H, W, 3) RGB with the mean and deviation of another one in CIELAB."""
    lab, other = (
        cv2.cvtColor(np.asarray(f, np.float32) / 255, cv2.COLOR_RGB2LAB) for f in (frame, style)
    )
    deviation = np.maximum(lab.std((0, 1)), 1e-3)
    matched = (lab - lab.mean((0, 1))) * (other.std((0, 1)) / deviation) + other.mean((0, 1))
    return _to_uint8(255 * cv2.cvtColor(matched.astype(np.float32), cv2.COLOR_LAB2RGB))


def swap_amplitude(frame: Frame, style: Frame, *, fraction: float = LOW_FREQUENCIES) -> Frame:
    """Return a frame (H, W, 3) with the amplitude of another one at the lowest frequencies.

    Frequencies up to floor(`fraction` · shorter side) in both directions are exchanged; the phase
    stays. Both frames have the same size.
    """
    height, width = frame.shape[:2]
    limit = int(fraction * min(height, width))
    # Few frequencies are needed, so they are computed as products with two small matrices instead
    # of a transform of the whole frame.
    rows, columns = _waves(height, limit), _waves(width, limit)

    def transform(image: Frame) -> NDArray[np.complex128]:
        return np.asarray(np.einsum("uh,hwc,vw->uvc", rows, image, columns, optimize=True))

    own, other = transform(frame), transform(style)
    phase = np.exp(1j * np.angle(own))
    change = np.abs(other) * phase - own
    correction = np.einsum(
        "uh,uvc,vw->hwc", rows.conj(), change, columns.conj(), optimize=True
    ).real / (height * width)
    return _to_uint8(frame + correction)


def _waves(length: int, limit: int) -> NDArray[np.complex128]:
    """Return exp(−2πi u x / length) for u in −limit…limit and x in 0…length−1."""
    u, x = np.arange(-limit, limit + 1)[:, None], np.arange(length)
    return np.asarray(np.exp(-2j * np.pi * u * x / length))


def _to_uint8(image: NDArray[Any]) -> Frame:
    return np.asarray(np.rint(image).clip(0, 255), np.uint8)


STYLES: dict[str, Callable[[Frame, Frame], Frame]] = {
    "statistics": match_statistics,
    "fourier": swap_amplitude,
}


@dataclass(frozen=True)
class StyleTransfer:
    """Gives some frames the style of random frames of the target.

    Attributes:
        name: A key of `STYLES`.
        frames: The target's training frames.
    """

    name: str
    frames: FrameDataset

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        """Return a frame (H, W, 3), which keeps its style if the target frame is unreadable."""
        if rng.random() >= PROBABILITY:
            return frame
        try:
            style = self.frames.image(int(rng.integers(len(self.frames))))
        except DataError:
            # The loader of the target reports the file.
            return frame
        return STYLES[self.name](frame, resize_frame(style, (frame.shape[0], frame.shape[1])))
