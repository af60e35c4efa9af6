"""Confusion matrix and intersection over union (IoU), counted in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.label_space import LABEL_SPACES, LabelSpace


def confusion_matrix(
    truth: NDArray[np.uint8], predicted: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Return pixel counts by true class (rows) and predicted class (columns), (K, K) int64.

    `truth` and `predicted` are label maps of the same shape. Pixels whose true label is K or more
    (ignore) are not counted. Raise `ValueError` for a predicted class of K or more.
    """
    valid = truth < num_classes
    classes = predicted[valid]
    if classes.size and classes.max() >= num_classes:
        raise ValueError(f"predicted class {classes.max()}, there are {num_classes} classes")
    pairs = truth[valid].astype(np.intp) * num_classes + classes
    return (
        np.bincount(pairs, minlength=num_classes**2)
        .reshape(num_classes, num_classes)
        .astype(np.int64)
    )


@dataclass(frozen=True, eq=False)
class Scores:
    """Segmentation scores of one model on one data set, as fractions in 0…1.

    `matrix` is the confusion matrix, (K, K) int64, with the true classes as rows. A class without a
    labeled pixel has no IoU (NaN), is not part of a mean, and is listed in `absent`.
    """

    space: LabelSpace
    matrix: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        """IoU of each class, (K,); NaN for a class without labeled pixels."""
        hit = np.diag(self.matrix).astype(np.float64)
        truth, predicted = self.matrix.sum(1), self.matrix.sum(0)
        union = truth + predicted - hit
        return np.where(truth > 0, hit / np.maximum(union, 1), np.nan)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether each class has labeled pixels, (K,) bool."""
        return np.asarray(self.matrix.sum(1) > 0)

    @property
    def present_names(self) -> tuple[str, ...]:
        """Names of the classes with labeled pixels."""
        return tuple(n for n, p in zip(self.space.names, self.present, strict=True) if p)

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without labeled pixels."""
        return tuple(n for n, p in zip(self.space.names, self.present, strict=True) if not p)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes with labeled pixels; NaN if there are none."""
        return float(self.iou[self.present].mean()) if self.present.any() else float("nan")

    def mean_over(self, space: LabelSpace) -> float | None:
        """Return the mean IoU over the classes of a smaller label space.

        This is how the 13-class mIoU of a network with 16 classes is reported. Return None if the
        classes are not a proper subset of this space, NaN if none of them has labeled pixels.
        """
        if not set(space.names) < set(self.space.names):
            return None
        selected = np.isin(self.space.names, space.names) & self.present
        return float(self.iou[selected].mean()) if selected.any() else float("nan")

    @property
    def subset_means(self) -> dict[str, float]:
        """Mean IoU over each built-in label space that is a subset of this one, by name.

        A label space that merges classes is not a subset, although all of its names are known.
        """
        means = {}
        for name, space in LABEL_SPACES.items():
            if any(c.includes for c in space.classes):
                continue
            mean = self.mean_over(space)
            # If all present classes are in the subset, its mean equals the mIoU.
            if mean is not None and not set(self.present_names) <= set(space.names):
                means[name] = mean
        return means

    @property
    def pixel_accuracy(self) -> float:
        """Fraction of labeled pixels that are predicted correctly; NaN if there are none."""
        total = int(self.matrix.sum())
        return float(np.trace(self.matrix) / total) if total else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable summary, with null for the IoU of absent classes."""
        return {
            "miou": None if np.isnan(self.miou) else self.miou,
            "means": {n: None if np.isnan(v) else v for n, v in self.subset_means.items()},
            "pixel_accuracy": None if np.isnan(self.pixel_accuracy) else self.pixel_accuracy,
            "iou": {
                n: None if np.isnan(v) else float(v)
                for n, v in zip(self.space.names, self.iou, strict=True)
            },
            "absent": list(self.absent),
        }


def is_scores(document: object) -> bool:
    """Return whether a parsed `scores.json` of a stage has the parts that commands read."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("iou"), dict)
        and {"miou", "frames", "input"} <= document.keys()
    )
