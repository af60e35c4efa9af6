"""A worker for tests of the pool."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import DataError


class Squares:
    """A worker whose tasks are (operation, value)."""

    def __init__(self, folder: Path, ready: bool = True) -> None:
        if not ready:
            raise DataError("the model cannot be opened")
        self._folder = folder

    def describe(self) -> dict[str, Any]:
        return {"cores": len(os.sched_getaffinity(0))}

    def __call__(self, task: tuple[str, int]) -> Any:
        operation, value = task
        attempts = self._folder / f"{operation}-{value}"
        with attempts.open("a") as file:
            file.write(".")
        match operation:
            case "die":
                os._exit(1)
            case "die once" if attempts.stat().st_size == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise DataError(f"{value} is bad")
        return value * value
