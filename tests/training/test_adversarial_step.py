"""One adversarial step against the published algorithm, written again in NumPy with gradients by hand.

On pictures of one pixel a 3×3 convolution with padding is a matrix: its middle tap. So the whole
step, networks and all, is a few matrix products whose gradients fit on this page.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fada_deploy.training.batches import Batch
from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.models.discriminator import PixelDiscriminator
from fada_deploy.training.optim import make_discriminator_optimiser
from fada_deploy.training.stages.adversarial import adversarial_step

K, C, B, T, CLIP, WEIGHT = 3, 5, 4, 1.8, 0.9, 0.001
F_LR, D_LR = 0.1, 0.01


class Pixel(nn.Module):
    """features = frames · Wf, logits = features · Wg."""

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = nn.Conv2d(3, C, 1, bias=False)
        self.classifier = nn.Conv2d(C, K, 1, bias=False)

    def features(self, frames: Tensor) -> Tensor:
        return self.feature_extractor(frames.double().permute(0, 3, 1, 2) / 255)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def encodings(logits: np.ndarray, kind: str) -> np.ndarray:
    if kind == "soft":
        return np.minimum(softmax(logits / T), CLIP)
    if kind == "hard":
        return np.eye(K)[logits.argmax(axis=1)]
    return np.ones((len(logits), 1))


class Discriminator:
    """The pixel discriminator as matrices, and its gradients."""

    def __init__(self, module: PixelDiscriminator) -> None:
        layers = [module.D[0], module.D[2], module.cls1, module.cls2]
        middle = [(m.weight.detach().numpy()[:, :, 1, 1].T.copy(), m.bias.detach().numpy().copy()) for m in layers]
        (self.w1, self.b1), (self.w2, self.b2) = middle[:2]
        self.w3 = np.concatenate([middle[2][0], middle[3][0]], axis=1)
        self.b3 = np.concatenate([middle[2][1], middle[3][1]])

    def loss(
        self, x: np.ndarray, a: np.ndarray, *, target: bool
    ) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
        """Return −mean Σ a log p, its gradient in x, and its gradients in the weights."""
        u1 = x @ self.w1 + self.b1
        h1 = np.where(u1 > 0, u1, 0.2 * u1)
        u2 = h1 @ self.w2 + self.b2
        h2 = np.where(u2 > 0, u2, 0.2 * u2)
        z = h2 @ self.w3 + self.b3
        both = np.zeros_like(z)
        both[:, a.shape[1] :] = a if target else 0
        both[:, : a.shape[1]] = 0 if target else a
        loss = -(both * np.log(softmax(z))).sum(axis=1).mean()
        # d/dz of −Σ a_k log softmax(z)_k, with a that need not sum to 1.
        dz = (softmax(z) * both.sum(axis=1, keepdims=True) - both) / len(x)
        du2 = (dz @ self.w3.T) * np.where(u2 > 0, 1, 0.2)
        du1 = (du2 @ self.w2.T) * np.where(u1 > 0, 1, 0.2)
        grads = {
            "w3": h2.T @ dz,
            "b3": dz.sum(0),
            "w2": h1.T @ du2,
            "b2": du2.sum(0),
            "w1": x.T @ du1,
            "b1": du1.sum(0),
        }
        return loss, du1 @ self.w1.T, grads


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    frames = torch.tensor(rng.integers(0, 256, (B, 1, 1, 3)), dtype=torch.uint8)
    return Batch(frames, torch.tensor(rng.integers(0, K, (B, 1, 1))), tuple(range(B)))


@pytest.mark.parametrize("kind", ["soft", "hard", "two-way"])
@pytest.mark.parametrize("full_resolution", [True, False])
def test_one_step_is_the_published_one(kind: str, full_resolution: bool) -> None:
    torch.manual_seed(0)
    stage = AdversarialStage(
        encodings=kind, temperature=T, clip=CLIP, adversarial_weight=WEIGHT, discriminator_lr=D_LR,
        full_resolution=full_resolution,
    )  # fmt: skip
    model = Pixel().double()
    with torch.no_grad():
        # Confident logits, so that the clip at 0.9 is at work.
        model.classifier.weight.mul_(20)
    outputs = 1 if kind == "two-way" else K
    discriminator = PixelDiscriminator(C, outputs).double()
    wf, wg = (m.weight.detach().numpy()[:, :, 0, 0].T.copy() for m in (model.feature_extractor, model.classifier))
    d = Discriminator(discriminator)
    optimiser = torch.optim.SGD(model.parameters(), lr=F_LR)
    d_optimiser = make_discriminator_optimiser(discriminator, stage)
    src, tgt = batch(1), batch(2)

    got = adversarial_step(model, discriminator, optimiser, d_optimiser, src, tgt, stage)  # type: ignore[arg-type]

    xs, xt = (b.frames_bhwc.numpy().reshape(B, 3) / 255 for b in (src, tgt))
    fs, ft = xs @ wf, xt @ wf
    zs, zt = fs @ wg, ft @ wg
    truth = np.eye(K)[src.labels.numpy().reshape(B)]
    seg = -(truth * np.log(softmax(zs / T))).sum(axis=1).mean()
    dzs = (softmax(zs / T) - truth) / T / B
    adv, dft, _ = d.loss(ft, encodings(zt, kind), target=False)
    loss_s, _, grad_s = d.loss(fs, encodings(zs, kind), target=False)
    loss_t, _, grad_t = d.loss(ft, encodings(zt, kind), target=True)
    if kind == "soft":
        assert (encodings(zs, kind) == CLIP).any(), "the example must hold a clipped encoding"

    names = ("segmentation", "adversarial", "discriminator_source", "discriminator_target")
    want = (seg, adv, 0.5 * loss_s, 0.5 * loss_t)
    np.testing.assert_allclose([got[n].item() for n in names], want, rtol=1e-9)

    # F and G: one plain SGD step on segmentation + λ · adversarial; D's own gradients stay out of it.
    new_wf = wf - F_LR * (xs.T @ (dzs @ wg.T) + WEIGHT * xt.T @ dft)
    np.testing.assert_allclose(model.feature_extractor.weight.detach().numpy()[:, :, 0, 0].T, new_wf, rtol=1e-7)
    new_wg = wg - F_LR * fs.T @ dzs
    np.testing.assert_allclose(model.classifier.weight.detach().numpy()[:, :, 0, 0].T, new_wg, rtol=1e-7)

    # D: gradients of half of either loss, on the features from before the step.
    grads = {n: 0.5 * (grad_s[n] + grad_t[n]) for n in grad_s}
    middle = {
        n: m.weight.grad.numpy()[:, :, 1, 1].T
        for n, m in {"w1": discriminator.D[0], "w2": discriminator.D[2]}.items()
    }
    middle["w3"] = np.concatenate(
        [m.weight.grad.numpy()[:, :, 1, 1].T for m in (discriminator.cls1, discriminator.cls2)], 1
    )
    for name, value in middle.items():
        np.testing.assert_allclose(value, grads[name], rtol=1e-7, atol=1e-15)
    # Adam's first step is lr · g / (|g| + ε).
    new_w1 = d.w1 - D_LR * grads["w1"] / (np.abs(grads["w1"]) + 1e-8)
    np.testing.assert_allclose(discriminator.D[0].weight.detach().numpy()[:, :, 1, 1].T, new_w1, rtol=1e-6)


def test_the_bonnet_takes_no_part_in_the_domain_losses() -> None:
    """Frames whose differing pixels are all under the mask give equal losses."""
    torch.manual_seed(0)
    ego = torch.zeros(6, 6, dtype=torch.bool)
    ego[4:] = True
    stage = AdversarialStage()

    def losses(seed: int) -> list[float]:
        torch.manual_seed(1)
        model = Pixel().double()
        # 1×1 kernels, so that a masked pixel is seen by no other.
        discriminator = nn.Conv2d(C, 2 * K, 1).double()
        base = torch.randint(0, 256, (2, 6, 6, 3), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
        base[:, 4:] = torch.randint(
            0, 256, (2, 2, 6, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
        )
        labels = torch.zeros(2, 6, 6, dtype=torch.long)
        labels[:, 4:] = 255
        masked = Batch(base, labels, (0, 1), ego)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        d_optimiser = torch.optim.SGD(discriminator.parameters(), lr=0.1)
        for group in (optimiser, d_optimiser):
            group.zero_grad()
        got = adversarial_step(model, discriminator, optimiser, d_optimiser, masked, masked, stage)  # type: ignore[arg-type]
        return [v.item() for v in got.values()]

    assert losses(3) == pytest.approx(losses(4), rel=1e-12)


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
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.0) for m in (model, discriminator)]
    src, tgt = batch(1), batch(2)
    stage = AdversarialStage(bn_statistics=whose)
    adversarial_step(model, discriminator, *optimisers, src, tgt, stage)  # type: ignore[arg-type]
    mean_s, mean_t = (b.frames_bhwc.double().mean((0, 1, 2)) for b in (src, tgt))
    want = {"source": 0.1 * mean_s, "target": 0.1 * mean_t, "both": 0.9 * 0.1 * mean_s + 0.1 * mean_t}[whose]
    torch.testing.assert_close(model.norm.running_mean, want)
