"""Parts common to all networks: normalization, heads, frozen norms, discriminators, checks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.training.models.blocks import BasicBlock, Bottleneck, FrozenBatchNorm2d
from fada_deploy.training.models.deeplab import ASPPClassifier
from fada_deploy.training.models.discriminator import PixelDiscriminator
from fada_deploy.training.models.segmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelSpec,
    SegmentationModel,
)


def network(backbone: str, size_hw: tuple[int, int], norm: str = "batch") -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(ModelSpec(backbone, CITYSCAPES_19, size_hw, norm)).eval()


def test_model_is_normalization_features_and_classifier() -> None:
    model = network("ddrnet23-slim", (64, 72))
    frames = torch.randint(0, 256, (2, 64, 72, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    rgb = (frames.permute(0, 3, 1, 2) / 255 - mean) / std
    torch.testing.assert_close(model.normalize(frames), rgb, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        features = model.features(frames)
        assert features.shape == (2, 128, 8, 9)
        assert torch.equal(model(frames), model.classifier(features))


def test_aspp_classifier_sums_four_dilations() -> None:
    torch.manual_seed(0)
    classifier, features = ASPPClassifier(6, 3, nn.BatchNorm2d), torch.randn(1, 6, 30, 40)
    state = classifier.state_dict()
    logits = sum(
        F.conv2d(
            features,
            state[f"conv2d_list.{i}.weight"],
            state[f"conv2d_list.{i}.bias"],
            padding=r,
            dilation=r,
        )
        for i, r in enumerate((6, 12, 18, 24))
    )
    torch.testing.assert_close(classifier(features), logits)


def test_frozen_batch_norm_has_no_eps_and_loads_torchvision_keys() -> None:
    frozen = FrozenBatchNorm2d(2)
    state = nn.BatchNorm2d(2).state_dict()
    state["running_var"] = torch.tensor([1e-6, 4.0])
    frozen.load_state_dict(state)
    y = frozen(torch.full((1, 2, 1, 1), 2.0))
    torch.testing.assert_close(y.flatten(), torch.tensor([2e3, 1.0]))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_folding_frozen_norms_changes_neither_outputs_nor_gradients(
    block: type[BasicBlock | Bottleneck],
) -> None:
    """Only training mode folds the norm into the convolution; in float64 both modes agree."""
    torch.manual_seed(0)
    layer = block(6, 5, FrozenBatchNorm2d, stride=2, dilations=(2, 2)).double()
    for norm in (m for m in layer.modules() if isinstance(m, FrozenBatchNorm2d)):
        for buffer in norm.buffers():
            buffer.uniform_(0.5, 2)
    x = torch.randn(2, 6, 8, 10, dtype=torch.float64, requires_grad=True)
    results = []
    for training in (True, False):
        out = layer.train(training)(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])))
    for folded, separate in zip(*results, strict=True):
        torch.testing.assert_close(folded, separate, rtol=1e-10, atol=1e-10)


def test_pixel_discriminator_has_the_released_names_and_two_halves() -> None:
    d = PixelDiscriminator(16, 3)
    assert set(d.state_dict()) == {
        f"{m}.{p}" for m in ("D.0", "D.2", "cls1", "cls2") for p in ("weight", "bias")
    }
    with torch.no_grad():
        d.cls1.bias += 100
    out = d(torch.zeros(1, 16, 4, 5))
    assert out.shape == (1, 6, 4, 5) and (out[:, :3] > 50).all() and (out[:, 3:] < 50).all()


def test_invalid_size_and_unknown_backbone_raise_usage_error() -> None:
    with pytest.raises(UsageError, match=r"100x64.*multiples of 8.*nearest size is 96x64"):
        network("ddrnet23-slim", (64, 100))
    with pytest.raises(
        UsageError, match=r"unknown backbone 'resnet1'; .*resnet101, .*ddrnet23-slim"
    ):
        network("resnet1", (64, 64))
