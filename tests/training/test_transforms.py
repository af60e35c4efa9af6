"""Augmentation: color formulas on single pixels, and the same geometry for frames and labels."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from fada_deploy.training.data.transforms import apply_jitter, draw_jitter, flip, scale_and_crop

COLORS = np.array([[[200, 40, 90], [10, 120, 60], [70, 70, 200]]], np.uint8)


class FixedDraws(np.random.Generator):
    """A generator that returns the given uniform draws and the identity permutation."""

    def __init__(self, *draws: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = list(draws)

    def permutation(self, *args: object, **kwargs: object) -> np.ndarray:  # type: ignore[override]
        return np.arange(4)

    def uniform(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
        return self.draws.pop(0)


def color_jitter(
    frame: np.ndarray, strength: tuple[float, float, float, float], rng: np.random.Generator
) -> np.ndarray:
    return apply_jitter(frame, draw_jitter(strength, rng))


def luma(color: np.ndarray) -> np.ndarray:
    return color @ np.array([0.299, 0.587, 0.114])


def test_brightness_contrast_and_saturation_follow_their_formulas() -> None:
    x = COLORS.astype(float)
    strength = (0.5, 0.5, 0.5, 0.2)
    jittered = color_jitter(COLORS, strength, FixedDraws(1.2, 1, 1, 0))
    np.testing.assert_allclose(jittered, np.minimum(x * 1.2, 255), atol=0.51)
    jittered = color_jitter(COLORS, strength, FixedDraws(1, 0.6, 1, 0))
    np.testing.assert_allclose(jittered, 0.6 * x + 0.4 * luma(x).mean(), atol=0.51)
    jittered = color_jitter(COLORS, strength, FixedDraws(1, 1, 0.3, 0))
    np.testing.assert_allclose(jittered, 0.3 * x + 0.7 * luma(x)[..., None], atol=0.51)


def test_hue_shift_rotates_the_hsv_hue() -> None:
    jittered = color_jitter(COLORS, (0.5, 0.5, 0.5, 0.2), FixedDraws(1, 1, 1, 0.15))
    for before, after in zip(COLORS[0], jittered[0], strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(before / 255))
        np.testing.assert_allclose(
            after / 255, colorsys.hsv_to_rgb((h + 0.15) % 1, s, v), atol=0.01
        )


def test_zero_strength_returns_the_frame_and_the_seed_decides_the_rest() -> None:
    rng = np.random.default_rng(0)
    assert color_jitter(COLORS, (0, 0, 0, 0), rng) is COLORS
    strong = (0.5, 0.5, 0.5, 0.2)
    a, b = (color_jitter(COLORS, strong, np.random.default_rng(s)) for s in (1, 1))
    assert np.array_equal(a, b) and not np.array_equal(
        a, color_jitter(COLORS, strong, np.random.default_rng(2))
    )


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (1.5, 1.5)])
def test_scale_and_crop_moves_frame_and_labels_together(scale: tuple[float, float]) -> None:
    # Columns of 8 pixels whose frame value identifies the label.
    labels = np.repeat(np.repeat(np.arange(8, dtype=np.uint8), 8)[None], 32, 0)
    frame = np.repeat((labels * 30)[..., None], 3, 2)
    for seed in range(5):
        crop, crop_labels = scale_and_crop(
            frame,
            labels,
            size_hw=(32, 64),
            scale=scale,
            crop_hw=(24, 48),
            rng=np.random.default_rng(seed),
        )
        assert crop.shape == (24, 48, 3) and crop_labels.shape == (24, 48)
        inside = crop_labels != 255
        near = np.abs(crop[..., 0].astype(int) - crop_labels.astype(int) * 30) <= 15
        assert near[inside].mean() > 0.95
        assert inside.all() == (scale[0] >= 0.75)


def test_flip_mirrors_frame_and_labels() -> None:
    frame, labels = COLORS, np.array([[1, 2, 3]], np.uint8)
    flipped, flipped_labels = flip(frame, labels, 1.0, np.random.default_rng(0))
    assert flipped_labels.tolist() == [[3, 2, 1]] and np.array_equal(flipped[:, 0], frame[:, 2])
    assert flip(frame, labels, 0.0, np.random.default_rng(0))[1] is labels
