"""ProDA: prototypes of the classes rectify pseudo-labels (Zhang et al., CVPR 2021).

The prototype η_k is the mean feature of the target pixels of class k, and follows the features f of
the mean teacher (eq. 6). Soft pseudo-labels p₀, those of the network that the stage starts from,
are multiplied by ω_k = softmax_k(−‖f − η_k‖ / τ), and the label is argmax_k ω_k p₀_k (eq. 3-5). The
student learns them from strongly augmented frames by the symmetric cross entropy (eq. 7). Its own
assignments to the prototypes have to agree with the teacher's (eq. 10), and its predictions should
not become one-hot (eq. 12). Two distillation stages follow, each in a run of its own or as the
last stage (`stages.distill`, `configs/selftrain/proda-distill.toml`).

Details follow the authors' code: the target losses at a lower resolution, here that of the logits;
the divergence of assignments as a mean over pixels and classes; at least 10 pixels of a class for
a step of its prototype. Unlike there, p₀ is predicted in each iteration instead of being stored,
the weak view is the frame as it is loaded, and the strong view changes its colors only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training import distributed
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.interpolation import full_precision
from fada_deploy.training.loop import TrainingState
from fada_deploy.training.methods.base import ForwardOutputs, Losses
from fada_deploy.training.methods.self_training import augment_colors
from fada_deploy.training.methods.self_training_base import SelfTrainingContext, TargetViews
from fada_deploy.training.models.segmentation import SegmentationModel

# Published settings: τ, the momentum of prototypes, and the weights of the losses.
TEMPERATURE, MOMENTUM = 1.0, 1e-4
CROSS_ENTROPY, REVERSE_CROSS_ENTROPY = 0.1, 1.0
STRUCTURE, REGULARIZER = 10.0, 0.1
MIN_PIXELS = 10
# The limits of label and probability in the reverse cross entropy (authors' code).
LABEL_FLOOR, PROBABILITY_FLOOR = 1e-4, 1e-7
# The distance from a prototype that does not exist; its softmax is 0.
_FAR = 1e4


class Prototypes(nn.Module):
    """The prototypes η (K, C) as a buffer, and which of them exist, (K,) bool."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.values: Tensor
        self.exists: Tensor
        self.register_buffer("values", torch.zeros(num_classes, channels))
        self.register_buffer("exists", torch.zeros(num_classes, dtype=torch.bool))

    def move(self, sums: Tensor, counts: Tensor, *, momentum: float, min_pixels: int) -> None:
        """Move the prototypes towards the means of `sum_features`; create those that are missing.

        The tensors are replaced, so that earlier views keep theirs.
        """
        means = sums / counts.clamp(min=1)[:, None]
        moved = torch.where(self.exists[:, None], self.values.lerp(means, momentum), means)
        enough = counts >= min_pixels
        self.values = torch.where(enough[:, None], moved, self.values)
        self.exists = self.exists | enough


class PrototypeTeacher:
    """Pseudo-labels of the initial network, rectified by distances from the prototypes."""

    def __init__(self, context: SelfTrainingContext) -> None:
        self._context = context
        # Before the stage restores a saved state: both keep or get their weights elsewhere.
        self.initial = context.new_teacher()
        self.teacher = context.new_teacher()
        parameter = next(context.model.parameters())
        prototypes = Prototypes(context.model.spec.space.num_classes, context.model.channels)
        self.prototypes = prototypes.to(parameter.device, parameter.dtype)

    def state(self) -> TrainingState:
        """Return the prototypes."""
        return {"prototypes": self.prototypes}

    def start_iteration(self, iteration: int) -> None:
        """Let the teacher follow the student; compute the prototypes before the first iteration."""
        self._context.average.copy_to(self.teacher)
        if iteration == 0:
            sums, counts = self._sum_target()
            self.prototypes.move(sums, counts, momentum=1.0, min_pixels=1)

    def views(self, src: Batch | None, tgt: Batch, rng: np.random.Generator) -> TargetViews:
        """Label a target batch; return its strongly augmented frames."""
        assert src is not None, "see RunConfig.from_dict"
        features, logits = self._forward(self.teacher, tgt)
        ignored = tgt.ignore_mask((logits.shape[-2], logits.shape[-1]))
        initial = F.softmax(self._forward(self.initial, tgt)[1], dim=1)
        prototypes = self.prototypes.values, self.prototypes.exists
        assignments = assign(features, *prototypes)
        labels = (assignments * initial).argmax(1)
        if ignored is not None:
            labels = labels.masked_fill(ignored, IGNORE)
        sums, counts = map(distributed.all_reduce_sum, sum_features(features, logits, ignored))
        self.prototypes.move(sums, counts, momentum=MOMENTUM, min_pixels=MIN_PIXELS)
        frames = augment_colors(tgt.frames_bhwc, self._context.augmentation, rng)
        batch = Batch(frames, labels, tgt.indices, ego=tgt.ego)
        return TargetViews(src, labels, [PrototypeView(batch, assignments, *prototypes)])

    @torch.no_grad()
    def _forward(self, model: SegmentationModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return features (B, C, h, w) and logits (B, K, h, w) in full precision."""
        with self._context.autocast():
            features = model.features(batch.frames_bhwc)
            logits = model.classifier(features)
        return full_precision(features), full_precision(logits)

    def _sum_target(self) -> tuple[Tensor, Tensor]:
        """Return `sum_features` over the target, with the classes that the network predicts."""
        totals: list[Tensor] = []
        for batch in self._context.whole_target():
            features, logits = self._forward(self.initial, batch)
            ignored = batch.ignore_mask((logits.shape[-2], logits.shape[-1]))
            parts = sum_features(features, logits, ignored)
            totals = [t + p for t, p in zip(totals, parts, strict=True)] if totals else list(parts)
        sums, counts = map(distributed.all_reduce_sum, totals)
        return sums, counts


@dataclass(frozen=True, eq=False)
class PrototypeView:
    """A strongly augmented target batch with rectified labels and the teacher's assignments.

    The labels of `batch` are (B, h, w), at the resolution of the logits; `assignments` are
    (B, K, h, w), `prototypes` (K, C) and `exists` (K,) bool.
    """

    batch: Batch
    assignments: Tensor
    prototypes: Tensor
    exists: Tensor

    def split(self, count: int) -> list[PrototypeView]:
        """Split the view into equal parts."""
        parts = zip(self.batch.split(count), self.assignments.chunk(count), strict=True)
        return [replace(self, batch=batch, assignments=part) for batch, part in parts]

    def loss(
        self, outputs: ForwardOutputs, num_labeled: Tensor, num_parts: int
    ) -> tuple[Tensor, Losses]:
        """Return the weighted sum of the four target losses, and each of them."""
        logits, labels = full_precision(outputs.logits), self.batch.labels
        ignored = self.batch.ignore_mask((labels.shape[1], labels.shape[2]))
        cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        cross_entropy = cross_entropy / num_labeled.clamp(min=1)
        reverse = reverse_cross_entropy(logits, labels) / num_labeled.clamp(min=1)
        structure = assignment_divergence(
            full_precision(outputs.features),
            self.assignments,
            self.prototypes,
            self.exists,
            ignored,
        )
        structure = structure / num_parts
        regularizer = pixel_mean(-F.log_softmax(logits, dim=1).mean(1), ignored) / num_parts
        total = (
            CROSS_ENTROPY * cross_entropy + REVERSE_CROSS_ENTROPY * reverse
            + STRUCTURE * structure + REGULARIZER * regularizer
        )  # fmt: skip
        terms = {
            "target": cross_entropy, "reverse": reverse, "structure": structure,
            "regularizer": regularizer,
        }  # fmt: skip
        return total, {name: term.detach() for name, term in terms.items()}


def assign(features: Tensor, prototypes: Tensor, exists: Tensor) -> Tensor:
    """Return softmax_k(−‖f − η_k‖ / τ) of features (B, C, h, w), which is (B, K, h, w) in 0…1.

    `prototypes` are (K, C); those of which `exists` (K,) is false have the assignment 0.
    """
    return _negative_distances(features, prototypes, exists).softmax(1)


def _negative_distances(features: Tensor, prototypes: Tensor, exists: Tensor) -> Tensor:
    """Return −‖f − η_k‖ / τ, (B, K, h, w)."""
    height, width = features.shape[-2:]
    distances = torch.cdist(features.flatten(2).transpose(1, 2), prototypes)
    scores: Tensor = -torch.where(exists, distances, _FAR) / TEMPERATURE
    maps: Tensor = scores.transpose(1, 2).unflatten(2, (height, width))
    return maps


def sum_features(features: Tensor, logits: Tensor, ignored: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of the features of each class, (K, C), and its number of pixels, (K,).

    `features` (B, C, h, w) are counted for the class with the largest of `logits` (B, K, h, w),
    except where `ignored` (B, h, w) bool is true.
    """
    classes = F.one_hot(logits.argmax(1), logits.shape[1]).to(features.dtype)
    if ignored is not None:
        classes = classes * ~ignored[..., None]
    return torch.einsum("bhwk,bchw->kc", classes, features), classes.sum((0, 1, 2))


def reverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum over labeled pixels of −Σ_k p_k log y_k, with y of at least `LABEL_FLOOR`.

    `logits` are (B, K, h, w), `labels` (B, h, w) int64 with 255 ignored.
    """
    probabilities = F.softmax(logits, dim=1).clamp(min=PROBABILITY_FLOOR)
    labeled = labels != IGNORE
    index = labels.masked_fill(~labeled, 0)[:, None]
    # log y is 0 for the label and log LABEL_FLOOR for the other classes.
    others = probabilities.sum(1) - probabilities.gather(1, index)[:, 0]
    total: Tensor = -np.log(LABEL_FLOOR) * (others * labeled).sum()
    return total


def assignment_divergence(
    features: Tensor,
    assignments: Tensor,
    prototypes: Tensor,
    exists: Tensor,
    ignored: Tensor | None,
) -> Tensor:
    """Return KL(teacher ‖ student) of assignments, a mean over pixels and classes, a scalar.

    `features` (B, C, h, w) are the student's, `assignments` (B, K, h, w) the teacher's. Pixels
    where `ignored` (B, h, w) bool is true are left out.
    """
    student = F.log_softmax(_negative_distances(features, prototypes, exists), dim=1)
    return pixel_mean(F.kl_div(student, assignments, reduction="none").mean(1), ignored)


def pixel_mean(values: Tensor, ignored: Tensor | None) -> Tensor:
    """Return the mean of values (B, h, w) where `ignored` (B, h, w) bool is not true, a scalar."""
    if ignored is None:
        return values.mean()
    return (values * ~ignored).sum() / (~ignored).sum().clamp(min=1)
