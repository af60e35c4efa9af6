"""Class Center Distance: how tightly a network's features gather around their class's center.

CCD(i) = 1/(K−1) Σ_{j≠i} [mean over x∈S_i ‖x − μ_i‖²] / ‖μ_i − μ_j‖²; lower is better (Wang et al.,
ECCV 2020). S_i and μ_i are of source and target together. The paper squares the denominator, its
slides do not; both are here. `fada ccd RUN…`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import resize_frame, resize_labels
from fada_deploy.data.base import FrameDataset
from fada_deploy.training.models.segmentation import SegmentationModel


class ClassMoments:
    """Count, sum and squared norm of each class's features, streamed in float64.

    All that CCD needs is linear in these, so no feature is kept.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        self.count = torch.zeros(num_classes, dtype=torch.float64)
        self.total = torch.zeros(num_classes, channels, dtype=torch.float64)
        self.squares = torch.zeros(num_classes, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take in features (C, h, w) with labels (h, w); labels of no class are left out."""
        kept = labels.flatten() < len(self.count)
        classes = labels.flatten()[kept].cpu().long()
        x = features.flatten(1)[:, kept].T.double().cpu()
        self.count += torch.bincount(classes, minlength=len(self.count))
        self.total.index_add_(0, classes, x)
        self.squares.index_add_(0, classes, x.square().sum(1))

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which classes have features enough to have a spread: two."""
        return np.asarray((self.count > 1).numpy())

    def distances(
        self, *, among: NDArray[np.bool_] | None = None, squared: bool = True
    ) -> NDArray[np.float64]:
        """Return CCD by class, (K,), over the centers of the classes `among` (default: those seen).

        NaN for the others. ModelSetup compare where both are taken among the same classes.
        """
        chosen = torch.from_numpy(self.seen if among is None else self.seen & among)
        count = self.count[chosen]
        centers = self.total[chosen] / count[:, None]
        spread = self.squares[chosen] / count - centers.square().sum(1)
        apart = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
        ratios = spread[:, None] / (apart.square() if squared else apart)
        ratios.fill_diagonal_(0)
        result = np.full(len(self.count), np.nan)
        result[chosen.numpy()] = (ratios.sum(1) / (len(count) - 1)).numpy()
        return result


def measure(
    model: SegmentationModel,
    datasets: Sequence[FrameDataset],
    *,
    frames: int,
    device: torch.device,
    progress: Callable[[int], None] = lambda n: None,
    left_out: Callable[[DataError], None] = lambda error: None,
) -> ClassMoments:
    """Return the moments over `frames` frames of each labeled data set, evenly spaced (0: all of them).

    Frames are resized to the network's input, labels to its features' size by nearest neighbor.
    """
    moments = ClassMoments(model.spec.space.num_classes, model.channels)
    for dataset in datasets:
        for i in evenly_spaced(len(dataset), frames):
            try:
                frame, labels = dataset.pair(i)
            except DataError as error:
                left_out(error)
                continue
            finally:
                progress(1)
            resized = torch.from_numpy(resize_frame(frame, model.spec.size_hw))
            with torch.inference_mode():
                features = model.features(resized[None].to(device))[0]
            at_features = resize_labels(labels, (features.shape[1], features.shape[2]))
            moments.add(features, torch.from_numpy(at_features).to(device))
    if moments.seen.sum() < 2:
        raise DataError("fewer than two classes were seen, so there are no centers to compare")
    return moments


def evenly_spaced(length: int, frames: int) -> list[int]:
    """Return `frames` indices spread evenly over `length`, or all of them for 0."""
    number = min(frames or length, length)
    chosen: list[int] = np.linspace(0, length - 1, number).round().astype(int).tolist()
    return chosen
