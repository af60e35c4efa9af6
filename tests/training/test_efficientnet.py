"""EfficientNet-Lite0 against an independent implementation of its published table.

The weights file is simulated: published names and shapes, random values, some dead channels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.errors import ModelError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.to_onnx import write_onnx
from fada_deploy.training.models.blocks import NORMS
from fada_deploy.training.models.efficientnet import (
    EfficientNetLite,
    SameConv2d,
    efficientnet_lite0,
)
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.weights.pretrained import input_normalization, load_backbone

NAME = "efficientnet-lite0"
# Kernel, stride, expansion, input and output channels of the sixteen blocks.
TABLE = [
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24), (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40), (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80), (3, 1, 6, 80, 80), (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112), (5, 1, 6, 112, 112), (5, 1, 6, 112, 112),
    (5, 2, 6, 112, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192),
    (3, 1, 6, 192, 320),
]  # fmt: skip
HEAD = ("_conv_head.", "_bn1.", "_fc.")


def published_file() -> dict[str, Tensor]:
    """Return random weights with the published names and shapes; some channels are dead."""
    generator = torch.Generator().manual_seed(1)
    weights: dict[str, Tensor] = {}

    def conv(name: str, outer: int, inner: int, kernel: int) -> None:
        spread = torch.full((outer, 1, 1, 1), (2 / (inner * kernel**2)) ** 0.5)
        # As in the published file, one channel is dead, and one is so weak that the eps of its norm
        # matters.
        spread[:2, 0, 0, 0] *= torch.tensor([0.0, 0.03])
        weights[f"{name}.weight"] = spread * torch.randn(
            outer, inner, kernel, kernel, generator=generator
        )

    def norm(name: str, channels: int) -> None:
        variance = torch.rand(channels, generator=generator) + 0.5
        variance[:2] = torch.tensor([0.0, 1e-3])
        weights[f"{name}.weight"] = torch.rand(channels, generator=generator) + 0.5
        weights[f"{name}.bias"] = 0.5 * torch.randn(channels, generator=generator)
        weights[f"{name}.running_mean"] = (
            0.1 * variance * torch.randn(channels, generator=generator)
        )
        weights[f"{name}.running_var"] = variance
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    for i, (kernel, _, expansion, inner, outer) in enumerate(TABLE):
        wide = inner * expansion
        if expansion > 1:
            conv(f"_blocks.{i}._expand_conv", wide, inner, 1)
            norm(f"_blocks.{i}._bn0", wide)
        conv(f"_blocks.{i}._depthwise_conv", wide, 1, kernel)
        norm(f"_blocks.{i}._bn1", wide)
        conv(f"_blocks.{i}._project_conv", outer, wide, 1)
        norm(f"_blocks.{i}._bn2", outer)
    conv("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    weights["_fc.weight"] = torch.randn(1000, 1280, generator=generator)
    weights["_fc.bias"] = torch.zeros(1000)
    return weights


def published_encoder(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Return the outputs of the sixteen blocks."""

    def conv(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel = weight.shape[-1]
        # TensorFlow's "same" padding: ⌈n / stride⌉ outputs, an odd pixel goes at the end.
        missing = [max(0, (-(-n // stride) - 1) * stride + kernel - n) for n in x.shape[-2:]]
        (top, left), (bottom, right) = zip(*((m // 2, m - m // 2) for m in missing), strict=True)
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, stride=stride, groups=groups)

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, bias = (
            weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, scale, bias, eps=1e-3)

    x = F.relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    outputs = []
    for i, (_, stride, expansion, inner, outer) in enumerate(TABLE):
        p, y = f"_blocks.{i}", x
        if expansion > 1:
            y = F.relu6(norm(conv(y, f"{p}._expand_conv"), f"{p}._bn0"))
        y = F.relu6(norm(conv(y, f"{p}._depthwise_conv", stride, inner * expansion), f"{p}._bn1"))
        y = norm(conv(y, f"{p}._project_conv"), f"{p}._bn2")
        x = x + y if stride == 1 and inner == outer else y
        outputs.append(x)
    return outputs


def load_network(norm: str, weights: dict[str, Tensor]) -> EfficientNetLite:
    torch.manual_seed(0)
    network = efficientnet_lite0(NORMS[norm])
    fitting = {n: t for n, t in weights.items() if not n.startswith(HEAD)}
    assert not network.load_state_dict(fitting, strict=False).unexpected_keys
    return network.eval()


def build_model(size_hw: tuple[int, int] = (64, 96)) -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(ModelSpec(NAME, CITYSCAPES_19, size_hw, "batch")).eval()


def test_names_and_parameter_counts_are_the_published_ones_without_the_head() -> None:
    encoder = {
        n for n in efficientnet_lite0(nn.BatchNorm2d).state_dict() if not n.startswith("pyramid.")
    }
    weights = published_file()
    assert encoder == {n for n in weights if not n.startswith(HEAD)}
    counted = [n for n in weights if n.endswith((".weight", ".bias"))]
    # Published: 4.652 M.
    assert sum(weights[n].numel() for n in counted) == 4_652_008
    assert sum(weights[n].numel() for n in counted if n in encoder) == 2_958_848


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("size_hw", [(64, 96), (72, 56)])
def test_encoder_matches_the_published_architecture(size_hw: tuple[int, int], norm: str) -> None:
    """72x56 leads to feature sizes of 9 and 7, where the padding is symmetric."""
    weights = published_file()
    network = load_network(norm, weights).double()
    x = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        expected = published_encoder({n: t.double() for n, t in weights.items()}, x)
        maps = network.encode(x)
    assert [tuple(m.shape[1:2]) for m in maps] == [(40,), (112,), (320,)]
    for features, block in zip(maps, (4, 10, 15), strict=True):
        torch.testing.assert_close(features, expected[block], rtol=1e-9, atol=1e-9)


def test_map_of_even_size_is_padded_at_the_right_and_bottom() -> None:
    for kernel, margins in ((3, (0, 1, 0, 1)), (5, (1, 2, 1, 2))):
        conv = SameConv2d(1, 1, kernel, stride=2)
        x = torch.randn(1, 1, 8, 6)
        torch.testing.assert_close(conv(x), F.conv2d(F.pad(x, margins), conv.weight, stride=2))


def test_pyramid_sums_three_levels_at_one_eighth() -> None:
    network = load_network("batch", published_file())
    with torch.no_grad():
        maps = network.encode(torch.randn(1, 3, 64, 96))
        state = network.pyramid.state_dict()
        eighth, sixteenth, coarse = (
            F.conv2d(m, state[f"laterals.{i}.weight"], state[f"laterals.{i}.bias"])
            for i, m in enumerate(maps)
        )
        up = nn.Upsample(scale_factor=2, mode="bilinear")
        total = F.conv2d(eighth + up(sixteenth + up(coarse)), state["conv.weight"], padding=1)
        # An untrained norm only divides by √(1 + eps).
        expected = F.relu(total / 1.001**0.5)
        torch.testing.assert_close(network.pyramid(maps), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (1, network.out_channels, 8, 12)


def test_weights_file_sets_the_encoder_and_nothing_else(tmp_path: Path) -> None:
    model, weights = build_model(), published_file()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    torch.save(weights, tmp_path / "lite0.pth")
    load_backbone(model, tmp_path / "lite0.pth")
    prefix = "feature_extractor.backbone."
    for name, tensor in model.state_dict().items():
        if name.startswith((f"{prefix}pyramid.", "classifier.")):
            assert torch.equal(tensor, before[name])
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, weights[name.removeprefix(prefix)])


def test_file_of_another_network_raises_a_one_line_model_error(tmp_path: Path) -> None:
    weights, path = published_file(), tmp_path / "lite0.pth"
    complete = dict(weights)
    del weights["_blocks.3._bn1.running_var"]
    torch.save(weights, path)
    with pytest.raises(
        ModelError, match=r"1 of \d+ parameters missing, 0 .*: _blocks\.3\._bn1\.running_var"
    ):
        load_backbone(build_model(), path)
    # A wider EfficientNet-Lite.
    torch.save(complete | {"_blocks.9._project_conv.weight": torch.zeros(120, 672, 1, 1)}, path)
    with pytest.raises(
        ModelError, match=r"0 of \d+ parameters missing, 1 .*: _blocks\.9\._project"
    ) as wide:
        load_backbone(build_model(), path)
    # A deeper EfficientNet-Lite.
    torch.save(complete | {"_blocks.16._project_conv.weight": torch.zeros(320, 1920, 1, 1)}, path)
    with pytest.raises(ModelError, match=r"1 unexpected.*: _blocks\.16\._project") as deep:
        load_backbone(build_model(), path)
    assert "\n" not in f"{wide.value}{deep.value}"


def test_exported_graph_is_static_and_equal_to_the_network_at_two_batch_sizes(
    tmp_path: Path,
) -> None:
    model = build_model((96, 160))
    model.feature_extractor["backbone"].load_state_dict(published_file(), strict=False)
    path = tmp_path / "lite0.onnx"
    write_onnx(model, ModelMetadata(CITYSCAPES_19, (96, 160), "logits", True), path)
    nodes = onnx.load(str(path)).graph.node
    # The graph computes no shapes, and the asymmetric padding is part of the convolutions.
    assert {node.op_type for node in nodes} == {
        "Cast", "Transpose", "Mul", "Add", "Conv", "Clip", "Relu", "Resize", "BatchNormalization"
    }  # fmt: skip
    stem = next(node for node in nodes if node.op_type == "Conv")
    assert next(list(a.ints) for a in stem.attribute if a.name == "pads") == [0, 0, 1, 1]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        frames = np.random.default_rng(batch).integers(0, 256, (batch, 96, 160, 3), np.uint8)
        (actual,) = session.run(None, {"frames": frames})
        with torch.no_grad():
            expected = model(torch.from_numpy(frames)).numpy()
        assert actual.shape == (batch, 19, 12, 20)
        atol = 1e-4 * float(np.abs(expected).max())
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=atol)


def test_gradients_are_finite_with_a_dead_channel() -> None:
    model = build_model().train()
    model.feature_extractor["backbone"].load_state_dict(published_file(), strict=False)
    frames = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    model(frames).logsumexp(1).mean().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("init", [None, Path("lite0.pth")])
def test_input_normalization_is_that_of_the_pretrained_weights(init: Path | None) -> None:
    mean, std, bgr = input_normalization(NAME, init)
    model = SegmentationModel(ModelSpec(NAME, CITYSCAPES_19, (64, 64), "batch", mean, std))
    frames = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8)
    torch.testing.assert_close(
        model.normalize(frames), (frames.permute(0, 3, 1, 2).float() - 127) / 128
    )
    assert not bgr
