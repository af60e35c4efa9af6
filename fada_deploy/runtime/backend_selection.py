"""Choose and open the backend for a model file on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import installed_version
from fada_deploy.runtime.backends import BACKENDS, ONNX_BACKENDS, Backend
from fada_deploy.runtime.backends.base import cuda_index
from fada_deploy.runtime.backends.engine_file import (
    ENGINE_SUFFIXES,
    FLAVORS,
    can_write_sidecar,
    read_engine,
    write_sidecar,
)
from fada_deploy.runtime.backends.gpu import find_gpu
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.backends.openvino import crashes_openvino
from fada_deploy.runtime.backends.preference import fastest_backend
from fada_deploy.runtime.backends.tensorrt import TensorRtBackend
from fada_deploy.runtime.parity import (
    TOLERANCES,
    ReferenceOutputs,
    Tolerance,
    compare_with_reference,
    require_parity,
)

# Backends with CPU kernels for a precision, where not all of them have any.
_CPU_KERNELS = {"bf16": ("openvino",)}
_CPU_ONLY = ("openvino",)
# Suffixes of weights. Most are pickles, which can run code when they are read.
_WEIGHTS_SUFFIXES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".safetensors"})
_NO_BACKEND = (
    "no inference backend is installed; install one with `pip install onnxruntime` (CPU), "
    "`pip install onnxruntime-gpu` (NVIDIA) or `pip install openvino` (Intel)"
)


def open_backend(
    path: Path,
    *,
    device: str | int = "auto",
    backend: str = "auto",
    parallel: int = 1,
    allow_unverified: bool = False,
    tolerance: Tolerance | None = None,
) -> Backend:
    """Open a model file on a backend and a device.

    Args:
        path: An exported .onnx file or a TensorRT engine.
        device: "auto", "cpu", or a GPU as "cuda", "cuda:N" or N.
        backend: A key of `BACKENDS`, or "auto": the backend that was measured to be the fastest on
            this machine, otherwise the first installed one that can run the file.
        parallel: Number of requests that share a CPU's cores; a GPU runs one at a time.
        allow_unverified: Run an engine that was never compared with its reference outputs.
        tolerance: Tolerance of that comparison; by default that of the precision.

    Raises:
        UsageError: The backend is unknown, not installed, or cannot run this kind of file.
        DeviceError: The device is not available.
        ModelError: The file cannot be used.
        ToleranceError: The engine's outputs differ from its reference outputs.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise UsageError(f"backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}")
    # An invalid device is an error of its own, whatever the file is.
    cuda_index(device)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; export a model with `fada export`")
    candidates = backends_of(path)
    if backend not in ("auto", *candidates):
        raise UsageError(
            f"{path} cannot run on the backend {backend}; use --backend "
            f"{' or '.join(candidates)}, or leave --backend out"
        )
    if candidates == ("tensorrt",):
        engine = TensorRtBackend(path, device=device)
        if not allow_unverified:
            try:
                _verify_engine(path, engine, tolerance)
            except BaseException:
                engine.close()
                raise
        return engine
    name = _preferred_backend(path, device) if backend == "auto" else backend
    return BACKENDS[name](path, device=device, parallel=parallel)


def _verify_engine(path: Path, engine: TensorRtBackend, tolerance: Tolerance | None) -> None:
    """Compare an engine with its reference outputs, unless that was done on this GPU before."""
    sidecar = engine.sidecar
    verification = {} if isinstance(sidecar.verification, str) else dict(sidecar.verification)
    if verification.get(engine.name, {}).get("on") == engine.runs_on:
        return
    try:
        reference = ReferenceOutputs.for_model(path, engine.metadata)
    except ModelError as error:
        raise ModelError(
            f"{path} was not verified on {engine.runs_on}, and cannot be: {error}, or "
            "run it unverified with --allow-unverified"
        ) from None
    result = compare_with_reference(engine, reference)
    require_parity(
        {engine.name: result},
        tolerance or TOLERANCES[engine.metadata.precision],
        consequence=f"{path} is not run",
    )
    verification[engine.name] = {**result.to_dict(), "on": engine.runs_on}
    if can_write_sidecar(path):
        write_sidecar(path, replace(sidecar, verification=verification))


def _preferred_backend(path: Path, device: str | int) -> str:
    """Return the remembered fastest backend, otherwise the first installed one for the file."""
    if device == "cpu" or (device == "auto" and not _has_cuda_runtime()):
        metadata = read_metadata(path)
        runnable = runnable_for(metadata)
        if (fastest := fastest_backend(metadata)) in runnable:
            return fastest
        if runnable:
            return runnable[0]
    return installed_backend()


def _has_cuda_runtime() -> bool:
    """Return whether ONNX Runtime for CUDA is installed and there is a GPU."""
    return installed_version("onnxruntime-gpu") is not None and find_gpu() is not None


def backends_of(path: Path) -> tuple[str, ...]:
    """Return the names of the backends that run files of this suffix.

    Raise `ModelError` for a weights file.
    """
    if path.suffix in _WEIGHTS_SUFFIXES:
        raise ModelError(
            f"{path} holds weights, not an exported model; export a run with `fada export`"
        )
    return ("tensorrt",) if path.suffix in ENGINE_SUFFIXES else ONNX_BACKENDS


def metadata_of(path: Path) -> ModelMetadata:
    """Return the metadata of an exported model; raise `ModelError` for any other file."""
    if backends_of(path) == ONNX_BACKENDS:
        return read_metadata(path)
    return read_engine(path).metadata


def runnable_backends(path: Path, device: str | int = "auto") -> list[str]:
    """Return the installed backends that can run a file in its precision on a device."""
    backends = backends_of(path)
    if backends != ONNX_BACKENDS:
        return list(backends)
    if cuda_index(device) is not None:
        return [name for name in backends if name not in _CPU_ONLY and find_spec(name) is not None]
    return runnable_for(read_metadata(path))


def runnable_models(paths: Iterable[Path]) -> list[Path]:
    """Return the paths without engines if this machine has no GPU."""
    return [path for path in paths if path.suffix not in ENGINE_SUFFIXES or find_gpu() is not None]


def runnable_for(metadata: ModelMetadata) -> list[str]:
    """Return the installed backends that can run an ONNX file."""
    names = runnable_onnx(metadata.precision)
    return [name for name in names if name != "openvino" or not crashes_openvino(metadata)]


def runnable_onnx(precision: str) -> list[str]:
    """Return the installed backends that can run ONNX files of a precision."""
    backends = _CPU_KERNELS.get(precision, ONNX_BACKENDS)
    return [name for name in backends if find_spec(name) is not None]


def installed_backend() -> str:
    """Return the first installed backend for ONNX files; raise `UsageError` if there is none."""
    for name in ONNX_BACKENDS:
        if find_spec(name) is not None:
            return name
    raise UsageError(_NO_BACKEND)


def require_any_backend() -> None:
    """Raise `UsageError` if no package is installed that runs a model."""
    if all(find_spec(name) is None for name in (*ONNX_BACKENDS, *FLAVORS)):
        raise UsageError(_NO_BACKEND)
