"""Data augmentation of single frames, deterministic given the random generator."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.label_space import IGNORE
from fada_deploy.training.data.augmentation import LUMA

Frame = NDArray[np.uint8]
Labels = NDArray[np.uint8]
# The name of a change in `JITTER`, and its factor or shift.
JitterStep = tuple[str, float]
JITTER = ("brightness", "contrast", "saturation", "hue")
_LUMA = LUMA.astype(np.float32)


def draw_jitter(
    strength: tuple[float, float, float, float], rng: np.random.Generator
) -> tuple[JitterStep, ...]:
    """Return changes of brightness, contrast, saturation and hue, in random order.

    Equivalent to torchvision's ColorJitter. `strength` is (brightness, contrast, saturation, hue):
    the first three factors are drawn uniformly from 1 ± strength, the hue shift from ± strength of
    a full turn. If all strengths are 0, there are no steps, and nothing is drawn.
    """
    if not any(strength):
        return ()
    steps = []
    for change in rng.permutation(4):
        spread = strength[change]
        low, high = (-spread, spread) if change == 3 else (max(0.0, 1 - spread), 1 + spread)
        steps.append((JITTER[change], float(rng.uniform(low, high))))
    return tuple(steps)


def apply_jitter(frame: Frame, steps: tuple[JitterStep, ...]) -> Frame:
    """Return a frame (H, W, 3) uint8 RGB after the steps; without steps the frame itself.

    `color_kernels.apply_jitter` does the same for a batch on a GPU.
    """
    if not steps:
        return frame
    image = frame.astype(np.float32)
    for change, value in steps:
        if change == "hue":
            image = _shift_hue(image, value) if value else image
            continue
        if change == "brightness":
            image = image * value
        elif change == "contrast":
            image = image * value + (1 - value) * float((image @ _LUMA).mean())
        else:
            image = image * value + (1 - value) * (image @ _LUMA)[..., None]
        np.clip(image, 0, 255, out=image)
    return image.round().astype(np.uint8)


def _shift_hue(image: NDArray[np.float32], shift: float) -> NDArray[np.float32]:
    """Rotate the hue of RGB values in 0…255 by `shift` full turns."""
    hsv = cv2.cvtColor(image / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * shift) % 360
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255, np.float32)


def flip(
    frame: Frame, labels: Labels, probability: float, rng: np.random.Generator
) -> tuple[Frame, Labels]:
    """Mirror frame and labels left to right, with the given probability."""
    if rng.random() >= probability:
        return frame, labels
    return np.ascontiguousarray(frame[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])


def scale_and_crop(
    frame: Frame,
    labels: Labels,
    *,
    size_hw: tuple[int, int],
    scale: tuple[float, float],
    crop_hw: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[Frame, Labels]:
    """Resize frame and labels to `size_hw` times a random factor, then crop `crop_hw` at random.

    The factor is drawn uniformly from `scale` = (low, high). An image smaller than the crop is
    padded at the right and bottom: the frame with black, the labels with 255 (ignore).
    """
    factor = float(rng.uniform(*scale))
    scaled = (max(1, round(size_hw[0] * factor)), max(1, round(size_hw[1] * factor)))
    frame, labels = resize_frame(frame, scaled), resize_labels(labels, scaled)
    pad_y, pad_x = max(0, crop_hw[0] - scaled[0]), max(0, crop_hw[1] - scaled[1])
    if pad_y or pad_x:
        frame = np.pad(frame, ((0, pad_y), (0, pad_x), (0, 0)))
        labels = np.pad(labels, ((0, pad_y), (0, pad_x)), constant_values=IGNORE)
    top = int(rng.integers(frame.shape[0] - crop_hw[0] + 1))
    left = int(rng.integers(frame.shape[1] - crop_hw[1] + 1))
    window = np.s_[top : top + crop_hw[0], left : left + crop_hw[1]]
    return np.ascontiguousarray(frame[window]), np.ascontiguousarray(labels[window])
