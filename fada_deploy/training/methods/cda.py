"""CDA: a curriculum from easy to hard properties of the target (Zhang et al., ICCV 2017).

How much of a frame each class covers, and what the clearest superpixels show, is easier to predict
than every pixel. The network has to agree with both predictions (eq. 1-3):

- The class fractions p_t of a target frame are predicted by a multinomial logistic regression on
  frame features, trained on the first 16 batches of the source. The loss is the cross entropy of
  p_t and p̂, the normalized mean over the pixels of (p / max p)^5, a smooth form of counting labels.
- The most confident superpixels of a target frame get the class that a classifier of the source
  predicts there, as labels of a cross entropy in which all superpixels count equally.

The authors use features of other networks, and support vector machines for superpixels. Our reading
takes both predictions from the network that the stage starts from: the mean of its features, and
its mean probabilities in a superpixel. Superpixels are those of SLIC (Achanta et al., 2012), at the
resolution of the logits. The fraction of confident superpixels is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.distributed import all_gather
from fada_deploy.training.interpolation import full_precision
from fada_deploy.training.methods.base import Losses, MethodContext, Step
from fada_deploy.training.models.segmentation import SegmentationModel

# Published settings: the weight of the loss on class fractions, the exponent, and superpixels of a
# frame.
FRACTION_WEIGHT, EXPONENT, SUPERPIXELS = 0.1, 5, 100
# The most confident part of the superpixels of a frame that get labels.
CONFIDENT = 0.6
# A superpixel has at least this many pixels of the logits.
MIN_AREA = 16
# SLIC: weight of positions against colors, and iterations.
COMPACTNESS, ITERATIONS = 10.0, 5
# Ridge penalty of the logistic regression on normalized features.
RIDGE = 1e-3


def cda(context: MethodContext) -> Curriculum:
    """Return CDA; its regression is fitted to the first source batches of all processes."""
    initial = deepcopy(context.model).eval().requires_grad_(False)
    properties = TargetProperties(context.num_classes, context.model.channels)
    part = source_fractions(initial, context.source_batches(), context.num_classes)
    pooled, fractions = (torch.cat(parts) for parts in zip(*all_gather(part), strict=True))
    properties.fit(pooled, fractions)
    return Curriculum(initial, properties)


class TargetProperties(nn.Module):
    """A regression from the mean features of a frame to its class fractions.

    `weight` (K, C) and `bias` (K,) are those of the regression, `mean` and `scale` (C,) normalize
    its features.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        shapes = {
            "weight": (num_classes, channels), "bias": (num_classes,), "mean": (channels,),
            "scale": (channels,),
        }  # fmt: skip
        self.weight: Tensor
        self.bias: Tensor
        self.mean: Tensor
        self.scale: Tensor
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def fit(self, pooled: Tensor, fractions: Tensor) -> None:
        """Fit the regression to mean features (N, C) and class fractions (N, K) of frames."""
        self.mean, self.scale = pooled.mean(0), 1 / pooled.std(0, correction=0).clamp(min=1e-6)
        x = (pooled - self.mean) * self.scale
        weight = x.new_zeros(self.weight.shape, requires_grad=True)
        bias = x.new_zeros(self.bias.shape, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=200,
            tolerance_grad=1e-9,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(F.linear(x, weight, bias), fractions)
            value = value + RIDGE * weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        self.weight, self.bias = weight.detach(), bias.detach()

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the class fractions (N, K) for mean features (N, C)."""
        normalized = (pooled - self.mean) * self.scale
        return F.linear(normalized, self.weight, self.bias).softmax(1)


@dataclass(frozen=True, eq=False)
class Curriculum:
    """Training on the source, and on predicted properties of the target."""

    initial: SegmentationModel
    heads: TargetProperties
    discriminator: nn.Module = field(default_factory=nn.Module)

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F and G."""
        seg_loss = step.segmentation_loss(step.forward(step.src).logits)
        seg_loss.backward()

        expected, labels, areas = self._predict(step)
        logits = full_precision(step.forward(step.tgt).logits)
        ignored = step.tgt.ignore_mask((logits.shape[-2], logits.shape[-1]))
        fraction_loss = class_fraction_loss(logits, expected, ignored) / step.num_parts
        superpixel_loss = superpixel_cross_entropy(logits, labels, areas) / step.num_parts
        (FRACTION_WEIGHT * fraction_loss + superpixel_loss).backward()
        return {
            "segmentation": seg_loss.detach(),
            "class_fractions": fraction_loss.detach(),
            "superpixels": superpixel_loss.detach(),
        }

    @torch.no_grad()
    def _predict(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Return the class fractions of the target frames, (B, K), and `superpixel_labels`."""
        tgt = step.tgt
        with step.autocast():
            features = self.initial.features(tgt.frames_bhwc)
            logits = self.initial.classifier(features)
        probabilities = F.softmax(full_precision(logits), dim=1)
        ignored = tgt.ignore_mask((logits.shape[-2], logits.shape[-1]))
        fractions = self.heads(pooled_features(full_precision(features), ignored))
        return fractions, *superpixel_labels(tgt.frames_bhwc, probabilities, ignored)


def pooled_features(features: Tensor, ignored: Tensor | None) -> Tensor:
    """Return the mean of features (B, C, h, w) over the pixels of each frame, (B, C).

    Pixels where `ignored` (B, h, w) bool is true do not count.
    """
    if ignored is None:
        return features.mean((2, 3))
    counted = ~ignored[:, None]
    return (features * counted).sum((2, 3)) / counted.sum((2, 3)).clamp(min=1)


@torch.no_grad()
def source_fractions(
    model: SegmentationModel, batches: Iterable[Batch], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Return the mean features (N, C) and the class fractions (N, K) of labeled source frames."""
    pooled, fractions = [], []
    for batch in batches:
        counts = torch.stack([(batch.labels == k).sum((1, 2)) for k in range(num_classes)], 1)
        labeled = counts.sum(1) > 0
        features = full_precision(model.features(batch.frames_bhwc))
        pooled.append(pooled_features(features, None)[labeled])
        counts = counts[labeled].to(features.dtype)
        fractions.append(counts / counts.sum(1, keepdim=True))
    # On the CPU, from where every process can read them.
    return torch.cat(pooled).cpu(), torch.cat(fractions).cpu()


def class_fraction_loss(logits: Tensor, expected: Tensor, ignored: Tensor | None) -> Tensor:
    """Return the cross entropy of expected class fractions and predicted ones, a scalar.

    `logits` are (B, K, h, w), `expected` (B, K); pixels where `ignored` (B, h, w) bool is true do
    not count.
    """
    log_p = F.log_softmax(logits, dim=1)
    sharpened = ((log_p - log_p.max(1, keepdim=True).values) * EXPONENT).exp()
    predicted = pooled_features(sharpened, ignored)
    predicted = predicted / predicted.sum(1, keepdim=True)
    return -(expected * predicted.clamp(min=1e-12).log()).sum(1).mean()


def superpixel_cross_entropy(logits: Tensor, labels: Tensor, areas: Tensor) -> Tensor:
    """Return the mean over labeled superpixels of their mean cross entropy, a scalar.

    `logits` are (B, K, h, w); `labels` and `areas` (B, h, w) are those of `superpixel_labels`.
    """
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    weights = (labels != IGNORE) / areas.clamp(min=1)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-6)


def superpixel_labels(
    frames_bhwc: Tensor, probabilities: Tensor, ignored: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the labels of the most confident superpixels, (B, h, w) int64, 255 elsewhere.

    `frames_bhwc` are (B, H, W, 3) uint8, `probabilities` (B, K, h, w). Pixels where `ignored`
    (B, h, w) bool is true belong to no superpixel. Also return the number of pixels in the
    superpixel of each pixel, (B, h, w) int64, 0 for no superpixel.
    """
    height, width = probabilities.shape[-2:]
    num_classes = probabilities.shape[1]
    labels = probabilities.new_full((len(frames_bhwc), height, width), IGNORE, dtype=torch.int64)
    areas = torch.zeros_like(labels)
    for slot, frame in enumerate(frames_bhwc.cpu().numpy()):
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        superpixels = torch.from_numpy(slic(small)).to(labels.device)
        if ignored is not None:
            superpixels = superpixels.masked_fill(ignored[slot], -1)
        # Pixels of no superpixel are counted in the first place, which is left out.
        index = superpixels.flatten() + 1
        count = int(superpixels.max()) + 2
        counts = torch.bincount(index, minlength=count)
        sums = probabilities.new_zeros(count, num_classes)
        sums.index_add_(0, index, probabilities[slot].flatten(1).T)
        confidence, classes = (sums / counts.clamp(min=1)[:, None]).max(1)
        exists = counts > 0
        exists[0] = False
        confidence = confidence.masked_fill(~exists, -1.0)
        kept = confidence.argsort(descending=True, stable=True)[
            : round(CONFIDENT * int(exists.sum()))
        ]
        chosen = torch.full_like(classes, IGNORE)
        chosen[kept] = classes[kept]
        labels[slot] = chosen[index].view(height, width)
        areas[slot] = (counts * exists)[index].view(height, width)
    return labels, areas


def slic(frame: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the superpixel of each pixel of a frame (H, W, 3) uint8 RGB, (H, W) int64 from 0.

    Clusters of CIELAB colors and positions start on a grid, and a pixel can join those of the nine
    cells around it. Unlike in the publication, superpixels need not be connected.
    """
    height, width = frame.shape[:2]
    count = max(1, min(SUPERPIXELS, height * width // MIN_AREA))
    rows = max(1, round((count * height / width) ** 0.5))
    columns = max(1, round(count / rows))
    spacing = (height * width / (rows * columns)) ** 0.5
    y, x = np.mgrid[:height, :width]
    lab = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    positions = np.stack([y, x], -1) * (COMPACTNESS / spacing)
    points = np.concatenate([lab, positions], -1).astype(np.float64)
    row, column = y * rows // height, x * columns // width
    cells = [
        np.clip(row + dy, 0, rows - 1) * columns + np.clip(column + dx, 0, columns - 1)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]
    labels: NDArray[np.int64] = row * columns + column
    for _ in range(ITERATIONS):
        flat = labels.ravel()
        sizes = np.maximum(np.bincount(flat, minlength=rows * columns), 1)
        centers = np.stack(
            [
                np.bincount(flat, points[..., i].ravel(), minlength=rows * columns) / sizes
                for i in range(points.shape[-1])
            ],
            -1,
        )
        distances = np.stack([((points - centers[cell]) ** 2).sum(-1) for cell in cells])
        labels = np.take_along_axis(np.stack(cells), distances.argmin(0)[None], 0)[0]
    return labels
