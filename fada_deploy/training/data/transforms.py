"""Data augmentation of single frames, deterministic given the random generator."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.label_space import IGNORE

Frame = NDArray[np.uint8]
Labels = NDArray[np.uint8]
# ITU-R BT.601 weights of red, green and blue.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def color_jitter(
    frame: Frame, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> Frame:
    """Change brightness, contrast, saturation and hue in random order.

    Equivalent to torchvision's ColorJitter. `frame` is (H, W, 3) uint8 RGB. `strength` is
    (brightness, contrast, saturation, hue): the first three factors are drawn uniformly from
    1 ± strength, the hue shift from ± strength of a full turn. If all strengths are 0, the frame
    itself is returned.
    """
    brightness, contrast, saturation, hue = strength
    if not any(strength):
        return frame
    image = frame.astype(np.float32)
    for change in rng.permutation(4):
        if change == 3:
            shift = float(rng.uniform(-hue, hue))
            image = _shift_hue(image, shift) if shift else image
            continue
        spread = (brightness, contrast, saturation)[change]
        factor = float(rng.uniform(max(0.0, 1 - spread), 1 + spread))
        if change == 0:
            image = image * factor
        elif change == 1:
            image = image * factor + (1 - factor) * float((image @ _LUMA).mean())
        else:
            image = image * factor + (1 - factor) * (image @ _LUMA)[..., None]
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
