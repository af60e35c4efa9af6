"""Class Center Distance (CCD): how tightly the features of a class cluster around their center.

CCD(i) = 1/(K−1) Σ_{j≠i} [mean over x∈S_i ‖x − μ_i‖²] / ‖μ_i − μ_j‖²; lower is better (Wang et al.,
ECCV 2020). S_i are the features of class i from source and target together, μ_i is their mean. The
paper squares the distance in the denominator, the authors' slides do not; both are implemented.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.common.progress import progress_bar
from fada_deploy.data.base import FrameDataset, evenly_spaced
from fada_deploy.training.models.segmentation import SegmentationModel


class ClassMoments:
    """Count, sum and squared norm of the features of each class, accumulated in float64.

    CCD can be computed from these three, so no features are stored.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        self.count = torch.zeros(num_classes, dtype=torch.float64)
        self.total = torch.zeros(num_classes, channels, dtype=torch.float64)
        self.squares = torch.zeros(num_classes, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add features (C, h, w) with labels (h, w); pixels without a class are ignored."""
        valid = labels.flatten() < len(self.count)
        classes = labels.flatten()[valid].cpu().long()
        x = features.flatten(1)[:, valid].T.double().cpu()
        self.count += torch.bincount(classes, minlength=len(self.count))
        self.total.index_add_(0, classes, x)
        self.squares.index_add_(0, classes, x.square().sum(1))

    @property
    def present(self) -> NDArray[np.bool_]:
        """Classes with at least two features, the minimum for a spread, (K,) bool."""
        return np.asarray((self.count > 1).numpy())

    def distances(
        self, *, among: NDArray[np.bool_] | None = None, squared: bool = True
    ) -> NDArray[np.float64]:
        """Return the CCD of each class, (K,), NaN for classes that are not compared.

        `among` (K,) bool selects the classes to compare [all that are present]. Distances of two
        networks are comparable only among the same classes. With `squared` the distance in the
        denominator is squared as in the paper, otherwise it is not.
        """
        selected = torch.from_numpy(self.present if among is None else self.present & among)
        count = self.count[selected]
        centers = self.total[selected] / count[:, None]
        spread = self.squares[selected] / count - centers.square().sum(1)
        gaps = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
        ratios = spread[:, None] / (gaps.square() if squared else gaps)
        ratios.fill_diagonal_(0)
        result = np.full(len(self.count), np.nan)
        result[selected.numpy()] = (ratios.sum(1) / (len(count) - 1)).numpy()
        return result


def collect_moments(
    model: SegmentationModel,
    datasets: Sequence[FrameDataset],
    *,
    frames: int,
    device: torch.device,
) -> tuple[ClassMoments, tuple[str, ...]]:
    """Return the class moments of a network's features, and an error line per unreadable frame.

    Uses `frames` evenly spaced frames of each labeled data set, or all of them if `frames` is 0.
    Frames are resized to the input of the network, labels to the size of the features (nearest
    neighbor). Raise `DataError` if fewer than two classes are present.
    """
    moments = ClassMoments(model.spec.space.num_classes, model.channels)
    failed: list[str] = []
    selection = [(dataset, i) for dataset in datasets for i in evenly_spaced(len(dataset), frames)]
    with progress_bar(len(selection), "class centers", unit="frame") as bar:
        for dataset, i in selection:
            try:
                frame, labels = dataset.pair(i)
            except DataError as error:
                failed.append(str(error))
                continue
            finally:
                bar.update()
            resized = torch.from_numpy(resize_frame(frame, model.spec.size_hw))
            with torch.inference_mode():
                features = model.features(resized[None].to(device))[0]
            small_labels = resize_labels(labels, (features.shape[1], features.shape[2]))
            moments.add(features, torch.from_numpy(small_labels).to(device))
    if moments.present.sum() < 2:
        raise DataError(
            f"class centers need at least 2 classes, but the frames show {moments.present.sum()}"
        )
    return moments, tuple(failed)
