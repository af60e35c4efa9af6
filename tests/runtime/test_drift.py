"""Drift scores against the formulas in NumPy, on synthetic frames with known statistics."""

from __future__ import annotations

import numpy as np
import pytest

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.common.metadata import ModelMetadata, TargetStatistics
from fada_deploy.runtime.drift import DriftMonitor
from fada_deploy.runtime.result import Result

NAMES = ("road", "sky", "car", "bus")
MEAN, STD = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.05, 0.1, 0.04, 0.0])
STATISTICS = TargetStatistics(32, tuple(MEAN), tuple(STD), 0.9, 0.02)


def test_score_equals_the_formula() -> None:
    rng = np.random.default_rng(0)
    fractions = rng.dirichlet(np.full(4, 3.0), 40)
    confidences = rng.uniform(0.5, 1, 40)
    monitor = DriftMonitor(STATISTICS, NAMES, window=10)
    for n in range(1, 41):
        drift = monitor.update_values(fractions[n - 1], confidences[n - 1])
        weights = 0.9 ** np.arange(n)[::-1]
        mean = (weights[:, None] * fractions[:n]).sum(0) / weights.sum()
        # No stored frame shows a bus, so its standard deviation is the floor, 0.01.
        deviations = (mean - MEAN) / np.array([0.05, 0.1, 0.04, 0.01])
        confidence_deviation = ((weights * confidences[:n]).sum() / weights.sum() - 0.9) / 0.02
        assert drift.confidence == pytest.approx(confidence_deviation)
        np.testing.assert_allclose(drift.fractions, deviations)
        assert drift.score == pytest.approx(
            max(abs(confidence_deviation) / 3, np.sqrt((deviations**2).mean()) / 1.5)
        )
        expected = sorted(
            (-abs(d), name) for d, name in zip(deviations, NAMES, strict=True) if abs(d) > 3
        )
        assert drift.shifted_classes == tuple(name for _, name in expected)
        assert drift.frames == n


def test_frames_like_the_stored_ones_rarely_count_as_drift() -> None:
    """The mean of a window varies at most as much as single frames, however correlated they are."""
    rng = np.random.default_rng(1)
    for memory in (0.0, 0.9, 0.999):
        scores, confidences = [], []
        for _ in range(200):
            monitor = DriftMonitor(STATISTICS, NAMES, window=20)
            state = rng.normal(size=5)
            for _ in range(200):
                # A stationary process with the variance of the stored frames.
                state = memory * state + np.sqrt(1 - memory**2) * rng.normal(size=5)
                drift = monitor.update_values(MEAN + STD * state[:4], 0.9 + 0.02 * state[4])
            scores.append(drift.score)
            assert drift.confidence is not None
            confidences.append(drift.confidence)
        assert np.std(confidences) < 1.25
        assert np.mean(np.array(scores) > 1) <= 0.05


def test_drift_starts_above_1_and_end_below_0_8() -> None:
    monitor = DriftMonitor(STATISTICS, NAMES, window=10)
    drifting = [
        monitor.update_values(MEAN, confidences).drifting
        for confidences in [0.9] * 20 + [0.75] * 30 + [0.9] * 40
    ]
    assert not any(drifting[:20])
    start = drifting.index(True)
    # (1 − 0.9ⁿ)·0.15 passes 0.06 at n = 5.
    assert start == 24
    end = start + drifting[start:].index(False)
    assert end > 50 and not any(drifting[end:])
    score = [
        DriftMonitor(STATISTICS, NAMES, window=1).update_values(MEAN, 0.9 - 0.06 * f).score
        for f in (0.79, 0.99)
    ]
    assert score == pytest.approx([0.79, 0.99])
    monitor = DriftMonitor(STATISTICS, NAMES, window=1)
    drifts = [monitor.update_values(MEAN, 0.9 - 0.06 * f) for f in (0.9, 1.1, 0.9, 0.79, 0.9)]
    assert [drift.drifting for drift in drifts] == [False, True, True, False, False]


def test_no_drift_before_half_a_window() -> None:
    monitor = DriftMonitor(STATISTICS, NAMES, window=10)
    drifts = [monitor.update_values(MEAN, 0.5) for _ in range(5)]
    assert [d.drifting for d in drifts] == [False] * 4 + [True]
    assert all(d.score > 1 for d in drifts)


def test_without_confidence_only_the_fractions_count() -> None:
    monitor = DriftMonitor(TargetStatistics(8, tuple(MEAN), tuple(STD)), NAMES, window=1)
    drift = monitor.update_values(np.array([0.2, 0.3, 0.2, 0.3]))
    assert drift.confidence is None and drift.drifting and drift.shifted_classes == ("bus", "road")
    # A confidence is ignored if none is stored, and a stored one if none is passed.
    assert monitor.update_values(MEAN, 0.1).score == 0
    assert DriftMonitor(STATISTICS, NAMES, window=1).update_values(MEAN).confidence is None


def test_updates_from_a_result() -> None:
    space = CITYSCAPES_13
    target_statistics = TargetStatistics(4, (0.25,) * 4 + (0.0,) * 9, (0.1,) * 13, 0.8, 0.1)
    metadata = ModelMetadata(
        space, (8, 8), "logits", align_corners=False, target_statistics=target_statistics
    )
    labels = np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8)
    confidence = np.full((8, 8), 0.7, np.float32)
    result = Result(labels, np.zeros((8, 8, 3), np.uint8), space, 0.0, 0.0, confidence=confidence)
    drift = DriftMonitor.for_model(metadata, window=1).update(result)
    np.testing.assert_allclose(drift.fractions, 0, atol=1e-9)
    assert drift.confidence == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize(
    ("fractions", "confidence"),
    [([0.5, 0.5], None), ([np.nan, 0, 0, 1], None), ([0.25] * 4, np.inf)],
)
def test_values_that_would_spoil_all_scores_are_refused(
    fractions: list[float], confidence: float | None
) -> None:
    monitor = DriftMonitor(STATISTICS, NAMES)
    with pytest.raises(UsageError, match="4 finite numbers"):
        monitor.update_values(np.array(fractions), confidence)
    assert np.isfinite(monitor.update_values(np.full(4, 0.25)).score)


def test_rejects_invalid_arguments() -> None:
    with pytest.raises(UsageError, match="at least 1 frame, got 0"):
        DriftMonitor(STATISTICS, NAMES, window=0)
    with pytest.raises(UsageError, match="expected 4, got 2"):
        DriftMonitor(STATISTICS, NAMES[:2])
    with pytest.raises(ModelError, match="export it again"):
        DriftMonitor.for_model(ModelMetadata(CITYSCAPES_13, (8, 8), "logits", align_corners=False))
