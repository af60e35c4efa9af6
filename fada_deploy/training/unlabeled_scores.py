"""Score networks on unlabeled frames: how good their predictions look without any label.

The criteria compare candidates on the same frames, for example the stages of a run. None of them
reads a label. `score_candidates` computes all of them in one pass per candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import resize_frame
from fada_deploy.data.base import FrameDataset, evenly_spaced
from fada_deploy.training.data.augmentation import augment_photometry, get_augmentation
from fada_deploy.training.interpolation import SizeHW, full_precision, upsample
from fada_deploy.training.models.segmentation import SegmentationModel, find_backbone
from fada_deploy.training.predict import scaled_size

Frame = NDArray[np.uint8]

# Changes of a frame that should not change its labels.
CHANGES = ("mirrored", "smaller", "larger", "recolored")
_SCALES = {"smaller": 0.75, "larger": 1.5}
# Pixels per frame and temperature of the soft neighborhood density, as published.
_DENSITY_PIXELS = 100
_DENSITY_TEMPERATURE = 0.05


@dataclass(frozen=True, eq=False)
class UnlabeledScores:
    """The criteria of one candidate, and the classes that it predicts.

    Attributes:
        consistency: For each of `CHANGES`, the mean IoU of the labels of the frames with those of
            the changed frames; higher is better.
        expected_iou: Mean IoU that the probabilities predict for their labels; higher is better.
        ensemble_agreement: Fraction of pixels with the label of the averaged candidates (Hu et al.,
            2023, EnsV); higher is better.
        neighborhood_density: Soft neighborhood density, in nats; higher is better.
        mirror_agreement: Fraction of pixels whose label does not change if the frame is mirrored;
            higher is better.
        entropy: Mean entropy of the class probabilities, in nats; lower is better.
        class_fractions: Fraction of the pixels that have each class, (K,).
        frame_fractions: Fraction of the frames that contain each class, (K,).
    """

    consistency: dict[str, float]
    expected_iou: float
    ensemble_agreement: float
    neighborhood_density: float
    mirror_agreement: float
    entropy: float
    class_fractions: NDArray[np.float64]
    frame_fractions: NDArray[np.float64]

    @property
    def mean_consistency(self) -> float:
        """The mean consistency over all changes."""
        return float(np.mean(list(self.consistency.values())))

    @property
    def score(self) -> float:
        """The criterion that decides: (mean consistency² · expected IoU)^(1/3).

        A network that has become too sure of wrong labels has a high expected IoU but is less
        consistent, and one that was trained with more augmentation is more consistent but not more
        sure. The consistency has twice the weight because it was the better of the two on real
        frames (docs/results).
        """
        return float(np.cbrt(self.mean_consistency**2 * self.expected_iou))


def neighborhood_density(probabilities: Tensor) -> Tensor:
    """Return the soft neighborhood density of n pixels with probabilities (n, K): a scalar, nats.

    The mean entropy of each pixel's similarities to all others, which is high if the pixels form
    dense clusters (Saito et al., ICCV 2021, equations 1 to 3).
    """
    vectors = F.normalize(probabilities, dim=1)
    similarities = vectors @ vectors.T / _DENSITY_TEMPERATURE
    others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    rows = similarities[others].view(len(vectors), len(vectors) - 1)
    return entropy(rows.softmax(1), dim=1).mean()


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Return the entropy, in nats, of probabilities along a dimension."""
    return -torch.xlogy(probabilities, probabilities).sum(dim)


def overlap(labels: Tensor, other: Tensor, num_classes: int) -> Tensor:
    """Return the intersection and union of each class in two label maps, (2, K) int64 pixels."""
    areas = [x.long().bincount(minlength=num_classes) for x in (labels, other)]
    common = labels[labels == other].long().bincount(minlength=num_classes)
    return torch.stack([common, areas[0] + areas[1] - common])


def mean_iou(overlaps: Tensor, classes: NDArray[np.bool_]) -> float:
    """Return the mean IoU over `classes` (K,) from intersections and unions (2, K) in pixels.

    A class that neither label map contains counts as 0, so a network loses by not predicting it.
    """
    common, union = overlaps.double().numpy()[:, classes]
    return float(np.divide(common, union, out=np.zeros_like(common), where=union > 0).mean())


def expected_overlap(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the expected intersection and union of labels (n,) with the truth, (2, K) float64.

    The truth of a pixel is assumed to be class k with its probability in `probabilities` (n, K).
    """
    p = probabilities.double()
    is_label = F.one_hot(labels.long(), p.shape[1]).double()
    common = (p * is_label).sum(0)
    return torch.stack([common, p.sum(0) + is_label.sum(0) - common])


def missing_classes(
    source_fractions: NDArray[np.float64], target_fractions: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which classes (K,) the source shows and the predictions on the target lack.

    Both arguments are fractions of the frames that contain each class. A class is missing if at
    least 1 % of the source frames show it, and at most a twentieth of that fraction of the target
    frames.
    """
    return np.asarray((source_fractions >= 0.01) & (target_fractions <= source_fractions / 20))


class TargetFrames:
    """Up to `count` evenly spaced frames of a data set, whose labels are never read.

    Unreadable frames are left out. Raise `DataError` if no frame can be read.
    """

    def __init__(self, dataset: FrameDataset, count: int) -> None:
        self._dataset, self._size_hw = dataset, (0, 0)
        self._indices = evenly_spaced(len(dataset), count)
        self._frames: list[Frame] = []

    def __len__(self) -> int:
        """Return the number of frames; unreadable ones count until they were tried."""
        return len(self._indices)

    def at(self, size_hw: SizeHW) -> list[Frame]:
        """Return the frames, (H, W, 3) uint8 RGB each, resized; those of one size are kept."""
        if size_hw == self._size_hw:
            return self._frames
        frames = {}
        for i in self._indices:
            try:
                frames[i] = resize_frame(self._dataset.image(i), size_hw)
            except DataError:
                continue
        if not frames:
            raise DataError(f"none of {len(self._indices)} target frames can be read")
        self._indices, self._frames, self._size_hw = list(frames), list(frames.values()), size_hw
        return self._frames

    def valid(self, size_hw: SizeHW) -> Tensor:
        """Return the pixels (H, W) bool that do not show the car itself, at a size."""
        return torch.from_numpy(~self._dataset.ego_mask_at(size_hw))


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one candidate predicts on N frames with K classes, at h × w pixels per frame.

    Attributes:
        labels: Labels of the V valid pixels of each frame, (N, V) uint8; pixels that show the car
            itself are not valid.
        overlaps: For each of `CHANGES`, intersection and union of each class, (2, K) pixels.
        expected: Expected intersection and union of each class, (2, K) pixels.
        densities: Soft neighborhood density of each frame.
        entropies: Mean entropy of each frame, in nats.
        num_classes: K.
    """

    labels: Tensor
    overlaps: dict[str, Tensor]
    expected: Tensor
    densities: list[float]
    entropies: list[float]
    num_classes: int

    def scores(self, consensus: Tensor, classes: NDArray[np.bool_]) -> UnlabeledScores:
        """Return the criteria, with the mean IoUs over `classes` (K,).

        `consensus` (N, V) are the labels of the averaged candidates.
        """
        counts = torch.stack(
            [frame.long().bincount(minlength=self.num_classes) for frame in self.labels]
        ).double()
        return UnlabeledScores(
            consistency={name: mean_iou(o, classes) for name, o in self.overlaps.items()},
            expected_iou=mean_iou(self.expected, classes),
            ensemble_agreement=float((self.labels == consensus).double().mean()),
            neighborhood_density=float(np.mean(self.densities)),
            mirror_agreement=float(self.overlaps["mirrored"][0].sum() / self.labels.numel()),
            entropy=float(np.mean(self.entropies)),
            class_fractions=(counts.sum(0) / counts.sum()).numpy(),
            frame_fractions=(counts > 0).double().mean(0).numpy(),
        )


def score_candidates(
    load: Sequence[Callable[[], SegmentationModel]],
    frames: TargetFrames,
    *,
    classes: NDArray[np.bool_],
    seed: int,
    on_frame: Callable[[], object] = lambda: None,
) -> list[UnlabeledScores]:
    """Score candidates on the same frames, at the resolution of the first candidate's logits.

    One network is loaded at a time; the probabilities of one candidate and their sum over the
    candidates are in memory. The mean IoUs are over `classes` (K,). `seed` selects pixels
    and colors. `on_frame` is called after each frame of each candidate.
    """
    predictions, total = [], torch.empty(0)
    for number, load_one in enumerate(load):
        grid = (int(total.shape[2]), int(total.shape[3])) if number else None
        prediction, probabilities = predict(
            load_one(), frames, grid=grid, seed=seed, on_frame=on_frame
        )
        predictions.append(prediction)
        total = total.add_(probabilities) if number else probabilities
    consensus = consensus_labels(total, frames)
    return [each.scores(consensus, classes) for each in predictions]


def consensus_labels(probabilities: Tensor, frames: TargetFrames) -> Tensor:
    """Return the labels (N, V) of the valid pixels for summed probabilities (N, K, h, w)."""
    valid = frames.valid((int(probabilities.shape[2]), int(probabilities.shape[3])))
    return probabilities.argmax(1).to(torch.uint8)[:, valid]


@torch.no_grad()
def predict(
    model: SegmentationModel,
    frames: TargetFrames,
    *,
    grid: SizeHW | None,
    seed: int,
    on_frame: Callable[[], object] = lambda: None,
) -> tuple[Predictions, Tensor]:
    """Return the predictions of one candidate and its probabilities (N, K, h, w), on the CPU.

    h × w is `grid`, by default the resolution of the network's logits.
    """
    num_classes = model.spec.space.num_classes
    overlaps = {name: torch.zeros(2, num_classes, dtype=torch.int64) for name in CHANGES}
    expected = torch.zeros(2, num_classes, dtype=torch.float64)
    kept, labels, densities, entropies = [], [], [], []
    for number, frame in enumerate(frames.at(model.spec.size_hw)):
        rng = np.random.default_rng([seed, number])
        views = _probabilities(model, frame, rng, grid)
        height, width = views["original"].shape[1:]
        valid = frames.valid((height, width))
        pixels = views["original"][:, valid].T
        chosen = torch.from_numpy(rng.permutation(len(pixels))[:_DENSITY_PIXELS])
        densities.append(float(neighborhood_density(pixels[chosen])))
        entropies.append(float(entropy(pixels, 1).mean()))
        labels.append(pixels.argmax(1).to(torch.uint8))
        expected += expected_overlap(pixels, labels[-1])
        for name in CHANGES:
            changed = views[name].argmax(0)[valid].to(torch.uint8)
            overlaps[name] += overlap(labels[-1], changed, num_classes)
        kept.append(views["original"])
        on_frame()
    predictions = Predictions(
        torch.stack(labels), overlaps, expected, densities, entropies, num_classes
    )
    return predictions, torch.stack(kept)


def _probabilities(
    model: SegmentationModel, frame: Frame, rng: np.random.Generator, grid: SizeHW | None
) -> dict[str, Tensor]:
    """Return the probabilities (K, h, w) of a frame and of each change, in place of the frame."""
    device, size_hw = next(model.parameters()).device, model.spec.size_hw
    recolored = augment_photometry(frame, get_augmentation("strong"), rng)

    def forward(*images: Frame) -> Tensor:
        batch = torch.from_numpy(np.stack(images)).to(device)
        return full_precision(model(batch)).softmax(1).cpu()

    original, mirrored, recolored_view = forward(frame, frame[:, ::-1], recolored)
    views = {"original": original, "mirrored": mirrored.flip(-1), "recolored": recolored_view}
    multiple = find_backbone(model.spec.backbone).multiple
    for name, scale in _SCALES.items():
        views[name] = forward(resize_frame(frame, scaled_size(size_hw, scale, multiple)))[0]
    grid = grid or (int(original.shape[1]), int(original.shape[2]))
    return {
        name: view if view.shape[1:] == grid else upsample(view[None], grid)[0]
        for name, view in views.items()
    }
