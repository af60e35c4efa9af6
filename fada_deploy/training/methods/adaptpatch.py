"""AdaptPatch: alignment of patches in a space of clusters (Tsai et al., ICCV 2019).

The label histograms of the source's patches are clustered by k-means. A head learns to tell the
cluster of a patch from the network's output (eq. 3), and a discriminator reads the head's K-way
prediction (eq. 4), beside the global discriminator of AdaptSegNet (eq. 6). There is no code of the
authors; the grid of 16×16 patches follows from the sizes in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.label_space import IGNORE
from fada_deploy.training.distributed import all_gather
from fada_deploy.training.interpolation import full_precision
from fada_deploy.training.methods.adaptsegnet import class_probabilities
from fada_deploy.training.methods.base import Losses, MethodContext, Step, fixed
from fada_deploy.training.models.discriminator import OutputDiscriminator

# Published settings: clusters, patches in each direction, weights of the head's cross entropy.
CLUSTERS, GRID, PATCH_WEIGHT = 50, 16, 0.01
# Weights of both adversaries relative to the one of single-level AdaptSegNet, 0.0005 to 0.001.
GLOBAL_ADVERSARY, PATCH_ADVERSARY = 0.5, 0.5


def adaptpatch(context: MethodContext) -> PatchAlignment:
    """Return AdaptPatch; the clusters are those of the first source batches of all processes."""
    labels = (batch.labels for batch in context.source_batches())
    histograms = all_gather(source_histograms(labels, context.num_classes))
    centers = cluster_centers(torch.cat(histograms))
    return PatchAlignment(
        heads=PatchHead(context.num_classes, centers),
        discriminator=nn.ModuleList(
            [OutputDiscriminator(context.num_classes), PatchDiscriminator(len(centers))]
        ),
    )


class PatchHead(nn.Module):
    """Logits of the cluster of each patch, from the logits of the network.

    `centers` (N, 4K) are the clusters, a buffer.
    """

    def __init__(self, num_classes: int, centers: Tensor, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(num_classes, hidden, 3, padding=1), nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(GRID),
            nn.Conv2d(hidden, len(centers), 1),
        )  # fmt: skip
        self.centers: Tensor
        self.register_buffer("centers", centers)

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (B, K, h, w) to those of clusters, (B, N, GRID, GRID)."""
        clusters: Tensor = self.layers(logits)
        return clusters


class PatchDiscriminator(nn.Module):
    """Three fully connected layers on a patch's prediction; logits as `OutputDiscriminator`."""

    def __init__(self, num_clusters: int) -> None:
        super().__init__()
        self.D = nn.Sequential(
            nn.Conv2d(num_clusters, 256, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(256, 512, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(512, 1, 1),
        )  # fmt: skip

    def forward(self, predictions: Tensor) -> Tensor:
        """Map cluster probabilities (B, N, h, w) to domain logits (B, 2, h, w)."""
        target = self.D(predictions)
        return torch.cat((torch.zeros_like(target), target), 1)


@dataclass(frozen=True, eq=False)
class PatchAlignment:
    """Alignment of the output, and of the clusters of its patches."""

    heads: PatchHead
    discriminator: nn.Module

    def accumulate_gradients(self, step: Step) -> Losses:
        """Add the gradients of F, G and the head, then those of both D."""
        parts = step.num_parts
        global_d, patch_d = self.discriminator.children()
        src = step.forward(step.src)
        with step.autocast():
            src_clusters = full_precision(self.heads(src.logits))
        seg_loss = step.segmentation_loss(src.logits)
        truth = nearest_cluster(step.src.labels, self.heads.centers)
        # The sum, because the mean of no patch is not a number.
        num_patches = (truth != IGNORE).sum().clamp(min=1)
        patch_loss = F.cross_entropy(src_clusters, truth, ignore_index=IGNORE, reduction="sum")
        patch_loss = patch_loss / num_patches / parts
        (seg_loss + PATCH_WEIGHT * patch_loss).backward()

        tgt = step.forward(step.tgt)
        with step.autocast():
            tgt_clusters = full_precision(self.heads(tgt.logits))
        with fixed(self.discriminator), step.autocast():
            output_d = global_d(class_probabilities(tgt.logits, step.tgt))
            cluster_d = patch_d(tgt_clusters.softmax(1))
        global_loss = step.domain_loss(output_d, step.tgt, target=False)
        cluster_loss = step.domain_loss(cluster_d, step.tgt, target=False)
        weight = step.settings.adversarial_weight
        (weight * (GLOBAL_ADVERSARY * global_loss + PATCH_ADVERSARY * cluster_loss)).backward()

        src_maps = class_probabilities(src.logits.detach(), step.src)
        tgt_maps = class_probabilities(tgt.logits.detach(), step.tgt)
        return {
            "segmentation": seg_loss.detach(),
            "patch": patch_loss.detach(),
            "adversarial": global_loss.detach(),
            "adversarial_patch": cluster_loss.detach(),
            **step.train_discriminator(global_d, src_maps, tgt_maps),
            **step.train_discriminator(
                patch_d, src_clusters.softmax(1), tgt_clusters.softmax(1), "discriminator_patch"
            ),
        }


def patch_histograms(labels: Tensor, num_classes: int) -> Tensor:
    """Return the label histogram of each patch, (B, GRID, GRID, 4K).

    It consists of the class fractions of the 2×2 quarters of the patch, one after another; a
    quarter without a label has zeros. `labels` are (B, H, W) int64.
    """
    # One channel for ignored pixels, which is left out.
    one_hot = F.one_hot(labels.masked_fill(labels == IGNORE, num_classes), num_classes + 1)
    counts = F.adaptive_avg_pool2d(one_hot[..., :num_classes].permute(0, 3, 1, 2).float(), 2 * GRID)
    fractions = counts / counts.sum(1, keepdim=True).clamp(min=1e-12)
    quarters = fractions.unflatten(2, (GRID, 2)).unflatten(4, (GRID, 2))
    # (B, K, GRID, 2, GRID, 2) → (B, GRID, GRID, 2, 2, K)
    histograms: Tensor = quarters.permute(0, 2, 4, 3, 5, 1).flatten(3)
    return histograms


def source_histograms(batches: Iterable[Tensor], num_classes: int) -> Tensor:
    """Return the histograms of the labeled patches of batches, (N, 4K) on the CPU."""
    histograms = torch.cat([patch_histograms(b, num_classes).flatten(0, 2) for b in batches])
    return histograms[histograms.sum(1) > 0].cpu()


def cluster_centers(histograms: Tensor) -> Tensor:
    """Return the centers of label histograms (M, 4K) by k-means, (N, 4K) with N ≤ CLUSTERS."""
    data = histograms.numpy().astype(np.float32)
    count = min(CLUSTERS, len(np.unique(data, axis=0)))
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_MAX_ITER, 50, 1e-4)
    # OpenCV's types do not allow None for the labels to start from, its functions do.
    _, _, centers = cv2.kmeans(data, count, None, criteria, 1, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    return torch.from_numpy(np.asarray(centers, np.float32))


def nearest_cluster(labels: Tensor, centers: Tensor) -> Tensor:
    """Return the cluster of each patch, (B, GRID, GRID) int64; IGNORE for one without a label."""
    num_classes = centers.shape[1] // 4
    histograms = patch_histograms(labels, num_classes)
    distances = torch.cdist(histograms.flatten(0, 2).to(centers.dtype), centers)
    nearest: Tensor = distances.argmin(1).view(histograms.shape[:3])
    unlabeled: Tensor = histograms.sum(-1) == 0
    return nearest.masked_fill(unlabeled, IGNORE)
