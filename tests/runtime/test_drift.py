"""Drift against formulas in NumPy, on made-up frames whose statistics are known."""

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
REFERENCE = TargetStatistics(32, tuple(MEAN), tuple(STD), 0.9, 0.02)


def test_the_score_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    fractions = rng.dirichlet(np.full(4, 3.0), 40)
    sure = rng.uniform(0.5, 1, 40)
    watch = DriftMonitor(REFERENCE, NAMES, window=10)
    for n in range(1, 41):
        drift = watch.add(fractions[n - 1], sure[n - 1])
        weights = 0.9 ** np.arange(n)[::-1]
        mean = (weights[:, None] * fractions[:n]).sum(0) / weights.sum()
        # The bus was in no stored frame; the floor is a hundredth of the picture.
        off = (mean - MEAN) / np.array([0.05, 0.1, 0.04, 0.01])
        certainty = ((weights * sure[:n]).sum() / weights.sum() - 0.9) / 0.02
        assert drift.confidence == pytest.approx(certainty)
        np.testing.assert_allclose(drift.fractions, off)
        assert drift.score == pytest.approx(max(abs(certainty) / 3, np.sqrt((off**2).mean()) / 1.5))
        by_hand = sorted((-abs(d), name) for d, name in zip(off, NAMES, strict=True) if abs(d) > 3)
        assert drift.moved == tuple(name for _, name in by_hand)
        assert drift.frames == n


def test_frames_like_the_stored_ones_are_none_however_they_depend_on_one_another() -> None:
    """A window's mean spreads no more than single frames do: that is what the limits stand on."""
    rng = np.random.default_rng(1)
    for memory in (0.0, 0.9, 0.999):
        scores, confidences = [], []
        for _ in range(200):
            watch = DriftMonitor(REFERENCE, NAMES, window=20)
            state = rng.normal(size=5)
            for _ in range(200):
                # Stationary: as spread at any moment as the stored frames are.
                state = memory * state + np.sqrt(1 - memory**2) * rng.normal(size=5)
                drift = watch.add(MEAN + STD * state[:4], 0.9 + 0.02 * state[4])
            scores.append(drift.score)
            assert drift.confidence is not None
            confidences.append(drift.confidence)
        assert np.std(confidences) < 1.25
        assert np.mean(np.array(scores) > 1) <= 0.05


def test_drift_begins_and_ends_once() -> None:
    watch = DriftMonitor(REFERENCE, NAMES, window=10)
    verdicts = [watch.add(MEAN, sure).drifting for sure in [0.9] * 20 + [0.75] * 30 + [0.9] * 40]
    assert not any(verdicts[:20])
    begins = verdicts.index(True)
    # (1 − 0.9ⁿ)·0.15 passes 0.06 at n = 5.
    assert begins == 24
    ends = begins + verdicts[begins:].index(False)
    assert ends > 50 and not any(verdicts[ends:])
    # It is over below 0.8 of the limit, not below the limit.
    score = [
        DriftMonitor(REFERENCE, NAMES, window=1).add(MEAN, 0.9 - 0.06 * f).score
        for f in (0.79, 0.99)
    ]
    assert score == pytest.approx([0.79, 0.99])
    watch = DriftMonitor(REFERENCE, NAMES, window=1)
    assert [watch.add(MEAN, 0.9 - 0.06 * f).drifting for f in (0.9, 1.1, 0.9, 0.79, 0.9)] == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_there_is_no_verdict_on_few_frames() -> None:
    watch = DriftMonitor(REFERENCE, NAMES, window=10)
    drifts = [watch.add(MEAN, 0.5) for _ in range(5)]
    assert [d.drifting for d in drifts] == [False] * 4 + [True]
    assert all(d.score > 1 for d in drifts)


def test_labels_alone_are_watched_by_their_fractions() -> None:
    watch = DriftMonitor(TargetStatistics(8, tuple(MEAN), tuple(STD)), NAMES, window=1)
    drift = watch.add(np.array([0.2, 0.3, 0.2, 0.3]))
    assert drift.confidence is None and drift.drifting and drift.moved == ("bus", "road")
    # Confidence that is given is nothing to a target_statistics without; and the other way round.
    assert watch.add(MEAN, 0.1).score == 0
    assert DriftMonitor(REFERENCE, NAMES, window=1).add(MEAN).confidence is None


def test_results_are_taken_as_they_are() -> None:
    space = CITYSCAPES_13
    target_statistics = TargetStatistics(4, (0.25,) * 4 + (0.0,) * 9, (0.1,) * 13, 0.8, 0.1)
    metadata = ModelMetadata(
        space, (8, 8), "logits", align_corners=False, target_statistics=target_statistics
    )
    labels = np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8)
    confidence = np.full((8, 8), 0.7, np.float32)
    result = Result(labels, np.zeros((8, 8, 3), np.uint8), space, 0.0, 0.0, confidence=confidence)
    drift = DriftMonitor.of(metadata, window=1).see(result)
    np.testing.assert_allclose(drift.fractions, 0, atol=1e-9)
    assert drift.confidence == pytest.approx(-1, abs=1e-5)


def test_what_cannot_be_watched_is_said() -> None:
    with pytest.raises(UsageError, match="a window of 0 frames is none"):
        DriftMonitor(REFERENCE, NAMES, window=0)
    with pytest.raises(UsageError, match="2 class names for a target_statistics of 4 classes"):
        DriftMonitor(REFERENCE, NAMES[:2])
    with pytest.raises(ModelError, match="export it again"):
        DriftMonitor.of(ModelMetadata(CITYSCAPES_13, (8, 8), "logits", align_corners=False))
