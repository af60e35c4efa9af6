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

logger = logging.getLogger(__name__)


def verify_engine(engine: Path) -> Any:
    """Compare an engine with its reference outputs and record the result in its sidecar.

    Return the parity results by backend, or "not_run" if this machine cannot run the engine. Raise
    `ToleranceError` if the outputs differ too much; the engine is then deleted.
    """
    try:
        # `open_backend` verifies an engine that was not verified on this GPU.
        open_backend(engine).close()
    except ToleranceError:
        engine.unlink()
        sidecar_path(engine).unlink()
        raise
    except (DeviceError, MissingExtraError) as error:
        reason = str(error).removeprefix(f"{engine}: ")
        logger.warning(
            "%s cannot run on this machine (%s); it is verified when it is first opened on the "
            "target machine",
            engine.name,
            reason,
        )
    return read_engine(engine).verification


def rebuild_if_stale(engine: Path, device: str) -> bool:
    """Rebuild an engine from its ONNX file, with the same options, if it cannot be opened here.

    Return whether it was rebuilt; files that are not engines are ignored. Raise `ModelError` if the
    ONNX file is missing, and the errors of `build_engine`.
    """
    if engine.suffix not in ENGINE_SUFFIXES:
        return False
    try:
        open_backend(engine, device=device).close()
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
    is_rtx = sidecar.flavor == "tensorrt_rtx"
    options = EngineOptions(
        flavor=sidecar.flavor,
        batch=sidecar.profile or (1, 1, 8),
        compute_capabilities=tuple(sidecar.compute_capabilities) if is_rtx else (),
        optimization_level=int(sidecar.options.get("level", 3)),
        workspace_mib=sidecar.options.get("workspace_mib"),
    )
    build_engine(model, engine, options)
    return True


def _read(sidecar: Path) -> str:
    try:
        return sidecar.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{sidecar} cannot be read ({error}); build the engine again with "
            "`fada export MODEL.onnx --trt`"
        ) from None
