"""Confusion matrix and intersection over union, in exact integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import LABEL_SPACES, LabelSpace


def confusion_matrix(
    truth: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Count pixels by (true class, predicted class): (K, K) int64; truth ≥ K (ignore) is left out."""
    valid = truth < num_classes
    pairs = truth[valid].astype(np.intp) * num_classes + predicted[valid]
    return (
        np.bincount(pairs, minlength=num_classes**2)
        .reshape(num_classes, num_classes)
        .astype(np.int64)
    )


@dataclass(frozen=True)
class Scores:
    """Segmentation scores of one model on one data set.

    `matrix` is (K, K) int64, rows the truth. IoU is a fraction; a class that the data set's labels
    never show has no IoU (NaN), is left out of the mean, and is named in `absent`.
    """

    space: LabelSpace
    matrix: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        """Per-class intersection over union, (K,), NaN where the class is absent from the truth."""
        hit = np.diag(self.matrix).astype(np.float64)
        truth, predicted = self.matrix.sum(1), self.matrix.sum(0)
        union = truth + predicted - hit
        return np.where(truth > 0, hit / np.maximum(union, 1), np.nan)

    @property
    def present(self) -> NDArray[np.bool_]:
        return np.asarray(self.matrix.sum(1) > 0)

    @property
    def present_names(self) -> tuple[str, ...]:
        return tuple(n for n, there in zip(self.space.names, self.present, strict=True) if there)

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(
            n for n, there in zip(self.space.names, self.present, strict=True) if not there
        )

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present in the truth; NaN when there is none."""
        return float(self.iou[self.present].mean()) if self.present.any() else float("nan")

    def mean_over(self, space: LabelSpace) -> float | None:
        """Return the mean IoU over the classes that `space` names, as smaller sets are reported.

        The 13-class mean of a 16-class network is taken so, without training again. None when this
        space lacks one of the classes or they are all of it; NaN when none is present.
        """
        if not set(space.names) < set(self.space.names):
            return None
        chosen = np.isin(self.space.names, space.names) & self.present
        return float(self.iou[chosen].mean()) if chosen.any() else float("nan")

    @property
    def smaller_means(self) -> dict[str, float]:
        """The means over the field's smaller sets that this space holds, by label-space name."""
        means = {}
        for name, space in LABEL_SPACES.items():
            mean = self.mean_over(space)
            # Where all that is present lies within the smaller set, its mean is the mean.
            if mean is not None and not set(self.present_names) <= set(space.names):
                means[name] = mean
        return means

    @property
    def pixel_accuracy(self) -> float:
        total = int(self.matrix.sum())
        return float(np.trace(self.matrix) / total) if total else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary; absent classes are null."""
        return {
            "miou": None if np.isnan(self.miou) else self.miou,
            "means": self.smaller_means,
            "pixel_accuracy": None if np.isnan(self.pixel_accuracy) else self.pixel_accuracy,
            "iou": {
                n: None if np.isnan(v) else float(v)
                for n, v in zip(self.space.names, self.iou, strict=True)
            },
            "absent": list(self.absent),
        }
