"""What becomes of an engine once it is built: compared with the network where a GPU is, or at its first load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DeviceError, GateError, MissingExtraError
from fada_deploy.runtime.backends import open_backend
from fada_deploy.runtime.backends.engine_file import read_engine, sidecar_path


def prove_here(engine: Path, say: Callable[[str], None]) -> Any:
    """Compare an engine with the network if this machine can run it; return its verification, or "not_run".

    Raise `GateError` when it is another network, and take it away.
    """
    try:
        # Opening it compares it.
        open_backend(engine).close()
    except GateError:
        engine.unlink()
        sidecar_path(engine).unlink()
        raise
    except (DeviceError, MissingExtraError) as error:
        reason = str(error).removeprefix(f"{engine}: ")
        say(f"note: {engine.name} could not be run here, so it is compared when it is first opened ({reason})")
    return read_engine(engine).verification
