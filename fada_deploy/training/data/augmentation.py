"""Named sets of augmentations, as pure functions of a random generator.

A set has a geometric part, which transforms a frame together with its labels, and a photometric
part, which transforms the frame alone. The brightness, contrast, saturation and channel gains of a
frame are one 3×3 color matrix, so they cost one pass and one rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.label_space import IGNORE

Frame = NDArray[np.uint8]
Labels = NDArray[np.uint8]
# ITU-R BT.601 weights of red, green and blue.
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the augmentations; the default values change nothing.

    Attributes:
        zoom: Smallest and largest random magnification. The window of 1/zoom of the frame has a
            random position; below 1 the border is reflected and its labels are ignored.
        mirror: Probability of a horizontal flip.
        brightness: Factors are drawn uniformly from 1 ± brightness.
        contrast: Factors are drawn uniformly from 1 ± contrast, around the mean gray of the frame.
        saturation: Factors are drawn uniformly from 1 ± saturation.
        channel_gain: Factors of red, green and blue are drawn uniformly from 1 ± channel_gain.
        gamma: Exponents are drawn from 2^u, u uniform in ± gamma.
        blur: Probability of a Gaussian blur.
        blur_sigma: Smallest and largest standard deviation of the blur in pixels.
        noise: Largest standard deviation of the sensor noise, in gray levels of 255.
        jpeg: Probability of a JPEG compression.
        jpeg_quality: Lowest and highest quality of the compression.
    """

    zoom: tuple[float, float] = (1.0, 1.0)
    mirror: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    channel_gain: float = 0.0
    gamma: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.2, 1.5)
    noise: float = 0.0
    jpeg: float = 0.0
    jpeg_quality: tuple[int, int] = (40, 95)


NO_AUGMENTATION = Augmentation()
AUGMENTATIONS = {
    "none": NO_AUGMENTATION,
    "light": Augmentation(mirror=0.5, brightness=0.2, contrast=0.2, saturation=0.2),
    "strong": Augmentation(
        zoom=(0.9, 2.0),
        mirror=0.5,
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
        channel_gain=0.17,
        gamma=0.3,
        blur=0.5,
        noise=4.0,
        jpeg=0.2,
    ),
}


def get_augmentation(name: str) -> Augmentation:
    """Return a set by name; raise `UsageError` that lists the names."""
    if name not in AUGMENTATIONS:
        raise UsageError(f"augment must be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    return AUGMENTATIONS[name]


def augment_geometry(
    frame: Frame,
    labels: Labels,
    size_hw: tuple[int, int],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[Frame, Labels]:
    """Zoom, resize to `size_hw` and mirror a frame (H, W, 3) with its labels (H, W).

    The window is cut out of the frame before it is resized, so a zoom uses the full resolution.
    The augmentation "none" draws no random numbers.
    """
    if augmentation == NO_AUGMENTATION:
        return resize_frame(frame, size_hw), resize_labels(labels, size_hw)
    zoom = float(np.exp(rng.uniform(*np.log(augmentation.zoom))))
    position = rng.random(2)
    is_mirrored = rng.random() < augmentation.mirror
    if zoom < 1:
        frame, labels = _pad(frame, labels, zoom, position)
    elif zoom > 1:
        frame, labels = _crop(frame, labels, zoom, position)
    frame, labels = resize_frame(frame, size_hw), resize_labels(labels, size_hw)
    if is_mirrored:
        frame, labels = frame[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(frame), np.ascontiguousarray(labels)


def _crop(
    frame: Frame, labels: Labels, zoom: float, position: NDArray[np.float64]
) -> tuple[Frame, Labels]:
    height, width = labels.shape
    window_hw = max(1, round(height / zoom)), max(1, round(width / zoom))
    top = round(position[0] * (height - window_hw[0]))
    left = round(position[1] * (width - window_hw[1]))
    window = np.s_[top : top + window_hw[0], left : left + window_hw[1]]
    # resize_frame needs contiguous rows only; a view avoids a copy of the frame.
    return frame[window], labels[window]


def _pad(
    frame: Frame, labels: Labels, zoom: float, position: NDArray[np.float64]
) -> tuple[Frame, Labels]:
    height, width = labels.shape
    extra_y, extra_x = round(height / zoom) - height, round(width / zoom) - width
    top, left = round(position[0] * extra_y), round(position[1] * extra_x)
    border = top, extra_y - top, left, extra_x - left
    padded = cv2.copyMakeBorder(frame, *border, cv2.BORDER_REFLECT)
    ignored = cv2.copyMakeBorder(labels, *border, cv2.BORDER_CONSTANT, value=IGNORE)
    return np.asarray(padded, np.uint8), np.asarray(ignored, np.uint8)


@dataclass(frozen=True)
class Photometry:
    """What the photometric part of an augmentation does to one frame.

    Attributes:
        matrix: Color matrix, (3, 3) float: RGB out of RGB.
        contrast_offset: Added to all channels, in units of the mean gray of the frame.
        exponent: Exponent of the gray levels in 0…1.
        blur_sigma: Standard deviation of a Gaussian blur in pixels; 0 for none.
        noise_std: Standard deviation of the noise in gray levels of 255; 0 for none.
        jpeg_quality: Quality of a JPEG compression; 0 for none.
    """

    matrix: NDArray[np.float64]
    contrast_offset: float
    exponent: float
    blur_sigma: float
    noise_std: float
    jpeg_quality: int


def draw_photometry(augmentation: Augmentation, rng: np.random.Generator) -> Photometry:
    """Draw the changes of one frame."""
    matrix, offset = _draw_colors(augmentation, rng)
    exponent = 2.0 ** float(rng.uniform(-augmentation.gamma, augmentation.gamma))
    sigma = float(rng.uniform(*augmentation.blur_sigma))
    is_blurred = rng.random() < augmentation.blur
    noise_std = float(rng.uniform(0, augmentation.noise))
    quality = int(rng.integers(augmentation.jpeg_quality[0], augmentation.jpeg_quality[1] + 1))
    is_compressed = rng.random() < augmentation.jpeg
    return Photometry(
        matrix, offset, exponent, sigma * is_blurred, noise_std, quality * is_compressed
    )


def _draw_colors(
    augmentation: Augmentation, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Return the color matrix of random factors, and the offset that keeps the mean gray."""
    strengths = augmentation.brightness, augmentation.contrast, augmentation.saturation
    brightness, contrast, saturation = (float(rng.uniform(1 - s, 1 + s)) for s in strengths)
    gains = rng.uniform(1 - augmentation.channel_gain, 1 + augmentation.channel_gain, 3)
    to_gray = np.tile(LUMA, (3, 1))
    matrix = saturation * np.eye(3) + (1 - saturation) * to_gray
    matrix = np.diag(gains) @ matrix * brightness * contrast
    return matrix, (1 - contrast) * brightness


def augment_photometry(frame: Frame, augmentation: Augmentation, rng: np.random.Generator) -> Frame:
    """Change the colors of a frame (H, W, 3) uint8 RGB, blur it, add noise and compress it.

    The augmentation "none" draws no random numbers.
    """
    if augmentation == NO_AUGMENTATION:
        return frame
    return apply_photometry(frame, draw_photometry(augmentation, rng), rng)


def apply_photometry(frame: Frame, change: Photometry, rng: np.random.Generator) -> Frame:
    """Return a changed frame (H, W, 3) uint8 RGB; `rng` draws the noise.

    `color_kernels.apply_photometry` does the same for a batch on a GPU.
    """
    if not np.array_equal(change.matrix, np.eye(3)) or change.contrast_offset:
        mean_gray = float(np.asarray(cv2.mean(frame)[:3]) @ LUMA)
        affine = np.column_stack([change.matrix, np.full(3, change.contrast_offset * mean_gray)])
        frame = np.asarray(cv2.transform(frame, affine), np.uint8)
    if change.exponent != 1:
        table = np.round(255 * (np.arange(256) / 255) ** change.exponent).astype(np.uint8)
        frame = np.asarray(cv2.LUT(frame, table), np.uint8)
    if change.blur_sigma:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), change.blur_sigma), np.uint8)
    if change.noise_std:
        noise = rng.standard_normal(frame.shape, np.float32) * np.float32(change.noise_std)
        frame = np.clip(frame + noise, 0, 255).round().astype(np.uint8)
    if change.jpeg_quality:
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, change.jpeg_quality])
        bgr = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
        frame = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    return frame
