"""Detect when the video no longer looks like the frames that a model was exported for.

An export stores statistics of its target's frames (`TargetStatistics`): the mean and the standard
deviation over frames of each class's fraction of the pixels and of the mean confidence. A
`DriftMonitor` compares them with the exponentially weighted mean of the current frames:

    deviation = (mean of the window − stored mean) / max(stored standard deviation, floor)
    score     = max(|deviation of the confidence| / 3, RMS of the fractions' deviations / 1.5)

A score above 1 is drift. Consecutive frames of a drive are nearly equal, so the standard deviation
is not divided by √n: however strongly n frames of the target depend on one another, their mean
varies at most as much as a single frame. The price is that a change smaller than the usual change
from street to street is not detected. Single frames of the target rarely exceed the limits (three
standard deviations of the confidence, and an RMS of 1.5 over the classes). The method assumes that
the stored frames represent the target: a place that is unlike all of them counts as drift, and a
wrong segmentation that looks like a right one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.metadata import ModelMetadata, TargetStatistics
from fada_deploy.runtime.result import Result

# Smallest standard deviation that is used (1 % of the pixels, or 0.01 of confidence), because a
# class that no stored frame shows has a standard deviation of zero.
STD_FLOOR = 0.01
# Limits in standard deviations: of the confidence, of the RMS over the classes, of a single class.
CONFIDENCE_LIMIT, FRACTIONS_LIMIT, CLASS_LIMIT = 3.0, 1.5, 3.0
# Drift ends below this score and not below 1, so that a warning does not flicker.
END_SCORE = 0.8


@dataclass(frozen=True, eq=False)
class Drift:
    """How far the current window of frames is from the stored statistics.

    Attributes:
        score: Above 1 the deviation exceeds the limits.
        confidence: Deviation of the mean confidence in stored standard deviations; None if the
            confidence is not known.
        fractions: (K,) deviations of the class fractions in stored standard deviations.
        shifted_classes: Names of the classes that deviate by more than 3, largest deviation first.
        frames: Number of frames so far.
        warmed_up: True after half a window; before, `drifting` is always False.
        drifting: True once the score exceeds 1, until it falls below 0.8.
    """

    score: float
    confidence: float | None
    fractions: NDArray[np.float64]
    shifted_classes: tuple[str, ...]
    frames: int
    warmed_up: bool
    drifting: bool


class DriftMonitor:
    """Compare a running window of frames with the statistics stored in a model.

    Pass every frame, or every n-th frame of a fast camera, because neighboring frames add little.

    Args:
        statistics: Statistics of the target's frames, from the metadata of an export.
        names: Names of the classes, in label-space order.
        window: Number of frames of the exponential window; the last `window` frames have 63 % of
            the weight.
    """

    def __init__(
        self, statistics: TargetStatistics, names: Sequence[str], *, window: int = 250
    ) -> None:
        if window < 1:
            raise UsageError(f"window must be at least 1 frame, got {window}")
        if len(names) != len(statistics.fraction_mean):
            raise UsageError(
                f"names must have one entry per class: expected {len(statistics.fraction_mean)}, "
                f"got {len(names)}"
            )
        self._names, self._window = tuple(names), window
        self._fractions = _WindowMean(
            np.array(statistics.fraction_mean), np.array(statistics.fraction_std), window
        )
        self._confidence = None
        if statistics.confidence_mean is not None and statistics.confidence_std is not None:
            mean, std = (
                np.array([statistics.confidence_mean]),
                np.array([statistics.confidence_std]),
            )
            self._confidence = _WindowMean(mean, std, window)
        self._drifting = False

    @classmethod
    def for_model(cls, metadata: ModelMetadata, *, window: int = 250) -> DriftMonitor:
        """Return a monitor for a model; raise `ModelError` if its file holds no statistics."""
        if metadata.target_statistics is None:
            raise ModelError(
                "the model holds no statistics of its target's frames, so drift cannot be "
                "detected; export it again"
            )
        return cls(metadata.target_statistics, metadata.label_space.names, window=window)

    def update(self, result: Result) -> Drift:
        """Add the result of one frame, with its confidence if it was requested."""
        confidence = None if result.confidence is None else float(result.confidence.mean())
        return self.update_values(np.array(list(result.fractions.values())), confidence)

    def update_values(
        self, fractions: NDArray[np.float64], confidence: float | None = None
    ) -> Drift:
        """Add the class fractions (K,) of one frame, 0 to 1, and its mean confidence.

        Raise `UsageError` for another number of classes, and for a value that is not finite, which
        would spoil all later scores.
        """
        values = [*fractions, confidence or 0.0]
        if len(fractions) != len(self._names) or not np.isfinite(values).all():
            raise UsageError(
                f"fractions must be {len(self._names)} finite numbers, and confidence a finite "
                f"number, got {fractions} and {confidence}"
            )
        deviations = self._fractions.update(fractions)
        score = float(np.sqrt((deviations**2).mean())) / FRACTIONS_LIMIT
        confidence_deviation = None
        if self._confidence is not None and confidence is not None:
            confidence_deviation = float(self._confidence.update(np.array([confidence]))[0])
            score = max(score, abs(confidence_deviation) / CONFIDENCE_LIMIT)
        frames = self._fractions.frames
        warmed_up = 2 * frames >= self._window
        self._drifting = warmed_up and score > (END_SCORE if self._drifting else 1.0)
        order = np.argsort(-np.abs(deviations), kind="stable").tolist()
        shifted = tuple(self._names[i] for i in order if abs(deviations[i]) > CLASS_LIMIT)
        return Drift(
            score, confidence_deviation, deviations, shifted, frames, warmed_up, self._drifting
        )


class _WindowMean:
    """Exponentially weighted mean, and its deviation from a stored mean."""

    def __init__(self, mean: NDArray[np.float64], std: NDArray[np.float64], window: int) -> None:
        self._mean, self._std = mean, np.maximum(std, STD_FLOOR)
        self._decay = 1 - 1 / window
        self._sum = np.zeros_like(mean)
        self._weight = 0.0
        self.frames = 0

    def update(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add values; return the mean's deviation in stored standard deviations."""
        self._sum = self._decay * self._sum + values
        # Dividing by the sum of the weights gives a mean from the first frame on.
        self._weight = self._decay * self._weight + 1
        self.frames += 1
        return np.asarray((self._sum / self._weight - self._mean) / self._std)
