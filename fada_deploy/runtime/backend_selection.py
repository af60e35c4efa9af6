"""Choose and open the backend for a model file on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fada_deploy.common.errors import MissingExtraError, ModelError, UsageError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends import BACKENDS, ONNX_BACKENDS, Backend
from fada_deploy.runtime.backends.engine_file import (
    ENGINE_SUFFIXES,
    FLAVORS,
    can_record,
    read_engine,
    write_sidecar,
)
from fada_deploy.runtime.backends.gpu import find_gpu
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.backends.preference import fastest_backend
from fada_deploy.runtime.backends.tensorrt import TensorRtBackend
from fada_deploy.runtime.parity import TOLERANCES, ReferenceOutputs, compare, gate

# What only some of them have kernels for, on a CPU.
_KERNELS = {"bf16": ("openvino",)}
# Weights, most of them pickles, which run what they like when they are read.
_WEIGHTS = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".safetensors"})


class _NoEngineError(MissingExtraError):
    def __init__(self) -> None:
        UsageError.__init__(
            self,
            "no inference engine is installed; type: pip install 'fada_deploy[cpu]' "
            "(or [gpu] for NVIDIA, [openvino] for Intel)",
        )


def open_backend(
    path: Path,
    *,
    device: str = "auto",
    backend: str = "auto",
    parallel: int = 1,
    allow_unverified: bool = False,
) -> Backend:
    """Open a model file on an engine and a device.

    `device` is auto, cpu or cuda[:N]; `backend` is auto (the one measured to be the fastest here, else the first
    one installed that is for the file) or a key of `BACKENDS`. `parallel` requests share a CPU's cores; a GPU
    takes one. `allow_unverified` opens an engine whose answers nobody compared with the network's. Raise
    `UsageError` for an unknown or missing backend and one that is for other files, `DeviceError` when the device
    is not to be had, `ModelError` when the file cannot be used, `ToleranceError` when it is not the network.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise UsageError(f"no backend {backend!r}; there are auto, {', '.join(BACKENDS)}")
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; `fada export` makes one")
    able = backends_of(path)
    if backend not in ("auto", *able):
        raise UsageError(
            f"{path}: is not for backend {backend}; take {' or '.join(able)}, or leave --backend out"
        )
    if able == ("tensorrt",):
        engine = TensorRtBackend(path, device=device)
        if not allow_unverified:
            _require_verified(path, engine)
        return engine
    name = _fastest(path, device) if backend == "auto" else backend
    return BACKENDS[name](path, device=device, parallel=parallel)


def _require_verified(path: Path, engine: TensorRtBackend) -> None:
    """Compare an engine with its reference outputs unless that was done on this GPU; close it and raise if it fails."""
    try:
        _verify(path, engine)
    except BaseException:
        engine.close()
        raise


def _verify(path: Path, engine: TensorRtBackend) -> None:
    sidecar, here = engine.sidecar, engine.runs_on
    known = {} if isinstance(sidecar.verification, str) else dict(sidecar.verification)
    if known.get(engine.name, {}).get("on") == here:
        return
    try:
        reference = ReferenceOutputs.of(path, engine.metadata)
    except ModelError as error:
        raise ModelError(
            f"{path}: was not compared with the network on {here}, and cannot be: {error}; copy the export's "
            ".reference.npz beside it, or run it as it is with --allow-unverified"
        ) from None
    found = compare(engine, reference)
    gate({engine.name: found}, TOLERANCES[engine.metadata.precision], lost=f"{path} is not run")
    known[engine.name] = {**found.to_dict(), "on": here}
    if can_record(path):
        write_sidecar(path, replace(sidecar, verification=known))


def _fastest(path: Path, device: str) -> str:
    """Return the backend that was measured to be the fastest here (`fada bench --choose`), else the first one."""
    if device in ("auto", "cpu"):
        metadata = read_metadata(path)
        able = runnable_onnx(metadata.precision)
        if (chosen := fastest_backend(metadata)) in able:
            return chosen
        if able:
            return able[0]
    return installed_backend()


def backends_of(path: Path) -> tuple[str, ...]:
    """Return the backends that a file is for, by its name; raise `ModelError` for weights."""
    if path.suffix in _WEIGHTS:
        raise ModelError(
            f"{path}: holds weights and is no exported model; `fada export` makes one of a run's"
        )
    return ("tensorrt",) if path.suffix in ENGINE_SUFFIXES else ONNX_BACKENDS


def metadata_of(path: Path) -> ModelMetadata:
    """Return what a model file says of itself; raise `ModelError` for what is no exported model."""
    return read_metadata(path) if backends_of(path) == ONNX_BACKENDS else read_engine(path).metadata


def runnable_backends(path: Path) -> list[str]:
    """Return the installed backends that have kernels for a file and its precision."""
    able = backends_of(path)
    return runnable_onnx(read_metadata(path).precision) if able == ONNX_BACKENDS else list(able)


def runnable_models(paths: Iterable[Path]) -> list[Path]:
    """Leave engines out where there is no GPU to run them."""
    return [path for path in paths if path.suffix not in ENGINE_SUFFIXES or find_gpu() is not None]


def runnable_onnx(precision: str) -> list[str]:
    """Return the installed backends that have kernels for ONNX files of a precision."""
    able = _KERNELS.get(precision, ONNX_BACKENDS)
    return [name for name in able if find_spec(name) is not None]


def installed_backend() -> str:
    """Return the first engine for ONNX files that is installed; raise `UsageError` saying what to type if none."""
    for name in ONNX_BACKENDS:
        if find_spec(name) is not None:
            return name
    raise _NoEngineError


def require_any_backend() -> None:
    """Raise `UsageError` saying what to type when nothing at all is installed that runs a model."""
    if all(find_spec(name) is None for name in (*ONNX_BACKENDS, *FLAVORS)):
        raise _NoEngineError
