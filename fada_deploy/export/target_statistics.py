"""Measure the class fractions and the confidence of an exported file on frames of its target.

The statistics are stored in the file's metadata; `runtime.drift` compares live video with them.
Does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.metadata import TargetStatistics
from fada_deploy.runtime.segmenter import Segmenter

# Enough for a mean and a standard deviation; a network that takes seconds per frame on a CPU is
# still measured within two minutes.
NUM_FRAMES = 32


def measure(model: Path, frames: Sequence[NDArray[np.uint8]], *, backend: str) -> TargetStatistics:
    """Return the statistics of an exported file over `frames`, (H, W, 3) uint8 RGB of any size."""
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
    """Return mean and standard deviation over N frames.

    `fractions` is (N, K), the class fractions of each frame; `confidences` is (N,), its mean
    confidence, or None if the head gives no confidence.
    """
    mean, std = _mean_and_std(fractions)
    if confidences is None:
        return TargetStatistics(len(fractions), tuple(mean.tolist()), tuple(std.tolist()))
    confidence_mean, confidence_std = _mean_and_std(confidences[:, None])
    return TargetStatistics(
        len(fractions),
        tuple(mean.tolist()),
        tuple(std.tolist()),
        float(confidence_mean[0]),
        float(confidence_std[0]),
    )


def _mean_and_std(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and sample standard deviation (K,) of the rows of (N, K), with six decimals.

    The standard deviation of a single row is 0.
    """
    std = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return values.mean(0).round(6), std.round(6)
