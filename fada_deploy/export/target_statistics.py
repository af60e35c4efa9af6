"""What an exported file says of its target's frames, kept with it to tell later how far a drive is from them.

Imports no torch. The arithmetic that compares is `runtime.drift`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.metadata import TargetStatistics
from fada_deploy.runtime.segmenter import Segmenter

# Enough for means and deviations; a network that takes seconds a frame on a CPU is still done in a minute or two.
FRAMES = 32


def measure(model: Path, frames: Sequence[NDArray[np.uint8]], *, backend: str) -> TargetStatistics:
    """Label frames (H, W, 3) uint8 RGB of any sizes with an exported file, one at a time, and sum up."""
    with Segmenter(model, backend=backend, device="cpu") as segmenter:
        has_confidence = segmenter.metadata.head == "logits"
        fractions, confidences = [], []
        for frame in frames:
            result = segmenter.predict(frame, color="rgb", confidence=has_confidence)
            fractions.append(list(result.fractions.values()))
            if result.confidence is not None:
                confidences.append(float(result.confidence.mean()))
    return summarize(np.array(fractions), np.array(confidences) if has_confidence else None)


def summarize(
    fractions: NDArray[np.float64], confidences: NDArray[np.float64] | None
) -> TargetStatistics:
    """Return the figures of N frames' class fractions (N, K) and mean confidences (N,), if there are any."""
    mean, std = _mean_and_std(fractions)
    if confidences is None:
        return TargetStatistics(len(fractions), tuple(mean.tolist()), tuple(std.tolist()))
    sure, spread = _mean_and_std(confidences[:, None])
    return TargetStatistics(
        len(fractions), tuple(mean.tolist()), tuple(std.tolist()), float(sure[0]), float(spread[0])
    )


def _mean_and_std(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and sample standard deviation (K,) over the rows of (N, K); of a single row that is 0."""
    std = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    # The digits after the sixth are noise, and the document is read by people too.
    return values.mean(0).round(6), std.round(6)
