"""The two libraries that build and run engines: `tensorrt` for any NVIDIA GPU, `tensorrt_rtx` for RTX ones.

They share an API as far as this package uses it; what only one of them has is asked for by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fada_deploy.common.errors import DeviceError, MissingExtraError, UsageError
from fada_deploy.runtime.backends.base import import_engine
from fada_deploy.runtime.backends.engine_file import FLAVORS

EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
# On a machine without a GPU every error is followed by one that only says so.
_NOISE = ("catchCudaError", "Thread context has not been set")


class MissingTensorRtError(MissingExtraError):
    """Neither library is installed; the message holds both pip commands."""

    def __init__(self) -> None:
        UsageError.__init__(
            self,
            "neither tensorrt nor tensorrt_rtx is installed; type: pip install 'fada_deploy[tensorrt]' (builds "
            "on the GPU that is to run it) or 'fada_deploy[tensorrt-rtx]' (builds anywhere, for RTX GPUs)",
        )


@dataclass(frozen=True)
class BuilderContext:
    """A flavor that can build here: its module, a builder, and the log that the builder writes to."""

    flavor: str
    trt: Any
    builder: Any
    log: Any


def open_builder(flavor: str) -> BuilderContext:
    """Return a flavor with which to build; `auto` takes `tensorrt` where it can build, else RTX.

    Raise `MissingExtraError` for what is not installed, `DeviceError` for what cannot build here.
    """
    if flavor not in ("auto", *FLAVORS):
        raise UsageError(f"no flavor {flavor!r} of TensorRT; there are auto, {', '.join(FLAVORS)}")
    wanted = FLAVORS if flavor == "auto" else (flavor,)
    refused: DeviceError | None = None
    for name in wanted:
        try:
            trt = import_engine(name, EXTRAS[name])
            log = make_logger(trt)
            return BuilderContext(name, trt, trt.Builder(log), log)
        except MissingExtraError:
            if flavor != "auto":
                raise
        except TypeError:
            # Without a GPU or its driver the library's constructor gives nothing.
            refused = refused or DeviceError(
                f"{name} is installed but cannot build here, as it finds no NVIDIA GPU; build on the machine that "
                "is to run the engine, or type: pip install 'fada_deploy[tensorrt-rtx]', which needs no GPU"
            )
        except DeviceError as error:
            refused = refused or error
    raise refused or MissingTensorRtError()


def make_logger(trt: Any) -> Any:
    """Return a logger of the library's that keeps `errors`, `warnings` and what is said of `layers`."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            # The base is a C++ class, which refuses a subclass that does not say this.
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
                # Of the verbose rest, which is megabytes, nothing else is looked at.
                self.layers.append(message)

    return Log()


def said(errors: list[str]) -> str:
    """Return a log's errors as one line, what only follows from there being no GPU left out."""
    kept = [e for e in errors if not any(noise in e for noise in _NOISE)] or errors
    lines = dict.fromkeys(re.sub(r"\s+", " ", e).strip() for e in kept)
    return "; ".join(lines) or "it did not say why"
