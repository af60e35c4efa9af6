"""Random changes of the colors of a frame: the photometric augmentation, then the color jitter.

They are drawn for one frame, and made for one frame with OpenCV, or for a whole batch on a GPU
(`color_kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.training.data.augmentation import (
    NO_AUGMENTATION,
    Augmentation,
    Photometry,
    apply_photometry,
    draw_photometry,
)
from fada_deploy.training.data.transforms import JitterStep, apply_jitter, draw_jitter


@dataclass(frozen=True)
class ColorChange:
    """What happens to the colors of one frame.

    Attributes:
        photometry: The photometric part of the augmentation; None for none.
        jitter: Steps of the color jitter that follows.
        noise_seed: Seed of the sensor noise.
    """

    photometry: Photometry | None
    jitter: tuple[JitterStep, ...]
    noise_seed: int


def draw_color_change(
    augmentation: Augmentation,
    jitter: tuple[float, float, float, float],
    rng: np.random.Generator,
) -> ColorChange | None:
    """Draw the changes of one frame; None, without drawing anything, if there are none."""
    if augmentation == NO_AUGMENTATION and not any(jitter):
        return None
    photometry = None if augmentation == NO_AUGMENTATION else draw_photometry(augmentation, rng)
    return ColorChange(photometry, draw_jitter(jitter, rng), int(rng.integers(2**63)))


def change_frame(frame: NDArray[np.uint8], change: ColorChange | None) -> NDArray[np.uint8]:
    """Return a changed frame, (H, W, 3) uint8 RGB; for None the frame itself."""
    if change is None:
        return frame
    if change.photometry is not None:
        frame = apply_photometry(frame, change.photometry, np.random.default_rng(change.noise_seed))
    return apply_jitter(frame, change.jitter)
