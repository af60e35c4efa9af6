"""List what `fada export` can write, and what this machine can build and run.

Optional packages are looked up by name; none is imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

from fada_deploy.common.extras import install_command
from fada_deploy.common.system import installed_version
from fada_deploy.common.tables import format_table
from fada_deploy.runtime.backend_selection import runnable_onnx
from fada_deploy.runtime.backends.gpu import find_gpu, supports_rtx
from fada_deploy.runtime.backends.trt_library import EXTRAS

_FP32_PACKAGES = ("torch", "safetensors", "onnx", "onnxscript")
# Module → name of its distribution, if the two differ.
_DISTRIBUTIONS = {"tensorrt_rtx": "tensorrt-rtx"}


class _Problem(NamedTuple):
    """Why something does not work here and the command that helps; "" for none."""

    reason: str = ""
    remedy: str = ""


_NONE = _Problem()


@dataclass(frozen=True)
class Target:
    """One kind of file that `fada export` writes.

    Attributes:
        name: For example "onnx fp16" or "tensorrt engine".
        command: The command that writes it.
        needs: Input files, packages and hardware that building needs.
        build_problem: Why it cannot be built on this machine; "" if it can.
        build_remedy: Command that solves `build_problem`; "" if there is none.
        run_problem: Why it cannot be run, and so not be verified, on this machine; "" if it can.
        run_remedy: Command that solves `run_problem`; "" if there is none.
        runs_on: Installed backends that run it.
    """

    name: str
    command: str
    needs: str
    build_problem: str = ""
    build_remedy: str = ""
    run_problem: str = ""
    run_remedy: str = ""
    runs_on: tuple[str, ...] = ()

    @property
    def can_build(self) -> bool:
        """Whether this machine can build it."""
        return not self.build_problem

    @property
    def can_run(self) -> bool:
        """Whether this machine can run it, and so verify it."""
        return not self.run_problem

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready summary."""
        return {
            **asdict(self),
            "runs_on": list(self.runs_on),
            "can_build": self.can_build,
            "can_run": self.can_run,
        }


def list_targets() -> list[Target]:
    """Return every kind of file that `fada export` writes."""
    return [
        _onnx("fp32", "fada export", _FP32_PACKAGES, "a run"),
        _onnx("fp16", "fada export --precision fp16", ("onnx",), "the fp32 file"),
        _onnx("bf16", "fada export --precision bf16", ("onnx",), "the fp32 file"),
        *(
            _onnx(
                f"int8-{hardware}",
                f"fada export --precision int8 --hardware-target {hardware}",
                ("onnx", "onnxruntime"),
                "the fp32 file, target frames",
            )
            for hardware in ("cpu", "tensorrt")
        ),
        *(_engine(flavor) for flavor in EXTRAS),
        _triton(),
    ]


def targets_table(targets: Sequence[Target]) -> str:
    """Return targets as a table, followed by one line for each thing that does not work here."""
    rows = [
        (
            target.name,
            "yes" if target.can_build else "no",
            (", ".join(target.runs_on) or "yes") if target.can_run else "no",
            target.needs,
        )
        for target in targets
    ]
    lines = [format_table(("target", "builds here", "runs here", "needs"), rows, align="llll")]
    problems = [
        f"{target.name} cannot be {verb} here ({reason})" + (f"; run: {remedy}" if remedy else "")
        for target in targets
        for verb, reason, remedy in (
            ("built", target.build_problem, target.build_remedy),
            ("run", target.run_problem, target.run_remedy),
        )
        if reason
    ]
    return "\n".join([*lines, "", *problems] if problems else lines)


def _onnx(variant: str, command: str, packages: Sequence[str], inputs: str) -> Target:
    precision = variant.partition("-")[0]
    backends = tuple(runnable_onnx(precision))
    if backends:
        run = _NONE
    elif precision == "bf16":
        run = _Problem(
            "among the CPU backends only openvino runs bf16", install_command("openvino")
        )
    else:
        run = _Problem("no inference backend is installed", install_command("cpu"))
    build = _missing(packages, "export")
    if build == _NONE and precision == "fp32" and not backends:
        build = _Problem("without a backend it could not be verified", install_command("cpu"))
    needs = f"{inputs}; {', '.join(packages)}"
    return Target(f"onnx {variant}", command, needs, *build, *run, runs_on=backends)


def _engine(flavor: str) -> Target:
    is_rtx, gpu, extra = flavor == "tensorrt_rtx", find_gpu(), EXTRAS[flavor]
    missing = _missing([flavor], extra)
    build = missing
    if build == _NONE and not is_rtx and gpu is None:
        build = _Problem("there is no NVIDIA GPU; build on the machine that runs the engine")
    unsupported = is_rtx and gpu is not None and not supports_rtx(gpu)
    if build == _NONE and gpu is not None and unsupported:
        build = _Problem(
            f"TensorRT-RTX does not support {gpu.name} ({gpu.architecture}); name the GPU that the "
            "engine is for with --compute-capability"
        )
    run = _missing([flavor, "cupy"], extra)
    if run == _NONE and gpu is None:
        run = _Problem("there is no NVIDIA GPU; the engine is verified when it is first opened")
    if run == _NONE and gpu is not None and unsupported:
        run = _Problem(f"TensorRT-RTX does not support {gpu.name} ({gpu.architecture})")
    version = "" if missing.reason else f" {_version(flavor)}"
    needs = f"an ONNX file; {flavor}{version}" + ("" if is_rtx else ", the GPU that runs it")
    return Target(
        f"{extra} engine",
        f"fada export --trt --trt-flavor {flavor}",
        needs,
        *build,
        *run,
        runs_on=() if run.reason else ("tensorrt",),
    )


def _triton() -> Target:
    if shutil.which("tritonserver") is None:
        problem = "tritonserver is not installed"
    else:
        problem = "it is run by tritonserver, which fada does not start"
    return Target(
        "triton repository",
        "fada export --head labels --triton DIR",
        "an ONNX file or engine with head labels",
        run_problem=problem,
    )


def _missing(packages: Sequence[str], extra: str) -> _Problem:
    missing = [_DISTRIBUTIONS.get(name, name) for name in packages if not _is_installed(name)]
    if not missing:
        return _NONE
    verb = "is" if len(missing) == 1 else "are"
    return _Problem(f"{' and '.join(missing)} {verb} not installed", install_command(extra))


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # a module that was added to sys.modules by hand has no spec
        return False


def _version(package: str) -> str:
    names = (_DISTRIBUTIONS.get(package, package), package, f"{package}_cu13", f"{package}_cu12")
    return next(
        (version for name in names if (version := installed_version(name))), "(version unknown)"
    )
