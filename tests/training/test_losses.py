"""The losses against the paper's formulae, written again in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fada_deploy.training import losses
from fada_deploy.training.methods import two_way_encodings

K, H, W = 4, 3, 5


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def normal(seed: int, channels: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (2, channels, H, W))


def test_segmentation_loss_divides_by_temperature_and_leaves_out_ignored_pixels() -> None:
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


def test_a_batch_without_labels_has_no_loss_and_no_gradient() -> None:
    logits = torch.tensor(normal(0, K), requires_grad=True)
    loss = losses.segmentation_loss(logits, torch.full((2, H, W), 255))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_soft_encodings_are_clipped_and_not_renormalised() -> None:
    logits = normal(2, K, scale=6.0)
    want = np.minimum(softmax(logits / 1.8), 0.9)
    got = losses.soft_encodings(torch.tensor(logits, requires_grad=True), temperature=1.8, clip=0.9)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)
    assert not got.requires_grad
    assert (want.sum(axis=1) < 0.99).any(), "the example must hold a clipped pixel"


def test_hard_encodings_are_one_hot_of_the_arg_max() -> None:
    logits = normal(3, K)
    want = (logits == logits.max(axis=1, keepdims=True)).astype(float)
    np.testing.assert_array_equal(losses.hard_encodings(torch.tensor(logits)).numpy(), want)


@pytest.mark.parametrize("target", [False, True])
def test_domain_loss_holds_each_domain_against_its_own_half_of_one_softmax(target: bool) -> None:
    domain, encodings = normal(4, 2 * K), np.minimum(softmax(normal(5, K)), 0.9)
    ignore = np.random.default_rng(6).random((2, H, W)) < 0.3
    log_p = np.log(softmax(domain))
    half = log_p[:, K:] if target else log_p[:, :K]
    want = -(encodings * half).sum(axis=1)[~ignore].mean()
    got = losses.domain_loss(
        torch.tensor(domain), torch.tensor(encodings), target=target, ignore=torch.tensor(ignore)
    )
    assert got.item() == pytest.approx(want, rel=1e-12)


def test_one_class_of_ones_is_the_two_way_discriminator() -> None:
    domain = normal(7, 2)
    want = np.log1p(np.exp(domain[:, 1] - domain[:, 0])).mean()  # softplus: binary cross entropy of "source"
    encodings = two_way_encodings(torch.tensor(normal(8, K)), (H, W))
    got = losses.domain_loss(torch.tensor(domain), encodings, target=False)
    assert got.item() == pytest.approx(want, rel=1e-12)


def test_a_discriminator_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="6 domain outputs do not fit 4 classes"):
        losses.domain_loss(torch.zeros(1, 6, 2, 2), torch.zeros(1, 4, 2, 2), target=True)
