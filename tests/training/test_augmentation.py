"""Augmentation against formulas in NumPy, and as a pure function of the generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fada_deploy.common.errors import UsageError
from fada_deploy.training.data.augmentation import (
    AUGMENTATIONS,
    NO_AUGMENTATION,
    Augmentation,
    augment_geometry,
    augment_photometry,
    get_augmentation,
)

RNG = np.random.default_rng(0)
FRAME = RNG.integers(30, 220, (60, 90, 3), np.uint8)
# Labels that encode the position, so that every label shows where its pixel comes from.
ROWS, COLUMNS = np.mgrid[:60, :90]


def rng(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_none_returns_the_frame_and_draws_nothing() -> None:
    generator = rng()
    state = generator.bit_generator.state
    labels = np.zeros((60, 90), np.uint8)
    frame, kept = augment_geometry(FRAME, labels, (60, 90), NO_AUGMENTATION, generator)
    assert augment_photometry(frame, NO_AUGMENTATION, generator) is FRAME and kept is labels
    assert generator.bit_generator.state == state


@pytest.mark.parametrize("name", ["light", "strong"])
def test_a_generator_decides_everything(name: str) -> None:
    def augmented(seed: int) -> list[np.ndarray]:
        generator = rng(seed)
        spec = get_augmentation(name)
        frame, labels = augment_geometry(FRAME, np.uint8(ROWS), (48, 64), spec, generator)
        return [augment_photometry(frame, spec, generator), labels]

    first, again, other = augmented(5), augmented(5), augmented(6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (48, 64, 3) and first[1].shape == (48, 64)
    assert not np.array_equal(first[0], other[0])


def test_zoom_cuts_the_same_window_from_frame_and_labels() -> None:
    """With a zoom of exactly 2 and no resize, frame and labels are the same half-size window."""
    spec = Augmentation(zoom=(2.0, 2.0))
    coded = np.stack([ROWS, COLUMNS, ROWS], axis=2).astype(np.uint8)
    for seed in range(8):
        frame, rows = augment_geometry(coded, np.uint8(ROWS), (30, 45), spec, rng(seed))
        _, columns = augment_geometry(coded, np.uint8(COLUMNS), (30, 45), spec, rng(seed))
        np.testing.assert_array_equal(frame[..., 0], rows)
        np.testing.assert_array_equal(frame[..., 1], columns)
        assert (rows[:, 0] == rows[0, 0] + np.arange(30)).all()
        assert (columns[0] == columns[0, 0] + np.arange(45)).all()


def test_windows_reach_all_borders() -> None:
    spec = Augmentation(zoom=(2.0, 2.0))
    corners = [
        augment_geometry(FRAME, np.uint8(ROWS), (30, 45), spec, rng(seed))[1][0, 0]
        for seed in range(200)
    ]
    assert min(corners) == 0 and max(corners) == 30


def test_small_zoom_reflects_the_frame_and_ignores_the_border() -> None:
    spec = Augmentation(zoom=(0.5, 0.5))
    frame, labels = augment_geometry(FRAME, np.ones((60, 90), np.uint8), (120, 180), spec, rng())
    inside = labels == 1
    assert inside.sum() == 60 * 90 and set(np.unique(labels)) == {1, 255}
    np.testing.assert_array_equal(frame[inside].reshape(60, 90, 3), FRAME)


def test_mirror_flips_both() -> None:
    spec = Augmentation(mirror=1.0)
    frame, labels = augment_geometry(FRAME, np.uint8(COLUMNS), (60, 90), spec, rng())
    np.testing.assert_array_equal(frame, FRAME[:, ::-1])
    np.testing.assert_array_equal(labels, COLUMNS[:, ::-1])


@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation", "channel_gain"])
def test_color_follows_its_formula(strength: str) -> None:
    spec = replace(NO_AUGMENTATION, **{strength: 0.4})
    got = augment_photometry(FRAME, spec, rng(3)).astype(float)
    # The draws in order: brightness, contrast, saturation, then three gains.
    draws = rng(3)
    factors = dict.fromkeys(("brightness", "contrast", "saturation"), 1.0)
    for name in factors:
        low, high = (0.6, 1.4) if name == strength else (1.0, 1.0)
        factors[name] = draws.uniform(low, high)
    spread = 0.4 if strength == "channel_gain" else 0.0
    gains = draws.uniform(1 - spread, 1 + spread, 3)
    luma = np.array([0.299, 0.587, 0.114])
    gray = (FRAME @ luma)[..., None]
    expected = factors["saturation"] * FRAME + (1 - factors["saturation"]) * gray
    expected = expected * gains * factors["brightness"] * factors["contrast"]
    expected = expected + (1 - factors["contrast"]) * factors["brightness"] * gray.mean()
    np.testing.assert_allclose(got, np.clip(expected, 0, 255), atol=1.0)
    assert np.abs(got - FRAME).mean() > 1


def test_noise_has_the_drawn_standard_deviation() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    stds = [
        augment_photometry(gray, Augmentation(noise=8.0), rng(seed)).std() for seed in range(40)
    ]
    # The standard deviation is uniform in 0 … 8.
    assert 3.0 < np.mean(stds) < 5.0 and max(stds) < 8.3


def test_blur_and_jpeg_remove_detail() -> None:
    def detail(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float), axis=1)).mean())

    blurred = augment_photometry(FRAME, Augmentation(blur=1.0, blur_sigma=(1.5, 1.5)), rng())
    compressed = augment_photometry(FRAME, Augmentation(jpeg=1.0, jpeg_quality=(10, 10)), rng())
    assert detail(blurred) < 0.5 * detail(FRAME) and detail(compressed) < 0.9 * detail(FRAME)
    assert abs(blurred.mean() - FRAME.mean()) < 2 and abs(compressed.mean() - FRAME.mean()) < 3


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(UsageError, match=r"none, light, strong.*'huge'"):
        get_augmentation("huge")
    assert list(AUGMENTATIONS) == ["none", "light", "strong"]
