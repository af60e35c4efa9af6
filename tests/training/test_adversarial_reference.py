"""One adversarial step of every method against the published algorithm in NumPy, in float64.

Forward and backward passes are written out here and share only the initial weights with the
package. Images are not square, source and target differ in size, convolutions are strided and
padded, and upsampling has align_corners.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy_networks import Array, conv, discriminate, softmax, upsampled
from torch import Tensor, nn

from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.models.segmentation import ModelSpec
from fada_deploy.training.stage_config import AdversarialStage
from fada_deploy.training.stages.adversarial import adversarial_step

K, C, B, T, CLIP, WEIGHT = 3, 4, 2, 1.8, 0.9, 0.001
SRC_HW, TGT_HW = (32, 40), (40, 32)
METHODS = ["fada", "fada-hard", "feature", "adaptsegnet", "advent"]


# --- the published losses


def pooled(frames: Array) -> Array:
    """Return the mean of each 2×2 block of frames (B, H, W, 3), as (B, 3, H/2, W/2) in 0..1."""
    x = frames.transpose(0, 3, 1, 2) / 255
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))


def domain_loss(z: Array, a: Array, *, target: bool) -> tuple[float, Array]:
    """Return −mean over pixels of Σ_k a_k log softmax(z)[d, k], and its gradient in z."""
    k = a.shape[1]
    both = np.zeros_like(z)
    both[:, k:] = a if target else 0
    both[:, :k] = 0 if target else a
    p, pixels = softmax(z), z.shape[0] * z.shape[2] * z.shape[3]
    return -(both * np.log(p)).sum() / pixels, (p * both.sum(1, keepdims=True) - both) / pixels


def binary_loss(z: Array, *, target: bool) -> tuple[float, Array]:
    """Return the binary cross entropy of one logit, source 0 and target 1, and its gradient."""
    p = 1 / (1 + np.exp(-z))
    return -np.log(p if target else 1 - p).mean(), (p - float(target)) / z.size


def discriminator_input(
    method: str, logits: Array, features: Array, hw: tuple[int, int]
) -> tuple[Array, Callable]:
    """Return the input of D, and a function from its gradient to those of logits and features."""
    if method in ("fada", "fada-hard", "feature"):
        return features, lambda d: (np.zeros_like(logits), d)
    up, back = upsampled(logits, hw)
    p = softmax(up)
    if method == "adaptsegnet":
        y, dp_of = p, lambda d: d
    else:
        y, dp_of = -p * np.log(p) / np.log(K), lambda d: d * -(np.log(p) + 1) / np.log(K)

    def backward(d: Array) -> tuple[Array, Array]:
        dp = dp_of(d)
        return back(p * (dp - (dp * p).sum(1, keepdims=True))), np.zeros_like(features)

    return y, backward


def reference_loss(
    method: str, z: Array, logits: Array, hw: tuple[int, int], *, target: bool
) -> tuple[float, Array]:
    """Return the domain loss of the D logits `z`, and its gradient in them."""
    if method in ("adaptsegnet", "advent"):
        return binary_loss(z, target=target)
    up, back = upsampled(z, hw)
    at_input, _ = upsampled(logits, hw)
    if method == "fada":
        a = np.minimum(softmax(at_input / T), CLIP)
    elif method == "fada-hard":
        a = np.eye(K)[at_input.argmax(1)].transpose(0, 3, 1, 2)
    else:
        a = np.ones((len(z), 1, *hw))
    loss, d = domain_loss(up, a, target=target)
    return loss, back(d)


class SmallNetwork(nn.Module):
    """F: 2×2 average pooling and a 3×3 convolution of stride 2; G: a 1×1 convolution; float64."""

    def __init__(self) -> None:
        super().__init__()
        space = LabelSpace("three", CITYSCAPES_19.classes[:K])
        self.spec = ModelSpec("resnet101", space, SRC_HW)
        self.channels = C
        self.feature_extractor = nn.Conv2d(3, C, 3, 2, padding=1)
        self.classifier = nn.Conv2d(C, K, 1)
        self.gradients: list[Tensor] = []

    def features(self, frames: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(frames.double().permute(0, 3, 1, 2) / 255, 2)
        features = self.feature_extractor(x)
        features.register_hook(self.gradients.append)
        return features


def batch(seed: int, hw: tuple[int, int]) -> Batch:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (B, *hw, 3), dtype=np.uint8)
    labels = rng.integers(0, K, (B, *hw))
    labels[:, :5] = 255
    return Batch(torch.from_numpy(frames), torch.from_numpy(labels), tuple(range(B)))


def conv_weights(module: nn.Module) -> list[tuple[Array, Array, int]]:
    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return [
        (m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy(), m.stride[0])
        for m in convs
    ]


def assert_close(got: Array, want: Array) -> None:
    """Require a maximum difference of 1e-9 relative to the largest value."""
    assert np.abs(got - want).max() <= 1e-9 * np.abs(want).max()


@pytest.mark.parametrize("name", METHODS)
def test_step_equals_reference(name: str) -> None:
    torch.manual_seed(0)
    stage = AdversarialStage(temperature=T, clip=CLIP, adversarial_weight=WEIGHT)
    model = SmallNetwork().double()
    with torch.no_grad():
        model.classifier.weight.mul_(60)  # confident predictions, so that the encodings are clipped
    method = make_method(name, MethodContext(model, stage, None, None))  # type: ignore[arg-type]
    discriminator = method.discriminator.double()
    (wf, bf, _), (wg, bg, _) = conv_weights(model)
    d_layers = conv_weights(discriminator)
    heads = 1 if name in ("adaptsegnet", "advent") else 2
    src, tgt = batch(1, SRC_HW), batch(2, TGT_HW)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, discriminator)]

    aligner = Aligner(method, optimizers[1], stage)
    got = adversarial_step(model, optimizers[0], aligner, src, tgt)  # type: ignore[arg-type]

    outputs = []
    for b in (src, tgt):
        f, back_f = conv(pooled(b.frames_bhwc.numpy()), wf, bf, 2, 1)
        z, back_g = conv(f, wg, bg, 1, 0)
        outputs.append((f, z, back_f, back_g))
    (fs, zs, back_fs, back_gs), (ft, zt, back_ft, back_gt) = outputs

    # Segmentation loss on the labeled pixels of the source.
    temperature = T if heads == 2 else 1.0
    up, back = upsampled(zs, SRC_HW)
    labels = src.labels.numpy()
    truth = np.eye(K)[np.minimum(labels, K - 1)].transpose(0, 3, 1, 2) * (labels != 255)[:, None]
    p = softmax(up / temperature)
    segmentation = -(truth * np.log(p)).sum() / truth.sum()
    dz = back((p * truth.sum(1, keepdims=True) - truth) / temperature / truth.sum())
    df_seg, dwg_seg, dbg_seg = back_gs(dz)
    _, dwf_seg, dbf_seg = back_fs(df_seg)

    # Adversarial loss on the target, with the domain label source.
    x, back_input = discriminator_input(name, zt, ft, TGT_HW)
    d_logits, back_d = discriminate(d_layers, heads, x)
    adversarial, d = reference_loss(name, d_logits, zt, TGT_HW, target=False)
    dzt, dft = back_input(back_d(WEIGHT * d)[0])
    through_g, dwg_adv, dbg_adv = back_gt(dzt)
    dft = dft + through_g
    _, dwf_adv, dbf_adv = back_ft(dft)

    # Discriminator loss on both domains, with the outputs of F and G before their update.
    d_losses, d_grads = [], [(np.zeros_like(w), np.zeros_like(b)) for w, b, _ in d_layers]
    for f, z, hw, target in ((fs, zs, SRC_HW, False), (ft, zt, TGT_HW, True)):
        x, _ = discriminator_input(name, z, f, hw)
        d_logits, back_d = discriminate(d_layers, heads, x)
        loss, d = reference_loss(name, d_logits, z, hw, target=target)
        d_losses.append(0.5 * loss)
        d_grads = [
            (a + e, b + g) for (a, b), (e, g) in zip(d_grads, back_d(0.5 * d)[1], strict=True)
        ]

    names = ("segmentation", "adversarial", "discriminator_source", "discriminator_target")
    want = np.array([segmentation, adversarial, *d_losses])
    assert_close(np.array([got[n].item() for n in names]), want)
    # Gradients of the features: segmentation loss on the source, adversarial loss on the target.
    assert_close(model.gradients[0].numpy(), df_seg)
    assert_close(model.gradients[1].numpy(), dft)
    for parameter, gradient in (
        (model.feature_extractor.weight, dwf_seg + dwf_adv),
        (model.feature_extractor.bias, dbf_seg + dbf_adv),
        (model.classifier.weight, dwg_seg + dwg_adv),
        (model.classifier.bias, dbg_seg + dbg_adv),
    ):
        assert_close(parameter.grad.numpy(), gradient)
    convs = [m for m in discriminator.modules() if isinstance(m, nn.Conv2d)]
    for module, (dw, db) in zip(convs, d_grads, strict=True):
        assert_close(module.weight.grad.numpy(), dw)
        assert_close(module.bias.grad.numpy(), db)
    # Weights after the update.
    assert_close(model.classifier.weight.detach().numpy(), wg - 0.1 * (dwg_seg + dwg_adv))
    assert_close(convs[0].weight.detach().numpy(), d_layers[0][0] - 0.1 * d_grads[0][0])
    if name == "fada":
        clipped = softmax(upsampled(zt, TGT_HW)[0] / T) > CLIP
        assert clipped.any() and not clipped.all(), "the example must contain clipped encodings"
