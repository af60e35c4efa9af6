"""Augmentation of single frames: pure functions of a random generator that the caller seeds."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.label_space import IGNORE

Frame = NDArray[np.uint8]
Labels = NDArray[np.uint8]
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def color_jitter(
    frame: Frame, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> Frame:
    """Change brightness, contrast, saturation and hue in a random order, as torchvision's ColorJitter.

    Factors are uniform in 1 ± strength; the hue turns by a uniform share ± strength of the circle.
    """
    brightness, contrast, saturation, hue = strength
    if not any(strength):
        return frame
    image = frame.astype(np.float32)
    for step in rng.permutation(4):
        if step == 3:
            turn = float(rng.uniform(-hue, hue))
            image = _turn_hue(image, turn) if turn else image
            continue
        spread = (brightness, contrast, saturation)[step]
        factor = float(rng.uniform(max(0.0, 1 - spread), 1 + spread))
        if step == 0:
            image = image * factor
        elif step == 1:
            image = image * factor + (1 - factor) * float((image @ _GREY).mean())
        else:
            image = image * factor + (1 - factor) * (image @ _GREY)[..., None]
        np.clip(image, 0, 255, out=image)
    return image.round().astype(np.uint8)


def _turn_hue(image: NDArray[np.float32], turn: float) -> NDArray[np.float32]:
    hsv = cv2.cvtColor(image / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * turn) % 360
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255, np.float32)


def flip(
    frame: Frame, labels: Labels, probability: float, rng: np.random.Generator
) -> tuple[Frame, Labels]:
    """Mirror left to right with a probability."""
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
    """Resize to `size_hw` × a uniform factor, then cut a random window of `crop_hw`.

    Where the picture is smaller than the window the rest is black and ignored.
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
