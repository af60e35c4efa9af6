"""Import of released checkpoints, against an independent implementation of their networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fada_deploy import Segmenter
from fada_deploy.cli import main
from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.data import open_dataset
from fada_deploy.training.weights.checkpoints import load_model
from fada_deploy.training.weights.released import read_released

Weights = dict[str, Tensor]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
CAFFE = torch.tensor([103.939, 116.779, 123.68])  # blue, green, red
RESNET101 = ((1, 64, 3, 1, 1, 1), (2, 128, 4, 2, 1, 1), (3, 256, 23, 1, 1, 2), (4, 512, 3, 1, 2, 4))
# VGG-16 without its last two pools: layer → (input channels, output channels, dilation). A pool
# follows layers 2, 7 and 14.
VGG = {
    0: (3, 64, 1), 2: (64, 64, 1), 5: (64, 128, 1), 7: (128, 128, 1), 10: (128, 256, 1),
    12: (256, 256, 1), 14: (256, 256, 1), 17: (256, 512, 1), 19: (512, 512, 1), 21: (512, 512, 1),
    23: (512, 512, 2), 25: (512, 512, 2), 27: (512, 512, 2), 29: (512, 1024, 4),
    31: (1024, 1024, 4),
}  # fmt: skip


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return torch.randn(*shape, generator=generator) * (2 / fan_in) ** 0.5


def resnet101_weights(*, tracked: bool) -> Weights:
    """Return random weights with the released names; small variances make an eps of 1e-5 matter."""
    g = torch.Generator().manual_seed(0)
    weights: Weights = {"backbone.conv1.weight": draw(g, 64, 3, 7, 7)}

    def norm(name: str, channels: int) -> None:
        weights[f"{name}.weight"] = torch.rand(channels, generator=g) * 0.01 + 0.01
        weights[f"{name}.bias"] = torch.randn(channels, generator=g) * 0.1
        weights[f"{name}.running_mean"] = torch.randn(channels, generator=g) * 0.1
        weights[f"{name}.running_var"] = torch.rand(channels, generator=g) * 1e-4 + 1e-4
        if tracked:
            weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    norm("backbone.bn1", 64)
    inner = 64
    for layer, planes, blocks, _, _, _ in RESNET101:
        for b in range(blocks):
            p = f"backbone.layer{layer}.{b}"
            for i, (c_in, c_out, k) in enumerate(
                ((inner, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)), 1
            ):
                weights[f"{p}.conv{i}.weight"] = draw(g, c_out, c_in, k, k)
                norm(f"{p}.bn{i}", c_out)
            if b == 0:
                weights[f"{p}.downsample.0.weight"] = draw(g, 4 * planes, inner, 1, 1)
                norm(f"{p}.downsample.1", 4 * planes)
            inner = 4 * planes
    return weights


def resnet101(w: Weights, frames: Tensor, eps: float) -> Tensor:
    x = (frames.permute(0, 3, 1, 2).double() / 255 - MEAN[:, None, None]) / STD[:, None, None]

    def normed(x: Tensor, name: str) -> Tensor:
        gamma, beta, mean, var = (
            w[f"{name}.{k}"][:, None, None]
            for k in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + eps).sqrt() * gamma + beta

    x = F.relu(normed(F.conv2d(x, w["backbone.conv1.weight"], stride=2, padding=3), "backbone.bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer, _, blocks, stride, first, rest in RESNET101:
        for b in range(blocks):
            p, s, d = (
                f"backbone.layer{layer}.{b}",
                stride if b == 0 else 1,
                first if b == 0 else rest,
            )
            y = F.relu(normed(F.conv2d(x, w[f"{p}.conv1.weight"]), f"{p}.bn1"))
            y = F.relu(
                normed(
                    F.conv2d(y, w[f"{p}.conv2.weight"], stride=s, padding=d, dilation=d), f"{p}.bn2"
                )
            )
            y = normed(F.conv2d(y, w[f"{p}.conv3.weight"]), f"{p}.bn3")
            if b == 0:
                x = normed(
                    F.conv2d(x, w[f"{p}.downsample.0.weight"], stride=s), f"{p}.downsample.1"
                )
            x = F.relu(x + y)
    return x


def vgg16_weights() -> Weights:
    g = torch.Generator().manual_seed(1)
    weights: Weights = {}
    for i, (c_in, c_out, _) in VGG.items():
        weights[f"backbone.{i}.weight"] = draw(g, c_out, c_in, 3, 3)
        weights[f"backbone.{i}.bias"] = draw(g, c_out) * 0.1
    return weights


def vgg16(w: Weights, frames: Tensor, eps: float) -> Tensor:
    x = frames.flip(3).permute(0, 3, 1, 2).double() - CAFFE[:, None, None]
    for i, (_, _, dilation) in VGG.items():
        x = F.relu(
            F.conv2d(
                x,
                w[f"backbone.{i}.weight"],
                w[f"backbone.{i}.bias"],
                padding=dilation,
                dilation=dilation,
            )
        )
        if i in (2, 7, 14):
            x = F.max_pool2d(x, 2, 2)
    return x


def classifier_weights(channels: int, classes: int) -> Weights:
    g = torch.Generator().manual_seed(2)
    shapes = {"weight": (classes, channels, 3, 3), "bias": (classes,)}
    return {
        f"conv2d_list.{i}.{n}": torch.randn(*s, generator=g) * 0.01
        for i in range(4)
        for n, s in shapes.items()
    }


def classify(w: Weights, x: Tensor) -> Tensor:
    convs = [
        F.conv2d(x, w[f"conv2d_list.{i}.weight"], w[f"conv2d_list.{i}.bias"], padding=r, dilation=r)
        for i, r in enumerate((6, 12, 18, 24))
    ]
    return torch.stack(convs).sum(0)


def double(weights: Weights) -> Weights:
    return {n: t.double() for n, t in weights.items()}


def checkpoint(
    path: Path, features: Weights, classifier: Weights, *, prefix: str = "", **more: Any
) -> Path:
    parts = {"feature_extractor": features, "classifier": classifier}
    torch.save(
        {k: {prefix + n: t for n, t in w.items()} for k, w in parts.items()}
        | {"iteration": 18000}
        | more,
        path,
    )
    return path


Case = tuple[Weights, Weights, Callable[[Weights, Tensor, float], Tensor], float]
CASES: dict[str, Callable[[], Case]] = {
    "frozen": lambda: (
        resnet101_weights(tracked=False),
        classifier_weights(2048, 19),
        resnet101,
        0.0,
    ),
    "batch": lambda: (
        resnet101_weights(tracked=True),
        classifier_weights(2048, 16),
        resnet101,
        1e-5,
    ),
    "vgg16": lambda: (vgg16_weights(), classifier_weights(1024, 19), vgg16, 0.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_imported_network_computes_the_logits_of_the_authors_network(
    kind: str,
    tmp_path: Path,
    streets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Compare logits in torch, and in the ONNX file that is exported from the run."""
    features, classifier, network, eps = CASES[kind]()
    path = checkpoint(
        tmp_path / "g2c.pth", features, classifier, prefix="module.", model_D={"a": torch.zeros(1)}
    )
    monkeypatch.chdir(tmp_path)

    def fada(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert not caught.value.code, err
        return out

    document = json.loads(
        fada("import", path, "--size", "96x64", "--tgt-root", streets / "cityscapes", "--json")
    )
    run = Path(document["run"])
    model, provenance = load_model(run / "adversarial" / "weights.safetensors")
    assert model.spec.norm == ("batch" if kind == "batch" else "frozen")
    assert model.spec.space.name == ("cityscapes-16" if kind == "batch" else "cityscapes-19")
    assert provenance["imported"]["file"] == "g2c.pth"

    frames = open_dataset("cityscapes", streets / "cityscapes", split="val", space=model.spec.space)
    frame = torch.from_numpy(np.ascontiguousarray(frames.image(0)[:64, :96]))[None]
    expected = classify(double(classifier), network(double(features), frame, eps))
    with torch.inference_mode():
        actual = model(frame)
    scale = expected.abs().max()
    assert (actual - expected).abs().max() < 1e-4 * scale
    if kind == "frozen":
        # With an eps, the same weights give a clearly different network.
        other = classify(double(classifier), network(double(features), frame, 1e-5))
        assert (other - expected).abs().max() > 1e-3 * scale

    if kind != "vgg16":
        # An export of ResNet-101 takes long; `test_export` exports ResNet-18 and tracked norms.
        return
    fada("export", run)
    with Segmenter(run / "export" / "model.onnx", backend="onnxruntime") as segmenter:
        exported = segmenter.logits([frame[0].numpy()], color="rgb")
    assert np.abs(exported - expected.numpy()).max() < 1e-4 * scale.item()


def small_vgg(tmp_path: Path, **more: Any) -> Path:
    return checkpoint(tmp_path / "v.pth", vgg16_weights(), classifier_weights(1024, 19), **more)


def test_stage_and_size_come_from_the_file_or_from_the_caller(tmp_path: Path) -> None:
    imported = read_released(small_vgg(tmp_path))
    assert (imported.stage, imported.model.spec.size_hw) == ("source", (512, 1024))
    imported = read_released(small_vgg(tmp_path), stage="distill")
    assert (imported.stage, imported.model.spec.size_hw, imported.reason) == (
        "distill",
        (1024, 2048),
        "given by --stage",
    )
    imported = read_released(small_vgg(tmp_path, model_D={}))
    assert (imported.stage, imported.iteration, imported.init_norm) == (
        "adversarial",
        18000,
        "caffe",
    )
    # The order of the parameters in the file does not matter.
    backwards = dict(reversed(vgg16_weights().items()))
    imported = read_released(
        checkpoint(tmp_path / "b.pth", backwards, classifier_weights(1024, 19))
    )
    first = imported.model.feature_extractor["backbone"].state_dict()["0.weight"]
    assert torch.equal(first, vgg16_weights()["backbone.0.weight"].flip(1))
    # Weights initialized from torchvision's VGG-16 read RGB, so the kernels stay unchanged.
    model = read_released(small_vgg(tmp_path), init_norm="torchvision").model
    first = model.feature_extractor["backbone"].state_dict()["0.weight"]
    assert torch.equal(first, vgg16_weights()["backbone.0.weight"])
    assert model.spec.mean == pytest.approx((0.485, 0.456, 0.406))


def test_other_files_and_options_raise_one_line_errors(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "a.pth")
    with pytest.raises(
        ModelError, match="must contain feature_extractor and classifier, but contains state_dict"
    ):
        read_released(tmp_path / "a.pth")
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(ModelError, match=r"not a readable weights file .*list"):
        read_released(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_text("words")
    with pytest.raises(ModelError, match="not a readable weights file"):
        read_released(tmp_path / "c.pth")
    path = checkpoint(tmp_path / "d.pth", {"backbone.a": torch.zeros(1)}, classifier_weights(4, 19))
    with pytest.raises(ModelError, match="VGG-16, ResNet-50 and ResNet-101"):
        read_released(path)
    less = vgg16_weights()
    del less["backbone.17.bias"]
    path = checkpoint(tmp_path / "e.pth", less, classifier_weights(1024, 19))
    with pytest.raises(
        ModelError,
        match=r"19 classes: 1 of \d+ parameters missing.*17\.bias, shape absent, expected \(512,\)",
    ):
        read_released(path)
    path = checkpoint(tmp_path / "f.pth", vgg16_weights(), classifier_weights(1024, 7))
    with pytest.raises(ModelError, match=r"has 7 classes; use --label-space"):
        read_released(path)
    with pytest.raises(UsageError, match="unknown stage 'last'"):
        read_released(small_vgg(tmp_path), stage="last")
    with pytest.raises(UsageError, match=r"one of torchvision, caffe, .*got 'bgr'"):
        read_released(small_vgg(tmp_path), init_norm="bgr")


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    import os
    import pickle

    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    (tmp_path / "exploit.pth").write_bytes(pickle.dumps({"feature_extractor": Exploit()}))
    with pytest.raises(ModelError, match="not a readable weights file"):
        read_released(tmp_path / "exploit.pth")
    assert not (tmp_path / "executed").exists()
