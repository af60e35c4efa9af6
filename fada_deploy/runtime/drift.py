"""Is what the camera sees now still what the model was exported for? A running window against stored figures.

An export keeps what it said of its target's frames (`TargetStatistics`): each class's share of the picture and the mean
confidence, with their standard deviations from frame to frame. Here the exponentially weighted mean of the frames
of now is held against them:

    deviation = (mean of the window − stored mean) / max(stored deviation, a floor)
    score     = max(|deviation of the confidence| / 3, root mean square of the fractions' deviations / 1.5)

A score above 1 is drift. Successive frames of a drive are nearly the same frame, so σ is not divided by √n: the
mean of n frames of the target, however they depend on one another, spreads at most as a single frame does. The
price: a change smaller than the usual one from street to street is not seen. The limits, three deviations of the
confidence, and 1.5 of the fractions in the root mean square over the classes, are seldom passed by single frames of
the target. It assumes that the stored frames show what the target usually shows; a place unlike all of them counts
as drift, and a wrong answer that looks like a right one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.metadata import ModelMetadata, TargetStatistics
from fada_deploy.runtime.result import Result

# A hundredth of the picture, and of certainty, is the least that counts as a deviation: a class that no stored
# frame showed has none of its own.
FLOOR = 0.01
CONFIDENCE_LIMIT, SHARES_LIMIT, CLASS_LIMIT = 3.0, 1.5, 3.0
# What has begun to drift ends below this score, so that a warning does not flutter.
_CALM = 0.8


@dataclass(frozen=True)
class Drift:
    """How far a window of frames is from the stored ones; a `score` above 1 is beyond what is usual.

    `confidence` and `fractions` (K,) are deviations in stored standard deviations; without confidence that is None.
    `moved`: the classes that moved by more than 3, the furthest first. `frames`: how many were seen. `settled`:
    half a window was seen, before which there is no verdict. `drifting`: the verdict, true until the score is
    below 0.8 again.
    """

    score: float
    confidence: float | None
    fractions: NDArray[np.float64]
    moved: tuple[str, ...]
    frames: int
    settled: bool
    drifting: bool


class DriftMonitor:
    """Holds a running window of frames against a model's target_statistics; the last `window` frames weigh 63 % of it.

    Give it every frame, or every n-th of a fast camera: neighbors say little new.
    """

    def __init__(
        self, target_statistics: TargetStatistics, names: Sequence[str], *, window: int = 250
    ) -> None:
        if window < 1:
            raise UsageError(f"a window of {window} frames is none; it is at least 1")
        if len(names) != len(target_statistics.fraction_mean):
            raise UsageError(
                f"{len(names)} class names for a target_statistics of {len(target_statistics.fraction_mean)} classes"
            )
        self._names, self._window = tuple(names), window
        self._fractions = _Mean(
            np.array(target_statistics.fraction_mean),
            np.array(target_statistics.fraction_std),
            window,
        )
        self._confidence = None
        if (
            target_statistics.confidence_mean is not None
            and target_statistics.confidence_std is not None
        ):
            sure, spread = (
                np.array([target_statistics.confidence_mean]),
                np.array([target_statistics.confidence_std]),
            )
            self._confidence = _Mean(sure, spread, window)
        self._drifting = False

    @classmethod
    def of(cls, metadata: ModelMetadata, *, window: int = 250) -> DriftMonitor:
        """Return a watch for a model; raise `ModelError` when its file has no target_statistics."""
        if metadata.target_statistics is None:
            raise ModelError(
                "the model's file says nothing of its target's frames; export it again to watch drift"
            )
        return cls(metadata.target_statistics, metadata.label_space.names, window=window)

    def see(self, result: Result) -> Drift:
        """Take a frame's result into the window; its confidence where it was asked for."""
        sure = None if result.confidence is None else float(result.confidence.mean())
        return self.add(result.fractions, sure)

    def add(self, fractions: NDArray[np.float64], confidence: float | None = None) -> Drift:
        """Take a frame's class fractions (K,) in 0 … 1, and its mean confidence, into the window."""
        off = self._fractions.add(fractions)
        score = float(np.sqrt((off**2).mean())) / SHARES_LIMIT
        sure = None
        if self._confidence is not None and confidence is not None:
            sure = float(self._confidence.add(np.array([confidence]))[0])
            score = max(score, abs(sure) / CONFIDENCE_LIMIT)
        frames = self._fractions.frames
        settled = 2 * frames >= self._window
        self._drifting = settled and score > (_CALM if self._drifting else 1.0)
        order = np.argsort(-np.abs(off), kind="stable")
        moved = tuple(self._names[i] for i in order.tolist() if abs(off[i]) > CLASS_LIMIT)
        return Drift(score, sure, off, moved, frames, settled, self._drifting)


class _Mean:
    """An exponentially weighted mean and how far it is from a stored one, in stored deviations."""

    def __init__(self, mean: NDArray[np.float64], std: NDArray[np.float64], window: int) -> None:
        self._mean, self._std = mean, np.maximum(std, FLOOR)
        self._keep = 1 - 1 / window
        self._sum = np.zeros_like(mean)
        self._weight = 0.0
        self.frames = 0

    def add(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        # The sum of the weights makes it a mean from the first frame on.
        self._sum = self._keep * self._sum + values
        self._weight = self._keep * self._weight + 1
        self.frames += 1
        return np.asarray((self._sum / self._weight - self._mean) / self._std)
