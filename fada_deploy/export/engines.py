"""What becomes of an engine: compared with the network where a GPU is, built anew where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DeviceError, MissingExtraError, ModelError, ToleranceError
from fada_deploy.export.to_tensorrt import build_engine
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends.engine_file import (
    ENGINE_SUFFIXES,
    EngineSidecar,
    read_engine,
    sidecar_path,
)


def verify_engine(engine: Path, say: Callable[[str], None]) -> Any:
    """Compare an engine with the network if this machine can run it; return its verification, or "not_run".

    Raise `ToleranceError` when it is another network, and take it away.
    """
    try:
        # Opening it compares it.
        open_backend(engine).close()
    except ToleranceError:
        engine.unlink()
        sidecar_path(engine).unlink()
        raise
    except (DeviceError, MissingExtraError) as error:
        reason = str(error).removeprefix(f"{engine}: ")
        say(
            f"note: {engine.name} could not be run here, so it is compared when it is first opened ({reason})"
        )
    return read_engine(engine).verification


def rebuild_if_stale(engine: Path, device: str, say: Callable[[str], None]) -> bool:
    """Build an engine anew, as it was built before, if it does not open here; return whether it was.

    Of the .onnx beside it. Raise `ModelError` when that is not there, and the errors of `build_engine`. Files
    that are no engines are left alone.
    """
    if engine.suffix not in ENGINE_SUFFIXES:
        return False
    try:
        open_backend(engine, device=device).close()
        return False
    except ModelError as error:
        reason = str(error).removeprefix(f"{engine}: ")
    old = EngineSidecar.from_json(_text(sidecar_path(engine)), str(sidecar_path(engine)))
    model = engine.with_name(old.onnx_name)
    if not model.is_file():
        raise ModelError(
            f"{engine}: {reason}; {model.name}, which it was built of, is not beside it"
        )
    say(f"{engine.name}: {reason}")
    build_engine(
        model,
        engine,
        flavor=old.flavor,
        batch=old.profile or (1, 1, 8),
        compute_capabilities=old.compute_capabilities if old.flavor == "tensorrt_rtx" else (),
        level=int(old.options.get("level", 3)),
        workspace_mib=old.options.get("workspace_mib"),
        say=say,
    )
    return True


def _text(sidecar: Path) -> str:
    try:
        return sidecar.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{sidecar}: cannot be read ({error}); fada export MODEL.onnx --trt"
        ) from None
