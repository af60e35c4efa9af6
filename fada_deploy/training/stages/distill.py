"""Self-distillation: the adapted network labels the target's training frames for a new student.

`fada train --stages distill`. The pseudo-labels are made at the size of each frame; in FADA they
are the argmax without a confidence threshold. ProDA also trains the student on the source, and on
the teacher's probabilities (Zhang et al., CVPR 2021, eq. 13).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import write_png
from fada_deploy.common.label_space import IGNORE
from fada_deploy.common.progress import progress_bar
from fada_deploy.data.base import FrameDataset
from fada_deploy.training import distributed
from fada_deploy.training.data.loader import Batch, BatchLoader
from fada_deploy.training.data.samples import pseudo_label_path
from fada_deploy.training.interpolation import full_precision, upsample
from fada_deploy.training.loop import MakeLoop
from fada_deploy.training.losses import count_labeled, segmentation_loss
from fada_deploy.training.methods.base import Losses, sum_losses
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.optim import (
    AveragedWeights,
    make_optimizer,
    optimizer_step,
    set_learning_rate,
)
from fada_deploy.training.predict import Predictor
from fada_deploy.training.stage_config import DistillStage


def train_student(
    student: SegmentationModel,
    teacher: SegmentationModel,
    tgt_loader: BatchLoader,
    src_loader: BatchLoader | None,
    stage: DistillStage,
    *,
    amp: bool,
    make_loop: MakeLoop,
) -> AveragedWeights:
    """Train a student on pseudo-labels, and as the settings say on source and teacher.

    Return its averaged weights.
    """
    optimizer = make_optimizer(student, stage)
    average = AveragedWeights(student, stage.ema)
    loop = make_loop({"model": student, "optimizer": optimizer, "average": average})
    student.train()
    teacher.eval()
    for iteration in loop:
        lr = set_learning_rate(optimizer, iteration, stage)
        tgt = tgt_loader[iteration]
        src = None if src_loader is None else src_loader[iteration]
        losses = distillation_step(student, teacher, optimizer, tgt, src, stage, amp=amp)
        average.update(iteration)
        loop.log(tgt.files + (src.files if src else ()), {"lr": lr}, losses)
    return average


def distillation_step(
    student: SegmentationModel,
    teacher: SegmentationModel,
    optimizer: Optimizer,
    tgt: Batch,
    src: Batch | None,
    stage: DistillStage,
    *,
    amp: bool,
) -> Losses:
    """Update the student on a pseudo-labeled batch, and on a source batch; return the losses.

    The losses are unweighted.
    """
    optimizer.zero_grad(set_to_none=True)
    num_parts = distributed.world_size() * stage.accumulate
    parts: list[Losses] = []
    for name, batch, weight in (("segmentation", tgt, 1.0), ("source", src, stage.source_weight)):
        if batch is None:
            continue
        num_labeled = distributed.all_reduce_sum(count_labeled(batch.labels, batch.pixel_weights))
        for part in batch.split(stage.accumulate):
            with torch.autocast(part.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
                logits = student(part.frames_bhwc)
            loss = segmentation_loss(
                logits, part.labels, weights=part.pixel_weights, num_labeled=num_labeled
            )
            total, terms = weight * loss, {name: loss.detach()}
            if batch is tgt and stage.soft_weight:
                with (
                    torch.no_grad(),
                    torch.autocast(part.frames_bhwc.device.type, torch.bfloat16, enabled=amp),
                ):
                    teacher_logits = teacher(part.frames_bhwc)
                soft = soft_label_divergence(logits, teacher_logits) / num_parts
                total, terms = total + stage.soft_weight * soft, {**terms, "soft": soft.detach()}
            total.backward()
            parts.append(terms)
    optimizer_step(optimizer, stage)
    return sum_losses(parts)


def soft_label_divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(teacher ‖ student), a mean over pixels of the student's output, a scalar.

    `logits` are (B, K, h, w). Those of a teacher with another backbone may have another size.
    """
    log_p = F.log_softmax(full_precision(logits), dim=1)
    teacher_logits = upsample(full_precision(teacher_logits), (logits.shape[2], logits.shape[3]))
    log_q = F.log_softmax(teacher_logits, dim=1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1).mean()


def write_pseudo_labels(
    predictor: Predictor, frames: FrameDataset, folder: Path, *, threshold: float
) -> None:
    """Write the predicted class indices of every frame to `folder` as PNG; keep existing files.

    Pixels whose probability is below `threshold` are ignored. Unreadable frames get no file; the
    data loader skips and reports them later. Under `torchrun` the processes divide the frames among
    them.
    """
    own = range(distributed.rank(), len(frames), distributed.world_size())
    missing = [i for i in own if not pseudo_label_path(folder, i).is_file()]
    with progress_bar(len(missing), "pseudo-labels", unit="frame") as bar:
        for i in missing:
            bar.update()
            with suppress(DataError):
                write_pseudo_label(predictor, frames, folder, i, threshold=threshold)
    distributed.barrier()


def write_pseudo_label(
    predictor: Predictor, frames: FrameDataset, folder: Path, i: int, *, threshold: float
) -> None:
    """Write the predicted class indices of a frame; raise `DataError` if it cannot be read."""
    labels = predictor.labels([frames.image(i)], threshold=threshold)[0]
    labels = np.where(frames.ego_mask_at(labels.shape), np.uint8(IGNORE), labels)
    write_png(pseudo_label_path(folder, i), labels)
