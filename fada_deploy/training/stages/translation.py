"""Translate source frames into the style of the target, by a CycleGAN that is trained on both.

`fada train --style cyclegan`, which `--method cycada` selects (Hoffman et al., ICML 2018). Two
generators map source to target (G) and back (F), two discriminators judge their results (Zhu et
al., ICCV 2017, eq. 1-3, with squared errors instead of logarithms). With a network that was trained
on the source, translated frames also keep the labels that it gives to the originals (CyCADA's
semantic consistency). The labels of the source are not read; the later stages use them with the
translated frames. The learning rate falls from the start, not from the middle, and there is no ego
mask: a visible ego vehicle of the target can appear in translated frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import resize_frame, resize_labels, write_image
from fada_deploy.common.progress import progress_bar
from fada_deploy.data.base import FrameDataset, LabelReader
from fada_deploy.training.data.loader import BatchLoader
from fada_deploy.training.loop import MakeLoop
from fada_deploy.training.methods.base import Losses, fixed
from fada_deploy.training.models.segmentation import SegmentationModel
from fada_deploy.training.models.translation import (
    FrameDiscriminator,
    Generator,
    to_frames,
    to_network,
)
from fada_deploy.training.optim import set_learning_rate, with_base_lr
from fada_deploy.training.stage_config import SizeHW, TranslationStage

# Published settings: coefficients of Adam, and frames of the history that discriminators read.
BETAS, HISTORY = (0.5, 0.999), 50


class TranslationNetworks(nn.Module):
    """Generators to the target and to the source, and a discriminator of each domain."""

    def __init__(self, stage: TranslationStage) -> None:
        super().__init__()
        self.to_target: nn.Module = Generator(stage.width, stage.blocks)
        self.to_source: nn.Module = Generator(stage.width, stage.blocks)
        self.target_discriminator: nn.Module = FrameDiscriminator(stage.width)
        self.source_discriminator: nn.Module = FrameDiscriminator(stage.width)

    @property
    def generators(self) -> nn.Module:
        return nn.ModuleList([self.to_target, self.to_source])

    @property
    def discriminators(self) -> nn.Module:
        return nn.ModuleList([self.target_discriminator, self.source_discriminator])


class History(nn.Module):
    """Earlier translations, as a buffer; half of what a discriminator reads comes from there."""

    def __init__(self, size_hw: SizeHW) -> None:
        super().__init__()
        self.frames: Tensor
        self.count: Tensor
        self.register_buffer("frames", torch.zeros(HISTORY, 3, *size_hw))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def exchange(self, new: Tensor, rng: np.random.Generator) -> Tensor:
        """Store translations (B, 3, H, W) and return as many, some of them older."""
        returned = new.clone()
        for slot, frame in enumerate(new):
            count = int(self.count)
            if count < HISTORY:
                self.frames[count] = frame
                self.count += 1
            elif rng.random() < 0.5:
                place = int(rng.integers(HISTORY))
                returned[slot] = self.frames[place]
                self.frames[place] = frame
        return returned


class SemanticConsistency:
    """Cross entropy between the labels of a frame before and after its translation.

    CyCADA's semantic consistency: a fixed network that was trained on the source, f, labels the
    original, and the generators learn to keep these labels: CE(f(G(x)), argmax f(x)).

    Args:
        network: The fixed network, on the training device. It is set to evaluation mode.
        weight: Weight of the loss of both directions together.
    """

    def __init__(self, network: SegmentationModel, weight: float) -> None:
        self._network = network.eval().requires_grad_(False)
        self.weight = weight

    def loss(self, originals: Tensor, translated: Tensor) -> Tensor:
        """Return the mean cross entropy over the pixels of the network's logits.

        Frames are (B, 3, H, W) in −1…1.
        """
        with torch.no_grad():
            labels = self._logits(originals).argmax(1)
        return cross_entropy(self._logits(translated).float(), labels)

    def _logits(self, frames: Tensor) -> Tensor:
        logits: Tensor = self._network(((frames.float() + 1) * 127.5).permute(0, 2, 3, 1))
        return logits


def train_translation(
    networks: TranslationNetworks,
    src_loader: BatchLoader,
    tgt_loader: BatchLoader,
    stage: TranslationStage,
    *,
    seed: int,
    amp: bool,
    make_loop: MakeLoop,
    semantic: SemanticConsistency | None = None,
) -> None:
    """Train the networks on unpaired frames of both domains."""
    device = next(networks.parameters()).device
    optimizers = [
        _optimizer(part, stage) for part in (networks.generators, networks.discriminators)
    ]
    first = src_loader[0].size_hw, tgt_loader[0].size_hw
    crop_hw = tuple(min(lengths) for lengths in zip(stage.crop, *first, strict=True))
    histories = [History((crop_hw[0], crop_hw[1])).to(device) for _ in range(2)]
    loop = make_loop(
        {
            "networks": networks, "generators": optimizers[0], "discriminators": optimizers[1],
            "translated": histories[0], "restored": histories[1],
        }
    )  # fmt: skip
    networks.train()
    for iteration in loop:
        # Both have the same schedule.
        lr = min(set_learning_rate(optimizer, iteration, stage) for optimizer in optimizers)
        src, tgt = src_loader[iteration], tgt_loader[iteration]
        rng = np.random.default_rng([seed, iteration])
        images = [
            to_network(_crop(batch.frames_bhwc, histories[0].frames.shape[-2:], rng))
            for batch in (src, tgt)
        ]
        losses = translation_step(
            networks, optimizers, images[0], images[1], stage, amp=amp, semantic=semantic,
            remember=lambda i, new: histories[i].exchange(new, rng),  # noqa: B023 -- called at once
        )  # fmt: skip
        loop.log(src.files + tgt.files, {"lr": lr}, losses)


def translation_step(
    networks: TranslationNetworks,
    optimizers: list[Optimizer],
    src: Tensor,
    tgt: Tensor,
    stage: TranslationStage,
    *,
    amp: bool,
    remember: Callable[[int, Tensor], Tensor],
    semantic: SemanticConsistency | None = None,
) -> Losses:
    """Update the generators, then the discriminators; return the unweighted losses.

    `src` and `tgt` are frames (B, 3, H, W) in −1…1. `remember(i, frames)` stores translations to
    the target (0) and to the source (1), and returns those that the discriminators read.
    """
    autocast = torch.autocast(src.device.type, torch.bfloat16, enabled=amp)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    with autocast:
        fake_tgt, fake_src = networks.to_target(src), networks.to_source(tgt)
        cycle = _distance(networks.to_source(fake_tgt), src)
        cycle = cycle + _distance(networks.to_target(fake_src), tgt)
        identity = _distance(networks.to_target(tgt), tgt) + _distance(networks.to_source(src), src)
        with fixed(networks.discriminators):
            adversarial = _error(networks.target_discriminator(fake_tgt), 1.0)
            adversarial = adversarial + _error(networks.source_discriminator(fake_src), 1.0)
        terms = {"adversarial": adversarial, "cycle": cycle, "identity": identity}
        if semantic is not None:
            terms["semantic"] = semantic.loss(src, fake_tgt) + semantic.loss(tgt, fake_src)
    total = adversarial + stage.cycle_weight * (cycle + stage.identity_weight * identity)
    if semantic is not None:
        total = total + semantic.weight * terms["semantic"]
    total.backward()
    optimizers[0].step()

    old_tgt, old_src = (
        remember(i, new.detach().float()) for i, new in ((0, fake_tgt), (1, fake_src))
    )
    with autocast:
        losses = [
            0.5 * (_error(discriminator(real), 1.0) + _error(discriminator(fake), 0.0))
            for discriminator, real, fake in (
                (networks.target_discriminator, tgt, old_tgt),
                (networks.source_discriminator, src, old_src),
            )
        ]
    discrimination = losses[0] + losses[1]
    discrimination.backward()
    optimizers[1].step()
    terms["discriminator"] = discrimination
    return {name: term.detach() for name, term in terms.items()}


def _error(scores: Tensor, expected: float) -> Tensor:
    """Return the mean squared error of scores, a scalar."""
    return (scores.float() - expected).square().mean()


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean absolute difference of frames, a scalar."""
    return (one.float() - other).abs().mean()


def _optimizer(part: nn.Module, stage: TranslationStage) -> Optimizer:
    return with_base_lr(Adam(part.parameters(), lr=stage.lr, betas=BETAS, fused=True))


def _crop(frames: Tensor, size_hw: torch.Size, rng: np.random.Generator) -> Tensor:
    """Return a random window of frames (B, H, W, 3), the same in the whole batch."""
    top, left = (
        int(rng.integers(length - size + 1))
        for length, size in zip(frames.shape[1:3], size_hw, strict=True)
    )
    return frames[:, top : top + size_hw[0], left : left + size_hw[1]]


@dataclass(frozen=True)
class _ResizedLabels:
    """Read the labels of translated frames at the size of those frames."""

    read: LabelReader
    size_hw: SizeHW
    translated: frozenset[Path | None]

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        labels = self.read(path)
        return resize_labels(labels, self.size_hw) if path in self.translated else labels


def translated_frames(frames: FrameDataset, folder: Path, size_hw: SizeHW) -> FrameDataset:
    """Return source frames whose images are those that `write_translations` wrote to `folder`."""
    # A frame that could not be read has no translation; its own name is in the messages about it.
    paths = [_path(folder, i) for i in range(len(frames))]
    pairs = [
        replace(pair, image=path) if path.is_file() else pair
        for pair, path in zip(frames.pairs, paths, strict=True)
    ]
    translated = frozenset(pair.labels for pair in pairs if pair.image.parent == folder)
    read_labels = _ResizedLabels(frames.read_labels, size_hw, translated)
    return replace(frames, pairs=pairs, read_labels=read_labels)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.jpg"


@torch.inference_mode()
def write_translations(
    generator: nn.Module, frames: FrameDataset, folder: Path, size_hw: SizeHW, *, amp: bool
) -> list[str]:
    """Translate every frame at a size (height, width) into `folder`; keep existing files.

    Return one error line for each frame that cannot be used: it or its labels cannot be read, or
    their sizes differ. Such a frame gets no file.
    """
    device = next(generator.parameters()).device
    generator.eval()
    errors: list[str] = []
    missing = [i for i in range(len(frames)) if not _path(folder, i).is_file()]
    with progress_bar(len(missing), "translation", unit="frame") as bar:
        for i in missing:
            bar.update()
            try:
                # The size of the labels is only known here; translated frames have another one.
                frame = resize_frame(frames.pair(i)[0], size_hw)
            except DataError as error:
                errors.append(str(error))
                continue
            image = to_network(torch.from_numpy(frame[None].copy()).to(device))
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                translated = generator(image)
            write_image(_path(folder, i), to_frames(translated)[0].cpu().numpy())
    return errors
