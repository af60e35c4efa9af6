"""The networks against the papers' sizes and an independent build of the published layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fada_deploy.common.errors import UsageError
from fada_deploy.common.labels import CITYSCAPES_19
from fada_deploy.training.models.blocks import FrozenBatchNorm2d
from fada_deploy.training.models.discriminator import PixelDiscriminator
from fada_deploy.training.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, ModelSpec, Segmenter


def network(backbone: str, size_hw: tuple[int, int], norm: str = "batch") -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(ModelSpec(backbone, CITYSCAPES_19, size_hw, norm)).eval()


def test_ddrnet_has_its_papers_size() -> None:
    model = network("ddrnet23-slim", (64, 64))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == pytest.approx(5.7e6, rel=0.01)
    features = model.features(torch.zeros(1, 64, 128, 3, dtype=torch.uint8))
    assert features.shape == (1, 128, 8, 16)


def test_resnet101_has_torchvisions_names_and_size() -> None:
    backbone = network("resnet101", (64, 64)).feature_extractor["backbone"]
    # torchvision's ResNet-101 has 44,549,160 parameters, 2,049,000 of them in its classifier.
    assert sum(p.numel() for p in backbone.parameters()) == 44_549_160 - 2_049_000
    names = set(backbone.state_dict())
    assert {
        "conv1.weight",
        "layer1.0.downsample.0.weight",
        "layer3.22.bn3.running_var",
        "layer4.2.conv3.weight",
    } <= names


def published_resnet101(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """DeepLab-v2's ResNet-101 from the published table: (blocks, stride, first dilation, dilation)."""

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        w = {k: weights[f"{name}.{k}"][:, None, None] for k in ("weight", "bias", "running_mean", "running_var")}
        return (x - w["running_mean"]) / w["running_var"].sqrt() * w["weight"] + w["bias"]

    x = F.relu(normed(F.conv2d(x, weights["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, blocks, stride, first, rest in (
        (1, 3, 1, 1, 1),
        (2, 4, 2, 1, 1),
        (3, 23, 1, 1, 2),
        (4, 3, 1, 2, 4),
    ):
        for b in range(blocks):
            p, s, d = f"layer{layer}.{b}", stride if b == 0 else 1, first if b == 0 else rest
            y = F.relu(normed(F.conv2d(x, weights[f"{p}.conv1.weight"]), f"{p}.bn1"))
            y = F.relu(
                normed(F.conv2d(y, weights[f"{p}.conv2.weight"], stride=s, padding=d, dilation=d), f"{p}.bn2")
            )
            y = normed(F.conv2d(y, weights[f"{p}.conv3.weight"]), f"{p}.bn3")
            if b == 0:
                x = normed(F.conv2d(x, weights[f"{p}.downsample.0.weight"], stride=s), f"{p}.downsample.1")
            x = F.relu(x + y)
    return x


@pytest.mark.slow
def test_resnet101_is_the_published_layout_and_its_classifier_sums_four_rates() -> None:
    model = network("resnet101", (64, 72), "frozen")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                # Small variances, where an eps would show.
                module.running_var.uniform_(1e-3, 2.0, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.weight.uniform_(0.02, 0.2, generator=generator)
    model = model.double()
    frames = torch.randint(0, 256, (1, 64, 72, 3), generator=generator, dtype=torch.uint8)
    rgb = (frames.permute(0, 3, 1, 2) / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(
        IMAGENET_STD
    )[:, None, None]
    # The normalisation is float32 by design; feed both the same values.
    x = model.normalise(frames)
    torch.testing.assert_close(x.float(), rgb, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        want = published_resnet101(model.feature_extractor["backbone"].state_dict(), x.double())
        got = model.feature_extractor["backbone"](x.double())
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        assert got.shape == (1, 2048, 8, 9)
        state = model.classifier.state_dict()
        logits = sum(
            F.conv2d(got, state[f"conv2d_list.{i}.weight"], state[f"conv2d_list.{i}.bias"], padding=r, dilation=r)
            for i, r in enumerate((6, 12, 18, 24))
        )
        torch.testing.assert_close(model.classifier(got), logits)


def test_frozen_statistics_have_no_eps_and_take_torchvisions_keys() -> None:
    frozen = FrozenBatchNorm2d(2)
    state = nn.BatchNorm2d(2).state_dict()
    state["running_var"] = torch.tensor([1e-6, 4.0])
    frozen.load_state_dict(state)
    y = frozen(torch.full((1, 2, 1, 1), 2.0))
    torch.testing.assert_close(y.flatten(), torch.tensor([2e3, 1.0]))


def test_discriminator_has_the_released_names_and_two_halves() -> None:
    d = PixelDiscriminator(16, 3)
    assert set(d.state_dict()) == {f"{m}.{p}" for m in ("D.0", "D.2", "cls1", "cls2") for p in ("weight", "bias")}
    with torch.no_grad():
        d.cls1.bias += 100
    out = d(torch.zeros(1, 16, 4, 5))
    assert out.shape == (1, 6, 4, 5) and (out[:, :3] > 50).all() and (out[:, 3:] < 50).all()


def test_sizes_and_names_that_do_not_exist_are_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"cannot take 100x64.*multiples of 8.*nearest is 96x64"):
        network("ddrnet23-slim", (64, 100))
    with pytest.raises(UsageError, match="no backbone 'resnet1'; there are resnet101, ddrnet23-slim"):
        network("resnet1", (64, 64))
