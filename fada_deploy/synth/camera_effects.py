"""Camera effects: exposure, white balance, blur, vignette, noise and JPEG compression."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.noise import F32
from fada_deploy.synth.weather import Weather


def apply_camera_effects(image: F32, weather: Weather, frame: int = 0) -> NDArray[np.uint8]:
    """Apply the camera effects to an image (H, W, 3) float32 RGB in 0…255; return uint8.

    `frame` varies the noise from frame to frame of a video.
    """
    height, width = image.shape[:2]
    out: F32 = image
    if weather.blur:
        sigma = weather.blur * height / 192
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), sigma), np.float32)
    gain = weather.exposure * np.array([1 + weather.warmth, 1.0, 1 - weather.warmth], np.float32)
    if weather.contrast != 1.0 or weather.saturation != 1.0:
        # One 3 × 4 matrix applies white balance, saturation and contrast.
        gray = np.array([0.299, 0.587, 0.114], np.float32)
        mix = weather.saturation * np.eye(3, dtype=np.float32) + (1 - weather.saturation) * gray
        matrix = (mix * gain[:, None] * weather.contrast).astype(np.float32)
        shift = np.full((3, 1), 118 * (1 - weather.contrast), np.float32)
        out = np.asarray(cv2.transform(out, np.hstack((matrix, shift))), np.float32)
    else:
        out = out * gain.astype(np.float32)
    if weather.vignette:
        out = out * _vignette(height, width, weather.vignette)
    if weather.noise:
        rng = np.random.default_rng((weather.seed, frame))
        out = out + rng.standard_normal(out.shape, np.float32) * np.float32(weather.noise)
    result = np.clip(out + 0.5, 0, 255).astype(np.uint8)
    return _jpeg(result, weather.jpeg) if weather.jpeg else result


def _vignette(height: int, width: int, strength: float) -> F32:
    y, x = (
        np.linspace(-1, 1, height, dtype=np.float32)[:, None],
        np.linspace(-1, 1, width, dtype=np.float32)[None],
    )
    return np.asarray(1 - np.float32(strength / 2) * (x * x + y * y), np.float32)[..., None]


def _jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
