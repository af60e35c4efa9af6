"""Each backbone against its published size and an independent implementation of its architecture.

The implementations here are plain functions of a dictionary of weights, written from the tables of
the papers.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.training.models.blocks import FrozenBatchNorm2d
from fada_deploy.training.models.segmentation import BACKBONES, ModelSpec, SegmentationModel

Weights = dict[str, Tensor]


def network(backbone: str, norm: str = "batch") -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(ModelSpec(backbone, CITYSCAPES_19, (64, 64), norm)).eval()


def randomized(backbone: str) -> tuple[nn.Module, Weights]:
    """Return a float64 backbone in which every parameter affects the output, and its weights."""
    module = network(backbone, "frozen").feature_extractor["backbone"].double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.weight.normal_(0, math.sqrt(2 / part.weight[0].numel()), generator=generator)
            elif isinstance(part, FrozenBatchNorm2d):
                # Small variances, so that an eps would change the result.
                part.running_var.uniform_(1e-3, 2.0, generator=generator)
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.weight.uniform_(0.02, 0.2, generator=generator)
            elif isinstance(part, nn.LayerNorm):
                part.weight.uniform_(0.5, 1.5, generator=generator)
            if isinstance(getattr(part, "bias", None), Tensor):
                part.bias.normal_(0, 0.1, generator=generator)
    return module, module.state_dict()


def random_input(height: int, width: int) -> Tensor:
    return torch.randn(
        1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def conv(
    w: Weights, name: str, x: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Tensor:
    """Apply a convolution that preserves the size at stride 1."""
    weight = w[f"{name}.weight"]
    pad = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, w.get(f"{name}.bias"), stride, pad, dilation, groups)


def batch_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    v = {
        k: w[f"{name}.{k}"][:, None, None]
        for k in ("weight", "bias", "running_mean", "running_var")
    }
    return (x - v["running_mean"]) / v["running_var"].sqrt() * v["weight"] + v["bias"]


def basic(w: Weights, p: str, x: Tensor, stride: int = 1) -> Tensor:
    """Apply a basic block without its last ReLU."""
    y = F.relu(batch_norm(w, f"{p}.bn1", conv(w, f"{p}.conv1", x, stride)))
    return batch_norm(w, f"{p}.bn2", conv(w, f"{p}.conv2", y)) + shortcut(w, p, x, stride)


def bottleneck(w: Weights, p: str, x: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Apply a bottleneck without its last ReLU."""
    y = F.relu(batch_norm(w, f"{p}.bn1", conv(w, f"{p}.conv1", x)))
    y = F.relu(batch_norm(w, f"{p}.bn2", conv(w, f"{p}.conv2", y, stride, dilation)))
    return batch_norm(w, f"{p}.bn3", conv(w, f"{p}.conv3", y)) + shortcut(w, p, x, stride)


def shortcut(w: Weights, p: str, x: Tensor, stride: int) -> Tensor:
    if f"{p}.downsample.0.weight" not in w:
        return x
    return batch_norm(w, f"{p}.downsample.1", conv(w, f"{p}.downsample.0", x, stride))


def bilinear(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


# Published parameter counts: torchvision's without its classifier of 1000 classes; VGG-16's
# features and two convolutions; SegFormer's 3,752,694 with 150 classes of 257 parameters each. The
# papers' 5.7, 7.6 and 3.7 M include a head of 19 classes.
WITHOUT_HEAD = {
    "resnet18": 11_689_512 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "resnet101": 44_549_160 - 2_049_000,
    "vgg16": 14_714_688 + 1024 * (512 * 9 + 1) + 1024 * (1024 * 9 + 1),
    "segformer-b0": 3_752_694 - 150 * 257,
}
WITH_HEAD = {"ddrnet23-slim": 5.7e6, "pidnet-s": 7.6e6, "segformer-b0": 3.7e6}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parameter_count_is_the_published_one(backbone: str) -> None:
    model = network(backbone)
    parameters = sum(p.numel() for p in model.feature_extractor.parameters())
    assert parameters == WITHOUT_HEAD.get(backbone, parameters)
    with_head = sum(p.numel() for p in model.parameters())
    assert with_head == pytest.approx(WITH_HEAD.get(backbone, with_head), rel=0.01)


@pytest.mark.parametrize("backbone", [b for b in BACKBONES if b != "resnet101"])
def test_features_and_logits_have_the_documented_shape_at_odd_multiples_of_8(backbone: str) -> None:
    model = network(backbone)
    stride = 4 if backbone == "segformer-b0" else 8
    frames = torch.zeros(2, 72, 104, 3, dtype=torch.uint8)
    with torch.no_grad():
        features = model.features(frames)
        logits = model.classifier(features)
    assert features.shape == (2, model.channels, 72 // stride, 104 // stride)
    assert logits.shape == (2, 19, 72 // stride, 104 // stride)


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))],
)
@torch.no_grad()
def test_resnets_match_the_deeplab_architecture(backbone: str, blocks: tuple[int, ...]) -> None:
    module, w = randomized(backbone)
    x = random_input(64, 72)
    y = F.relu(batch_norm(w, "bn1", F.conv2d(x, w["conv1.weight"], stride=2, padding=3)))
    y = F.max_pool2d(y, 3, 2, 1)
    # (layer, stride, dilation of the first block, dilation of the other blocks)
    for layer, stride, first, rest in ((1, 1, 1, 1), (2, 2, 1, 1), (3, 1, 1, 2), (4, 1, 2, 4)):
        y = F.relu(bottleneck(w, f"layer{layer}.0", y, stride, first))
        for b in range(1, blocks[layer - 1]):
            y = F.relu(bottleneck(w, f"layer{layer}.{b}", y, 1, rest))
    assert_equal(module(x), y)
    assert y.shape == (1, 2048, 8, 9)


@pytest.mark.parametrize(
    ("backbone", "blocks"), [("resnet18", (2, 2, 2, 2)), ("resnet50", (3, 4, 6, 3))]
)
@torch.no_grad()
def test_every_fourth_feature_equals_the_strided_imagenet_network(
    backbone: str, blocks: tuple[int, ...]
) -> None:
    module, w = randomized(backbone)
    block = basic if backbone == "resnet18" else bottleneck
    x = random_input(72, 104)
    y = F.relu(batch_norm(w, "bn1", F.conv2d(x, w["conv1.weight"], stride=2, padding=3)))
    y = F.max_pool2d(y, 3, 2, 1)
    for layer, count in enumerate(blocks, 1):
        for b in range(count):
            y = F.relu(block(w, f"layer{layer}.{b}", y, 2 if layer > 1 and b == 0 else 1))
    assert_equal(module(x)[:, :, ::4, ::4], y)


@torch.no_grad()
def test_vgg16_matches_the_released_architecture() -> None:
    module, w = randomized("vgg16")
    x = random_input(64, 72)
    y = x
    for stage in ((0, 2), (5, 7), (10, 12, 14)):
        for name in stage:
            y = F.relu(conv(w, str(name), y))
        y = F.max_pool2d(y, 2)
    for name, dilation in ((17, 1), (19, 1), (21, 1), (23, 2), (25, 2), (27, 2), (29, 4), (31, 4)):
        y = F.relu(conv(w, str(name), y, dilation=dilation))
    assert_equal(module(x), y)
    assert y.shape == (1, 1024, 8, 9) and len(w) == 2 * 15


def test_vgg16_activations_do_not_vanish_at_random_initialization() -> None:
    x = random_input(64, 64).float()
    for layer in list(network("vgg16").feature_extractor["backbone"])[:29]:
        x = layer(x)
    assert x.std() > 0.01


@torch.no_grad()
def test_pidnet_matches_the_published_architecture() -> None:
    module, w = randomized("pidnet-s")
    x = random_input(136, 200)

    def layer(name: str, y: Tensor, blocks: int = 2, stride: int = 1) -> Tensor:
        for b in range(blocks):
            y = basic(w, f"{name}.{b}", y if b == 0 else F.relu(y), stride if b == 0 else 1)
        return y

    def conv_norm(name: str, y: Tensor) -> Tensor:
        return batch_norm(w, f"{name}.1", conv(w, f"{name}.0", y))

    def norm_relu_conv(name: str, y: Tensor, first: int = 0, groups: int = 1) -> Tensor:
        return conv(
            w, f"{name}.{first + 2}", F.relu(batch_norm(w, f"{name}.{first}", y)), groups=groups
        )

    def pag(name: str, p: Tensor, i: Tensor) -> Tensor:
        product = conv_norm(f"{name}.f_x", p) * bilinear(conv_norm(f"{name}.f_y", i), p)
        sigma = 1 / (1 + torch.exp(-product.sum(1, keepdim=True)))
        return sigma * bilinear(i, p) + (1 - sigma) * p

    def pappm(y: Tensor) -> Tensor:
        local = norm_relu_conv("spp.scale0", y)
        pooled = [F.avg_pool2d(y, k, s, k // 2) for k, s in ((5, 2), (9, 4), (17, 8))]
        pooled.append(y.mean((2, 3), keepdim=True))
        scales = [
            local + bilinear(norm_relu_conv(f"spp.scale{i}", z, 1), y)
            for i, z in enumerate(pooled, 1)
        ]
        refined = norm_relu_conv("spp.scale_process", torch.cat(scales, 1), groups=4)
        context = norm_relu_conv("spp.compression", torch.cat((local, refined), 1))
        return context + norm_relu_conv("spp.shortcut", y)

    y = F.relu(batch_norm(w, "conv1.1", conv(w, "conv1.0", x, 2)))
    y = F.relu(batch_norm(w, "conv1.4", conv(w, "conv1.3", y, 2)))
    eighth = F.relu(layer("layer2", F.relu(layer("layer1", y)), stride=2))
    i = F.relu(layer("layer3", eighth, 3, 2))
    p = pag("pag3", layer("layer3_", eighth), conv_norm("compression3", i))
    d = basic(w, "layer3_d", eighth) + bilinear(conv_norm("diff3", i), eighth)
    i = F.relu(layer("layer4", i, 3, 2))
    p = pag("pag4", layer("layer4_", F.relu(p)), conv_norm("compression4", i))
    d = bottleneck(w, "layer4_d.0", F.relu(d)) + bilinear(conv_norm("diff4", i), eighth)
    p = bottleneck(w, "layer5_.0", F.relu(p))
    d = bottleneck(w, "layer5_d.0", F.relu(d))
    # Neither bottleneck of the context branch has a final ReLU.
    i = bilinear(pappm(bottleneck(w, "layer5.1", bottleneck(w, "layer5.0", i, 2))), eighth)
    edge = 1 / (1 + torch.exp(-d))
    expected = conv_norm("dfm.conv_p", (1 - edge) * i + p) + conv_norm("dfm.conv_i", i + edge * p)
    assert_equal(module(x), expected)


@torch.no_grad()
def test_segformer_matches_the_published_architecture() -> None:
    module, w = randomized("segformer-b0")
    x = random_input(72, 104)

    def layer_norm(name: str, y: Tensor, eps: float) -> Tensor:
        """Normalize over the channels of (B, C, h, w)."""
        centered = y - y.mean(1, keepdim=True)
        scaled = centered / (centered.square().mean(1, keepdim=True) + eps).sqrt()
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def linear(name: str, y: Tensor) -> Tensor:
        bias = w[f"{name}.bias"][:, None, None]
        return torch.einsum("dc,bchw->bdhw", w[f"{name}.weight"], y) + bias

    def attention(p: str, y: Tensor, heads: int, reduction: int) -> Tensor:
        reduced = y
        if reduction > 1:
            reduced = F.conv2d(y, w[f"{p}.sr.weight"], w[f"{p}.sr.bias"], reduction)
            reduced = layer_norm(f"{p}.norm", reduced, 1e-5)
        channels = y.shape[1]
        query = linear(f"{p}.q", y).reshape(1, heads, -1, y[0, 0].numel())
        key, value = (
            linear(f"{p}.kv", reduced).reshape(1, 2, heads, -1, reduced[0, 0].numel()).unbind(1)
        )
        scores = torch.einsum("bhcq,bhck->bhqk", query, key) / math.sqrt(channels / heads)
        mixed = torch.einsum("bhqk,bhck->bhcq", scores.softmax(-1), value)
        return linear(f"{p}.proj", mixed.reshape(y.shape))

    def feed_forward(p: str, y: Tensor) -> Tensor:
        hidden = linear(f"{p}.fc1", y)
        hidden = conv(w, f"{p}.dwconv.dwconv", hidden, groups=hidden.shape[1])
        return linear(f"{p}.fc2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))

    maps = []
    y = x
    for stage, (heads, reduction) in enumerate(((1, 8), (2, 4), (5, 2), (8, 1)), 1):
        y = conv(w, f"patch_embed{stage}.proj", y, 4 if stage == 1 else 2)
        y = layer_norm(f"patch_embed{stage}.norm", y, 1e-5)
        for b in range(2):
            p = f"block{stage}.{b}"
            y = y + attention(f"{p}.attn", layer_norm(f"{p}.norm1", y, 1e-6), heads, reduction)
            y = y + feed_forward(f"{p}.mlp", layer_norm(f"{p}.norm2", y, 1e-6))
        y = layer_norm(f"norm{stage}", y, 1e-6)
        maps.append(y)
    # The published order: project, resize, concatenate starting with the smallest, fuse.
    resized = [
        bilinear(linear(f"decode_head.linear_c{i}.proj", maps[i - 1]), maps[0])
        for i in (4, 3, 2, 1)
    ]
    fused = conv(w, "decode_head.linear_fuse.conv", torch.cat(resized, 1))
    assert_equal(module(x), F.relu(batch_norm(w, "decode_head.linear_fuse.bn", fused)))


@pytest.mark.parametrize("backbone", ["vgg16", "resnet18", "pidnet-s", "segformer-b0"])
def test_every_parameter_gets_a_gradient(backbone: str) -> None:
    model = network(backbone).train()
    model(torch.randint(0, 256, (2, 128, 128, 3), dtype=torch.uint8)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
