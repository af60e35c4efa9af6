"""What a step leaves alone: the car's own bonnet, and whichever running statistics are not its to move.

Its arithmetic is held against NumPy in `test_adversarial_reference.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.data import open_dataset
from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.losses import source_fraction
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.models.discriminator import PixelDiscriminator
from fada_deploy.training.models.segmentation import ModelSpec
from fada_deploy.training.stages.adversarial import adversarial_step
from fada_deploy.training.weights.checkpoints import load_model

K, C, B = 3, 5, 4
SPACE = LabelSpace("three", CITYSCAPES_19.classes[:K])


class Pixel(nn.Module):
    """features = frames · Wf, logits = features · Wg."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.spec = C, ModelSpec("resnet101", SPACE, (64, 64))
        self.feature_extractor = nn.Conv2d(3, C, 1, bias=False)
        self.classifier = nn.Conv2d(C, K, 1, bias=False)

    def features(self, frames: Tensor) -> Tensor:
        return self.feature_extractor(frames.double().permute(0, 3, 1, 2) / 255)


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    frames = torch.tensor(rng.integers(0, 256, (B, 1, 1, 3)), dtype=torch.uint8)
    return Batch(frames, torch.tensor(rng.integers(0, K, (B, 1, 1))), tuple(range(B)))


class PixelByPixel(nn.Module):
    """A discriminator of 1×1 kernels, so that a masked pixel is seen by no other."""

    def __init__(self, channels: int, answers: int) -> None:
        super().__init__()
        self.D = nn.Conv2d(channels, answers, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.D(x)


@pytest.mark.parametrize(
    ("name", "sees", "answers"), [("fada", C, 2 * K), ("adaptsegnet", K, 2), ("advent", K, 2)]
)
def test_the_bonnet_takes_no_part_in_the_domain_losses(name: str, sees: int, answers: int) -> None:
    """Frames whose differing pixels are all under the mask give equal losses."""
    ego = torch.zeros(6, 6, dtype=torch.bool)
    ego[4:] = True
    stage = AdversarialStage()

    def losses(seed: int) -> list[float]:
        torch.manual_seed(1)
        model = Pixel().double()
        discriminator = PixelByPixel(sees, answers).double()
        base = torch.randint(
            0, 256, (2, 6, 6, 3), generator=torch.Generator().manual_seed(7), dtype=torch.uint8
        )
        under = torch.Generator().manual_seed(seed)
        base[:, 4:] = torch.randint(0, 256, (2, 2, 6, 3), generator=under, dtype=torch.uint8)
        labels = torch.zeros(2, 6, 6, dtype=torch.long)
        labels[:, 4:] = 255
        masked = Batch(base, labels, (0, 1), ego=ego)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, discriminator)]
        method = make_method(name, model, stage)  # type: ignore[arg-type]
        got = adversarial_step(
            model, discriminator, *optimizers, masked, masked, stage, method=method
        )  # type: ignore[arg-type]
        return [v.item() for v in got.values()]

    assert losses(3) == pytest.approx(losses(4), rel=1e-12)


@pytest.mark.parametrize("name", ["fada", "feature", "advent"])
def test_a_batch_in_parts_takes_the_step_of_the_whole(name: str) -> None:
    """Without batch statistics, and with labels that the parts share out unevenly."""
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
    found = []
    for parts in (1, 2, 4):
        stage = AdversarialStage(accumulate=parts)
        torch.manual_seed(1)
        model = Pixel().double()
        method = make_method(name, model, stage)  # type: ignore[arg-type]
        discriminator = method.make_discriminator().double()
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, discriminator)]
        losses = adversarial_step(model, discriminator, *optimizers, src, tgt, stage, method=method)  # type: ignore[arg-type]
        found.append([*losses.values(), *model.parameters(), *discriminator.parameters()])
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7, check_dtype=False)


def test_the_share_of_pixels_put_into_the_right_domain() -> None:
    """K = 2: a source of 2 + 1 pixels against a target of 1 + 2, of which one is masked."""
    answers = torch.tensor([[0.0, 0.0, -9.0], [3.0, -9.0, -9.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    answers = answers.reshape(1, 4, 1, 3)
    assert source_fraction(answers).item() == pytest.approx(1 / 3)
    mask = torch.tensor([[[True, False, False]]])
    assert source_fraction(answers, lambda size_hw: mask).item() == 0


@pytest.mark.parametrize("whose", ["source", "target", "both"])
def test_the_running_statistics_follow_the_pass_they_are_told_to(whose: str) -> None:
    class Normed(Pixel):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def features(self, frames: Tensor) -> Tensor:
            return self.feature_extractor(self.norm(frames.double().permute(0, 3, 1, 2)))

    model = Normed().double().train()
    discriminator = PixelDiscriminator(C, K).double()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (model, discriminator)]
    src, tgt = batch(1), batch(2)
    stage = AdversarialStage(bn_statistics=whose)
    method = make_method("fada", model, stage)  # type: ignore[arg-type]
    adversarial_step(model, discriminator, *optimizers, src, tgt, stage, method=method)  # type: ignore[arg-type]
    mean_s, mean_t = (b.frames_bhwc.double().mean((0, 1, 2)) for b in (src, tgt))
    want = {
        "source": 0.1 * mean_s,
        "target": 0.1 * mean_t,
        "both": 0.9 * 0.1 * mean_s + 0.1 * mean_t,
    }[whose]
    torch.testing.assert_close(model.norm.running_mean, want)


def test_bfloat16_pulls_a_trained_network_the_same_way(trained: Path, streets: Path) -> None:
    """The gradients of one step on rendered streets, in bfloat16 and in float32: cosine above 0.99."""

    def gradients(amp: bool) -> list[Tensor]:
        model = load_model(trained / "source" / "weights.safetensors")[0].train()
        torch.manual_seed(0)
        stage = AdversarialStage()
        method = make_method("fada", model, stage)
        discriminator = method.make_discriminator()
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (model, discriminator)]
        batches = []
        for name, folder, split in (("gta5", "gta5", "train"), ("cityscapes", "cityscapes", "val")):
            frames = open_dataset(name, streets / folder, split=split, space=model.spec.space)
            pictures, labels = zip(*(frames.pair(i) for i in range(2)), strict=True)
            stacked = [torch.from_numpy(np.stack(part)) for part in (pictures, labels)]
            batches.append(Batch(stacked[0], stacked[1].long(), (0, 1)))
        adversarial_step(model, discriminator, *optimizers, *batches, stage, method=method, amp=amp)
        return [
            p.grad.flatten()
            for m in (model, discriminator)
            for p in m.parameters()
            if p.grad is not None
        ]

    full, half = (torch.cat(gradients(amp)) for amp in (False, True))
    assert float(full @ half / full.norm() / half.norm()) > 0.99
    assert not torch.equal(full, half)
