"""The two libraries that build and run engines: `tensorrt` (any NVIDIA GPU) and `tensorrt_rtx`.

They have the same API as far as this package uses it. Differences are handled where they occur.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fada_deploy.common.errors import DeviceError, MissingExtraError, UsageError
from fada_deploy.common.extras import install_command
from fada_deploy.runtime.backends.base import import_backend
from fada_deploy.runtime.backends.engine_file import FLAVORS

# The extra that installs each library.
EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
# Follow-up errors on a machine without a GPU.
_FOLLOW_UP_ERRORS = ("catchCudaError", "Thread context has not been set")


class MissingTensorRtError(MissingExtraError):
    """Neither of the two libraries is installed."""

    def __init__(self) -> None:
        UsageError.__init__(
            self,
            "neither tensorrt nor tensorrt_rtx is installed; "
            f"run: {install_command('tensorrt')} (builds on the GPU that will run the engine) "
            f"or {install_command('tensorrt-rtx')} (builds on any machine, for RTX GPUs)",
        )


@dataclass(frozen=True)
class BuilderContext:
    """What a build needs: the library's name, its module, a builder and the builder's logger."""

    flavor: str
    trt: Any
    builder: Any
    log: Any


def open_builder(flavor: str) -> BuilderContext:
    """Return the builder of a library; "auto" is `tensorrt` if it works here, else `tensorrt_rtx`.

    Raise `MissingExtraError` if it is not installed, `DeviceError` if it cannot build here.
    """
    if flavor not in ("auto", *FLAVORS):
        raise UsageError(f"flavor must be one of auto, {', '.join(FLAVORS)}, got {flavor!r}")
    candidates = FLAVORS if flavor == "auto" else (flavor,)
    device_error: DeviceError | None = None
    for name in candidates:
        try:
            trt = import_backend(name, EXTRAS[name])
            log = make_logger(trt)
            return BuilderContext(name, trt, trt.Builder(log), log)
        except MissingExtraError:
            if flavor != "auto":
                raise
        except TypeError:
            # The constructor raises TypeError if there is no GPU or driver.
            device_error = device_error or DeviceError(
                f"{name} is installed but cannot build here, because it finds no NVIDIA GPU; build "
                "on the machine that will run the engine, or build for RTX GPUs without a GPU: "
                f"{install_command('tensorrt-rtx')}"
            )
        except DeviceError as error:
            device_error = device_error or error
    raise device_error or MissingTensorRtError()


def make_logger(trt: Any) -> Any:
    """Return a TensorRT logger that collects `errors`, `warnings` and messages about `layers`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # pybind11 requires an explicit call of the base constructor.
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.layers: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(message)
            elif "LayerType" in message:
                # The rest of the verbose output is megabytes that nothing reads.
                self.layers.append(message)

    return Logger()


def error_summary(errors: list[str]) -> str:
    """Return the errors of a log as one line, without mere follow-up errors of a missing GPU."""
    causes = [e for e in errors if not any(text in e for text in _FOLLOW_UP_ERRORS)] or errors
    lines = dict.fromkeys(re.sub(r"\s+", " ", e).strip() for e in causes)
    return "; ".join(lines) or "no reason given"
