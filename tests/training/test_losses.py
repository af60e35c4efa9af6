"""Losses against the paper's equations in NumPy, and against autograd at full resolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.training import interpolation, losses
from fada_deploy.training.data.loader import Batch

K, H, W = 4, 3, 5
LOW, HIGH = (5, 7), (19, 26)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def normal(
    seed: int, channels: int, scale: float = 2.0, hw: tuple[int, int] = (H, W)
) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (2, channels, *hw))


def channels_last(array: np.ndarray) -> Tensor:
    """Return (B, C, H, W) as a (B, H, W, C) tensor, the layout of encodings."""
    return torch.tensor(array).permute(0, 2, 3, 1)


def test_segmentation_loss_divides_by_temperature_and_skips_ignored_pixels() -> None:
    logits = normal(0, K)
    labels = np.random.default_rng(1).choice([0, 1, 2, 3, 255], (2, H, W))
    total, count = 0.0, 0
    probability = softmax(logits / 1.8)
    for b, y, x in np.ndindex(2, H, W):
        if labels[b, y, x] != 255:
            total -= np.log(probability[b, labels[b, y, x], y, x])
            count += 1
    got = losses.segmentation_loss(torch.tensor(logits), torch.tensor(labels), temperature=1.8)
    assert got.item() == pytest.approx(total / count, rel=1e-12)


def test_batch_without_labels_has_zero_loss_and_zero_gradient() -> None:
    logits = torch.tensor(normal(0, K), requires_grad=True)
    loss = losses.segmentation_loss(logits, torch.full((2, H, W), 255))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_soft_encodings_are_clipped_and_not_renormalized() -> None:
    logits = normal(2, K, scale=6.0)
    want = np.minimum(softmax(logits / 1.8), 0.9)
    got = losses.soft_encodings(channels_last(logits), temperature=1.8, clip=0.9)
    np.testing.assert_allclose(got.permute(0, 3, 1, 2).numpy(), want, rtol=1e-12)
    assert (want.sum(axis=1) < 0.99).any(), "the example must contain a clipped pixel"


def test_hard_encodings_are_one_hot_of_argmax() -> None:
    logits = normal(3, K)
    want = (logits == logits.max(axis=1, keepdims=True)).astype(float)
    np.testing.assert_array_equal(
        losses.hard_encodings(channels_last(logits)).permute(0, 3, 1, 2).numpy(), want
    )


def test_domain_loss_compares_each_domain_with_its_half_of_one_softmax() -> None:
    domain, logits = normal(4, 2 * K), normal(5, K)
    ignore = np.random.default_rng(6).random((2, H, W)) < 0.3
    encodings, log_p = np.minimum(softmax(logits), 0.9), np.log(softmax(domain))
    want = [
        -(encodings * half).sum(axis=1)[~ignore].mean() for half in (log_p[:, :K], log_p[:, K:])
    ]

    def encode(z: Tensor) -> Tensor:
        return losses.soft_encodings(z, temperature=1.0, clip=0.9)

    got = losses.domain_loss(
        torch.tensor(domain), torch.tensor(logits), encode, (H, W), torch.tensor(ignore)
    )
    np.testing.assert_allclose(
        [got.loss_as_source.item(), got.loss_as_target.item()], want, rtol=1e-12
    )


def test_without_encodings_equals_binary_cross_entropy() -> None:
    domain = normal(7, 2)
    # softplus(target - source) is the binary cross entropy of the label "source".
    want = np.log1p(np.exp(domain[:, 1] - domain[:, 0])).mean()
    got = losses.domain_loss(torch.tensor(domain), torch.tensor(normal(8, K)), None, (H, W))
    assert got.loss_as_source.item() == pytest.approx(want, rel=1e-12)


def test_rejects_discriminator_with_wrong_number_of_channels() -> None:
    with pytest.raises(ValueError, match="6 discriminator channels do not match 4 classes"):
        losses.domain_loss(
            torch.zeros(1, 6, 2, 2), torch.zeros(1, 4, 2, 2), losses.hard_encodings, (2, 2)
        )


def full_resolution(z: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Interpolate with PyTorch, in float64 with matrices.

    The gradient of PyTorch's interpolation is only accurate to 8 digits.
    """
    if z.dtype == torch.float32:
        return F.interpolate(z, size=size_hw, mode="bilinear", align_corners=True)
    rows, columns = (
        torch.tensor(interpolation_matrix(n, m)) for n, m in zip(z.shape[2:], size_hw, strict=True)
    )
    return rows @ z @ columns.T


def interpolation_matrix(n_in: int, n_out: int) -> np.ndarray:
    at = np.linspace(0, n_in - 1, n_out)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n_in)))


SIZES = [
    (LOW, HIGH),
    ((1, 7), (4, 26)),
    ((5, 1), (19, 3)),
    (HIGH, HIGH),
    ((8, 9), (5, 4)),
    ((5, 7), (1, 1)),
]


@pytest.fixture(params=[40, 1 << 18], ids=["one row per chunk", "one chunk"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interpolation._MAX_CHUNK_VALUES, "cpu", request.param)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("low", "high"), SIZES)
@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_segmentation_loss_equals_autograd_at_full_resolution(
    low: tuple[int, int], high: tuple[int, int], precision: torch.dtype, weighted: bool
) -> None:
    logits = torch.tensor(normal(0, K, hw=low), dtype=precision)
    class_weights = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=precision) if weighted else None
    labels = torch.tensor(np.random.default_rng(1).choice([0, 1, 2, 3, 255], (2, *high)))
    batch = Batch(torch.empty(0), labels, (0, 1), class_weights=class_weights)
    results = []
    for loss_of in (
        lambda z: F.cross_entropy(
            full_resolution(z, high) / 1.8, labels, class_weights, ignore_index=255
        ),
        lambda z: losses.segmentation_loss(z, labels, temperature=1.8, weights=batch.pixel_weights),
    ):
        z = logits.clone().requires_grad_()
        loss = loss_of(z)
        (3 * loss).backward()
        results.append((loss.detach(), z.grad))
    tolerance = 1e-12 if precision == torch.float64 else 1e-5
    assert_close(results[1][0], results[0][0], tolerance)
    assert_close(results[1][1], results[0][1], tolerance)


ENCODINGS: dict[str, tuple[losses.Encode, Callable[[Tensor], Tensor]]] = {
    "soft": (
        lambda z: losses.soft_encodings(z, temperature=1.8, clip=0.9),
        lambda z: (z / 1.8).softmax(1).clamp(max=0.9),
    ),
    "hard": (losses.hard_encodings, lambda z: F.one_hot(z.argmax(1), K).permute(0, 3, 1, 2).to(z)),
    "domain only": (None, lambda z: torch.ones_like(z[:, :1])),
}


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(("low", "high"), SIZES)
@pytest.mark.parametrize("kind", ENCODINGS)
@pytest.mark.parametrize("masked", [False, True])
def test_domain_loss_equals_autograd_at_full_resolution(
    low: tuple[int, int], high: tuple[int, int], kind: str, masked: bool
) -> None:
    encode, reference_encode = ENCODINGS[kind]
    classes = K if encode else 1
    d_logits, logits = (
        torch.tensor(normal(4, 2 * classes, hw=low)),
        torch.tensor(normal(5, K, 6.0, hw=low)),
    )
    valid = torch.tensor(np.random.default_rng(6).random((2, *high)) < 0.7)
    valid[0, 0, 0] = True
    valid = valid if masked else torch.ones_like(valid)
    got = losses.domain_loss(d_logits, logits, encode, high, ~valid if masked else None)
    for half, loss, gradient in (
        (0, got.loss_as_source, got.grad_as_source),
        (1, got.loss_as_target, got.grad_as_target),
    ):
        z = d_logits.clone().requires_grad_()
        log_p = full_resolution(z, high).log_softmax(1).chunk(2, 1)[half]
        want = -(reference_encode(full_resolution(logits, high)) * log_p).sum(1)[valid].mean()
        want.backward()
        assert_close(loss, want.detach(), 1e-12)
        assert_close(gradient, z.grad, 1e-11)


def test_half_precision_logits_give_float32_loss_and_half_precision_gradient() -> None:
    logits = torch.tensor(normal(0, K, hw=LOW)).bfloat16()
    labels = torch.zeros((2, *HIGH), dtype=torch.long)
    z = logits.clone().requires_grad_()
    loss = losses.segmentation_loss(z, labels)
    loss.backward()
    want = F.cross_entropy(full_resolution(logits.float(), HIGH), labels)
    assert loss.dtype == torch.float32 and z.grad is not None and z.grad.dtype == torch.bfloat16
    assert_close(loss.detach(), want, 1e-6)
    got = losses.domain_loss(torch.tensor(normal(4, 2, hw=LOW)).bfloat16(), logits, None, HIGH)
    assert got.loss_as_source.dtype == torch.float32 and got.grad_as_source.dtype == torch.bfloat16


def assert_close(got: Tensor, want: Tensor | None, tolerance: float) -> None:
    assert want is not None
    assert (got - want).abs().max() <= tolerance * want.abs().max()
