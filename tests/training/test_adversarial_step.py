"""The adversarial step: ego mask, gradient accumulation, running statistics, bfloat16.

`test_adversarial_reference.py` compares its arithmetic with NumPy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.data import open_dataset
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.losses import source_fraction
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import AlignmentMethod, MethodContext
from fada_deploy.training.models.discriminator import PixelDiscriminator
from fada_deploy.training.models.segmentation import ModelSpec
from fada_deploy.training.stage_config import AdversarialStage
from fada_deploy.training.stages.adversarial import adversarial_step
from fada_deploy.training.weights.checkpoints import load_model

K, C, B = 3, 5, 4
SPACE = LabelSpace("three", CITYSCAPES_19.classes[:K])


class PixelwiseNetwork(nn.Module):
    """A network of 1×1 convolutions: features = frames · Wf, logits = features · Wg."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.spec = C, ModelSpec("resnet101", SPACE, (64, 64))
        self.feature_extractor = nn.Conv2d(3, C, 1, bias=False)
        self.classifier = nn.Conv2d(C, K, 1, bias=False)

    def features(self, frames: Tensor) -> Tensor:
        return self.feature_extractor(frames.double().permute(0, 3, 1, 2) / 255)


def new_method(name: str, model: nn.Module, stage: AdversarialStage) -> AlignmentMethod:
    return make_method(name, MethodContext(model, stage, None, None))  # type: ignore[arg-type]


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    frames = torch.tensor(rng.integers(0, 256, (B, 1, 1, 3)), dtype=torch.uint8)
    return Batch(frames, torch.tensor(rng.integers(0, K, (B, 1, 1))), tuple(range(B)))


class PixelwiseDiscriminator(nn.Module):
    """A discriminator of one 1×1 convolution, so that masked pixels do not influence others."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.D = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.D(x)


@pytest.mark.parametrize(
    ("name", "in_channels", "out_channels"),
    [("fada", C, 2 * K), ("adaptsegnet", K, 2), ("advent", K, 2)],
)
def test_ego_mask_removes_pixels_from_domain_losses(
    name: str, in_channels: int, out_channels: int
) -> None:
    """Frames that differ only under the mask give equal losses."""
    ego = torch.zeros(6, 6, dtype=torch.bool)
    ego[4:] = True
    stage = AdversarialStage()

    def losses(seed: int) -> list[float]:
        torch.manual_seed(1)
        model = PixelwiseNetwork().double()
        discriminator = PixelwiseDiscriminator(in_channels, out_channels).double()
        base = torch.randint(
            0, 256, (2, 6, 6, 3), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
        )
        under = torch.Generator().manual_seed(seed)
        base[:, 4:] = torch.randint(0, 256, (2, 2, 6, 3), generator=under, dtype=torch.uint8)
        labels = torch.zeros(2, 6, 6, dtype=torch.long)
        labels[:, 4:] = 255
        masked = Batch(base, labels, (0, 1), ego=ego)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, discriminator)]
        method = replace(new_method(name, model, stage), discriminator=discriminator)  # type: ignore[type-var]
        aligner = Aligner(method, optimizers[1], stage)
        got = adversarial_step(model, optimizers[0], aligner, masked, masked)  # type: ignore[arg-type]
        return [v.item() for v in got.values()]

    assert losses(3) == pytest.approx(losses(4), rel=1e-12)


@pytest.mark.parametrize("name", ["fada", "feature", "advent"])
def test_accumulated_step_equals_full_batch_step(name: str) -> None:
    """Without batch normalization; the parts have different numbers of labeled pixels."""
    rng = np.random.default_rng(0)
    src, tgt = (
        Batch(
            torch.from_numpy(rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)),
            labels,
            (0, 1, 2, 3),
        )
        for labels in torch.from_numpy(rng.integers(0, K, (2, 4, 32, 32)))
    )
    src.labels[1, :20] = 255
    results = []
    for parts in (1, 2, 4):
        stage = AdversarialStage(accumulate=parts)
        torch.manual_seed(1)
        model = PixelwiseNetwork().double()
        method = new_method(name, model, stage)
        discriminator = method.discriminator.double()
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, discriminator)]
        aligner = Aligner(method, optimizers[1], stage)
        losses = adversarial_step(model, optimizers[0], aligner, src, tgt)  # type: ignore[arg-type]
        results.append([*losses.values(), *model.parameters(), *discriminator.parameters()])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, check_dtype=False)


def test_source_fraction_excludes_ignored_pixels() -> None:
    """K = 2: D assigns one of three pixels to the source, and that pixel is masked."""
    d_logits = torch.tensor([[0.0, 0.0, -9.0], [3.0, -9.0, -9.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    d_logits = d_logits.reshape(1, 4, 1, 3)
    assert source_fraction(d_logits).item() == pytest.approx(1 / 3)
    mask = torch.tensor([[[True, False, False]]])
    assert source_fraction(d_logits, lambda size_hw: mask).item() == 0


@pytest.mark.parametrize("domain", ["source", "target", "both"])
def test_bn_statistics_selects_the_pass_that_updates_running_statistics(domain: str) -> None:
    class NormalizedNetwork(PixelwiseNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def features(self, frames: Tensor) -> Tensor:
            return self.feature_extractor(self.norm(frames.double().permute(0, 3, 1, 2)))

    model = NormalizedNetwork().double().train()
    discriminator = PixelDiscriminator(C, K).double()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (model, discriminator)]
    src, tgt = batch(1), batch(2)
    stage = AdversarialStage(bn_statistics=domain)
    method = replace(new_method("fada", model, stage), discriminator=discriminator)  # type: ignore[type-var]
    aligner = Aligner(method, optimizers[1], stage)
    adversarial_step(model, optimizers[0], aligner, src, tgt)  # type: ignore[arg-type]
    mean_s, mean_t = (b.frames_bhwc.double().mean((0, 1, 2)) for b in (src, tgt))
    want = {
        "source": 0.1 * mean_s,
        "target": 0.1 * mean_t,
        "both": 0.9 * 0.1 * mean_s + 0.1 * mean_t,
    }[domain]
    torch.testing.assert_close(model.norm.running_mean, want)


@pytest.mark.parametrize("domain", ["source", "target"])
@pytest.mark.parametrize("name", ["fada", "minent", "fcn-wild", "siban", "cycada"])
def test_norms_of_the_classifier_get_the_statistics_of_the_selected_domain(
    name: str, domain: str
) -> None:
    class NormalizedClassifier(PixelwiseNetwork):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Sequential(nn.BatchNorm2d(C), nn.Conv2d(C, K, 1))  # type: ignore[assignment]

    torch.manual_seed(0)
    model = NormalizedClassifier().double().train()
    stage = AdversarialStage(bn_statistics=domain)
    class_pixels = np.ones((2, K), np.int64)
    context = MethodContext(model, stage, lambda: class_pixels, lambda: iter([]))  # type: ignore[arg-type]
    method = make_method(name, context)
    method.heads.double()
    method.discriminator.double()
    dark = replace(batch(2), frames_bhwc=batch(2).frames_bhwc // 4)
    src, tgt = batch(1), dark
    with torch.no_grad():
        means = {
            name: model.features(each.frames_bhwc).mean((0, 2, 3))
            for name, each in (("source", src), ("target", tgt))
        }
    assert (means["source"] - means["target"]).abs().max() > 0.2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    adversarial_step(model, optimizer, Aligner(method, None, stage), src, tgt)  # type: ignore[arg-type]
    # The noise of SIBAN has a deviation of 0.05, so that of a mean of four is 0.0025 here.
    running_mean = model.classifier[0].running_mean  # type: ignore[index]
    torch.testing.assert_close(running_mean, 0.1 * means[domain], rtol=0, atol=0.009)


def test_bfloat16_gradients_agree_with_float32_on_a_trained_network(
    trained: Path, streets: Path
) -> None:
    """The cosine similarity of the gradients of one step is above 0.99."""

    def gradients(amp: bool) -> list[Tensor]:
        model = load_model(trained / "source" / "weights.safetensors")[0].train()
        torch.manual_seed(0)
        stage = AdversarialStage()
        method = new_method("fada", model, stage)
        discriminator = method.discriminator
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (model, discriminator)]
        batches = []
        for name, folder, split in (("gta5", "gta5", "train"), ("cityscapes", "cityscapes", "val")):
            frames = open_dataset(name, streets / folder, split=split, space=model.spec.space)
            images, labels = zip(*(frames.pair(i) for i in range(2)), strict=True)
            stacked = [torch.from_numpy(np.stack(part)) for part in (images, labels)]
            batches.append(Batch(stacked[0], stacked[1].long(), (0, 1)))
        aligner = Aligner(method, optimizers[1], stage)
        adversarial_step(model, optimizers[0], aligner, *batches, amp=amp)
        return [
            p.grad.flatten()
            for m in (model, discriminator)
            for p in m.parameters()
            if p.grad is not None
        ]

    full, half = (torch.cat(gradients(amp)) for amp in (False, True))
    assert float(full @ half / full.norm() / half.norm()) > 0.99
    assert not torch.equal(full, half)
