"""Verify and rebuild TensorRT engines on the machine that runs them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DeviceError, MissingExtraError, ModelError, ToleranceError
from fada_deploy.export.options import EngineOptions
from fada_deploy.export.to_tensorrt import build_engine
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends.engine_file import (
    ENGINE_SUFFIXES,
    EngineSidecar,
    read_engine,
    sidecar_path,
)
from fada_deploy.runtime.backends.gpu import find_gpu
from fada_deploy.runtime.parity import Tolerance

logger = logging.getLogger(__name__)


def verify_engine(engine: Path, *, device: str = "auto", tolerance: Tolerance | None = None) -> Any:
    """Compare an engine with its reference outputs and record the result in its sidecar.

    `tolerance` is that of its precision by default. Return the parity results by backend, or
    "not_run" if this machine cannot run the engine. Raise `ToleranceError` if the outputs differ
    too much.
    """
    try:
        # `open_backend` verifies an engine that was not verified on this GPU.
        open_backend(engine, device=device, tolerance=tolerance).close()
    except (DeviceError, MissingExtraError) as error:
        reason = str(error).removeprefix(f"{engine}: ")
        logger.warning(
            "%s cannot run on this machine (%s); it is verified when it is first opened on the "
            "target machine",
            engine.name,
            reason,
        )
    return read_engine(engine).verification


def verify_new_engine(engine: Path, tolerance: Tolerance) -> Any:
    """Do what `verify_engine` does, and delete an engine that exceeds the tolerance."""
    try:
        return verify_engine(engine, tolerance=tolerance)
    except ToleranceError as error:
        engine.unlink()
        sidecar_path(engine).unlink()
        raise ToleranceError(f"{error}; the engine was deleted") from None


def rebuild_if_stale(engine: Path, device: str) -> bool:
    """Rebuild an engine from its ONNX file, with the same options, if it cannot be opened here.

    Return whether it was rebuilt; files that are not engines are ignored. Raise `ModelError` if the
    ONNX file is missing, and the errors of `build_engine`.
    """
    if engine.suffix not in ENGINE_SUFFIXES:
        return False
    try:
        # An engine that was not verified is not stale; it is verified when it is run.
        open_backend(engine, device=device, allow_unverified=True).close()
        return False
    except ModelError as error:
        reason = str(error).removeprefix(f"{engine}: ")
    sidecar = EngineSidecar.from_json(_read(sidecar_path(engine)), str(sidecar_path(engine)))
    model = engine.with_name(sidecar.onnx_name)
    if not model.is_file():
        raise ModelError(
            f"{engine}: {reason}; to rebuild it, copy its ONNX file {model.name} next to it"
        )
    logger.info("rebuilding %s: %s", engine.name, reason)
    options = EngineOptions(
        flavor=sidecar.flavor,
        batch=sidecar.profile or (1, 1, 8),
        compute_capabilities=_capabilities_to_build(sidecar),
        optimization_level=int(sidecar.options.get("level", 3)),
        workspace_mib=sidecar.options.get("workspace_mib"),
        version_compatible=bool(sidecar.options.get("version_compatible")),
        hardware_compatible=bool(sidecar.options.get("hardware_compatible")),
    )
    build_engine(model, engine, options)
    return True


def _capabilities_to_build(sidecar: EngineSidecar) -> tuple[str, ...]:
    """Return those that an engine was built for, or that of this GPU if it is not among them."""
    if sidecar.flavor != "tensorrt_rtx":
        return ()
    recorded, gpu = tuple(sidecar.compute_capabilities), find_gpu()
    if recorded and gpu is not None and gpu.architecture not in recorded:
        return ("CURRENT",)
    return recorded


def _read(sidecar: Path) -> str:
    try:
        return sidecar.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{sidecar} cannot be read ({error}); build the engine again with "
            "`fada export MODEL.onnx --trt`"
        ) from None
