"""Engines that run an exported model: one small protocol, a dict of constructors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.runtime.backends.base import Backend, Prediction
from fada_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fada_deploy.runtime.backends.openvino import OpenVinoBackend

__all__ = ["BACKENDS", "Backend", "Prediction", "installed_backend", "open_backend"]

# Name of the backend, which is also the package it needs → constructor(path, device=…). The order is
# what `auto` prefers.
BACKENDS: dict[str, Callable[..., Backend]] = {
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
}


def open_backend(path: Path, *, device: str = "auto", backend: str = "auto") -> Backend:
    """Open a model file on an engine and a device.

    `device` is auto, cpu or cuda[:N]; `backend` is auto (the first one installed) or a key of
    `BACKENDS`. Raise `UsageError` for an unknown or missing engine, `DeviceError` when the device is
    not to be had, `ModelError` when the file cannot be used.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; `fada export` makes one")
    return BACKENDS[installed_backend() if backend == "auto" else backend](path, device=device)


def installed_backend() -> str:
    """Return the first engine that is installed; raise `UsageError` saying what to type if none is."""
    for name in BACKENDS:
        if importlib.util.find_spec(name) is not None:
            return name
    raise UsageError(
        "no inference engine is installed; type: pip install 'fada_deploy[cpu]' "
        "(or [gpu] for NVIDIA, [openvino] for Intel)"
    )
