"""What `fada export` can make, and what of it can be built, proven and run here: `fada export --list`.

Nothing optional is imported: packages are looked for by name.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from fada_deploy.common.system import installed_version
from fada_deploy.runtime.backend_selection import runnable_onnx
from fada_deploy.runtime.backends.gpu import find_gpu
from fada_deploy.runtime.backends.trt_library import EXTRAS

_TORCH = ("torch", "safetensors", "onnx", "onnxscript")
# Import name → the name that pip knows, where they differ.
_PIP = {"tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class Target:
    """One kind of file: how to ask for it, what it needs, and what this machine can do.

    `needs` says packages and hardware for building. `not_built` and `not_run` say why not, "" where it can be;
    what can be run here is also proven here. `runs_on` names the backends.
    """

    name: str
    command: str
    needs: str
    not_built: str
    not_run: str
    runs_on: tuple[str, ...] = ()

    @property
    def can_build(self) -> bool:
        return not self.not_built

    @property
    def can_run(self) -> bool:
        return not self.not_run

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {
            **asdict(self),
            "runs_on": list(self.runs_on),
            "can_build": self.can_build,
            "can_run": self.can_run,
        }


def targets() -> list[Target]:
    """Return every kind of file that `fada export` makes, with what this machine can do of it."""
    return [
        _onnx("onnx fp32", "fada export", _TORCH, "export", "a run"),
        _onnx("onnx fp16", "fada export --precision fp16", ("onnx",), "export", "the fp32 file"),
        _onnx("onnx bf16", "fada export --precision bf16", ("onnx",), "export", "the fp32 file"),
        *(
            _onnx(
                f"onnx int8-{whom}",
                f"fada export --precision int8 --for {whom}",
                ("onnx", "onnxruntime"),
                "export",
                "the fp32 file, target frames",
            )
            for whom in ("cpu", "tensorrt")
        ),
        *(_engine(flavor) for flavor in EXTRAS),
        _triton(),
    ]


def table(found: Sequence[Target]) -> str:
    """Return targets as text: a line each, and under it why not, where something cannot be."""
    columns = [("target", "built here", "run, proven here", "needs")]
    for target in found:
        runs = ", ".join(target.runs_on) or "yes"
        columns.append(
            (
                target.name,
                "yes" if target.can_build else "no",
                runs if target.can_run else "no",
                target.needs,
            )
        )
    widths = [max(len(row[i]) for row in columns) for i in range(4)]
    lines = []
    for row, about in zip(columns, [None, *found], strict=True):
        lines.append(
            "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        )
        if about is not None and about.not_built:
            lines.append(f"    not built: {about.not_built}")
        if about is not None and about.not_run:
            lines.append(f"    not run: {about.not_run}")
    return "\n".join(lines)


def _onnx(name: str, command: str, packages: Sequence[str], extra: str, made_of: str) -> Target:
    kind = name.removeprefix("onnx ").partition("-")[0]
    able = tuple(runnable_onnx(kind))
    if able or kind != "bf16":
        not_run = "" if able else _pip("no inference engine is installed", "cpu")
    else:
        not_run = _pip("of the engines for CPUs only openvino has kernels for bf16", "openvino")
    needs = f"{made_of}; {', '.join(packages)}"
    missing = _missing(packages, extra)
    if not missing and kind == "fp32" and not able:
        missing = _pip("with no inference engine nothing would be proven", "cpu")
    return Target(name, command, needs, missing, not_run, able)


def _engine(flavor: str) -> Target:
    rtx = flavor == "tensorrt_rtx"
    gpu, extra = find_gpu(), EXTRAS[flavor]
    name = "tensorrt-rtx engine" if rtx else "tensorrt engine"
    missing = _missing([flavor], extra)
    needs_gpu = "no NVIDIA GPU is found here"
    not_built = missing or ("" if rtx or gpu else f"{needs_gpu}; build where it is to run")
    not_run = _missing([flavor, "cupy"], extra) or (
        "" if gpu else f"{needs_gpu}; its first start there proves it"
    )
    have = "" if missing else f" {_version(flavor)}"
    needs = f"an .onnx; {flavor}{have}" + ("" if rtx else ", the GPU that is to run it")
    command = f"fada export --trt --trt-flavor {flavor}"
    return Target(name, command, needs, not_built, not_run, () if not_run else ("tensorrt",))


def _triton() -> Target:
    # Only the server itself could say that it takes the repository, and it is no package of pip's.
    served = shutil.which("tritonserver") is not None
    return Target(
        "triton repository",
        "fada export --head labels --triton DIR",
        "an .onnx or .engine with head labels",
        "",
        "a repository is run by a Triton server"
        + (", which `fada` does not start" if served else "; none is here"),
    )


def _missing(packages: Sequence[str], extra: str) -> str:
    absent = [_PIP.get(name, name) for name in packages if not _is_installed(name)]
    if not absent:
        return ""
    verb = "is" if len(absent) == 1 else "are"
    return _pip(f"{', '.join(absent)} {verb} not installed", extra)


def _pip(reason: str, extra: str) -> str:
    return f"{reason}; type: pip install 'fada_deploy[{extra}]'"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was put into sys.modules by hand has no spec
        return False


def _version(package: str) -> str:
    names = (_PIP.get(package, package), package, f"{package}_cu13", f"{package}_cu12")
    return next(
        (found for name in names if (found := installed_version(name))), "(version unknown)"
    )
