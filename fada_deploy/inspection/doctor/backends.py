"""Check that the installed backends work: each runs a model whose output is known."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import one_line
from fada_deploy.common.extras import install_command
from fada_deploy.common.system import installed_version
from fada_deploy.inspection.doctor.check import Check, captured_output, gpu_or_none, is_installed
from fada_deploy.inspection.doctor.tiny_model import EXPECTED_OUTPUT, model_input, tiny_model

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def gpu_check() -> Iterator[Check]:
    """Show which NVIDIA GPU there is."""
    from fada_deploy.runtime.backends.gpu import find_gpu

    gpu = find_gpu()
    if gpu is None:
        detail = "no NVIDIA GPU, or no driver for it (in a container: docker run --gpus all)"
        yield Check("gpu", "info", detail)
    else:
        yield Check("gpu", "ok", f"{gpu.name}, compute capability {gpu.compute_capability}")


def backend_check() -> Iterator[Check]:
    """Check that at least one backend is installed."""
    from fada_deploy.common.errors import UsageError
    from fada_deploy.runtime.backend_selection import require_any_backend

    try:
        require_any_backend()
    except UsageError:
        extra = "cpu" if gpu_or_none() is None else "gpu"
        yield Check("backends", "problem", "no backend is installed", install_command(extra))


def onnxruntime_checks() -> Iterator[Check]:
    """Run the tiny model on the CPU and, if the provider is available, on CUDA."""
    ort = yield from _import("onnxruntime")
    if ort is None:
        return
    version, reinstall = ort.__version__, _reinstall("onnxruntime")
    output, _, _ = _run_onnxruntime(ort, _CPU)
    yield _output_check("onnxruntime cpu", version, output, reinstall)
    gpu = gpu_or_none()
    if _CUDA not in ort.get_available_providers():
        if gpu is not None:
            uninstall = f"pip uninstall -y {_distribution('onnxruntime')}"
            yield Check(
                "onnxruntime cuda",
                "warning",
                f"{version} has no CUDA provider, so ONNX files do not use the GPU",
                f"{uninstall} && {install_command('gpu')}",
            )
        return
    output, provider, reason = _run_onnxruntime(ort, _CUDA)
    suffix = f" ({reason})" if reason else ""
    if provider == _CUDA:
        yield _output_check("onnxruntime cuda", version, output, reinstall)
    elif gpu is None:
        detail = f"is installed, but without an NVIDIA GPU the CPU is used{suffix}"
        yield Check("onnxruntime cuda", "info", detail)
    else:
        detail = f"is installed but does not start; {provider} silently replaces it{suffix}"
        yield Check("onnxruntime cuda", "problem", detail, _cuda_remedy())


def openvino_checks() -> Iterator[Check]:
    """Run the tiny model on the CPU."""
    openvino = yield from _import("openvino")
    if openvino is None:
        return
    with captured_output():
        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(tiny_model()), "CPU", config)
        output = float(compiled({"x": model_input()})[0].item())
    version = str(openvino.__version__).partition("-")[0]
    yield _output_check("openvino cpu", version, output, _reinstall("openvino"))


def tensorrt_checks() -> Iterator[Check]:
    """Check that each installed TensorRT can be imported, and what it cannot do here."""
    from fada_deploy.inspection.targets import list_targets
    from fada_deploy.runtime.backends.trt_library import EXTRAS

    targets = {target.name: target for target in list_targets()}
    for flavor, extra in EXTRAS.items():
        trt = yield from _import(flavor)
        if trt is None:
            continue
        target = targets[f"{extra} engine"]
        problems = dict.fromkeys(p for p in (target.build_problem, target.run_problem) if p)
        yield Check(
            extra,
            "warning" if problems else "ok",
            "; ".join([f"{trt.__version__} is installed", *problems]),
            target.build_remedy or target.run_remedy,
        )


def cupy_check() -> Iterator[Check]:
    """Check CuPy, which TensorRT and ONNX Runtime on CUDA use."""
    from fada_deploy.runtime.backends.trt_library import EXTRAS

    if not any(map(is_installed, EXTRAS)) and installed_version("onnxruntime-gpu") is None:
        return
    cupy = yield from _import("cupy")
    if cupy is not None:
        yield _cupy_check(cupy)


def _import(package: str) -> Generator[Check, None, Any]:
    """Return a module; None if it is not installed. Yield a problem if it cannot be imported."""
    if not is_installed(package):
        return None
    try:
        with captured_output():
            return importlib.import_module(package)
    except Exception as error:
        detail = f"is installed but cannot be imported ({one_line(error, with_type=True)})"
        yield Check(package, "problem", detail, _reinstall(package))
        return None


def _run_onnxruntime(ort: Any, provider: str) -> tuple[float | None, str, str]:
    """Return the output, the provider that was really used, and the error that was printed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = [_CUDA, _CPU] if provider == _CUDA else [_CPU]
    with captured_output() as reason:
        session = ort.InferenceSession(tiny_model(), options, providers=providers)
        used = session.get_providers()[0]
        if used != provider:
            return None, used, reason()
        return float(session.run(["y"], {"x": model_input()})[0].item()), used, reason()


def _cuda_remedy() -> str:
    """Return the command that makes the CUDA libraries available.

    Libraries that were installed with pip are not in the search path of the loader.
    """
    spec = find_spec("nvidia") if is_installed("nvidia") else None
    locations = [] if spec is None else spec.submodule_search_locations or []
    libraries = [library for folder in locations for library in Path(folder).rglob("lib*.so*")]
    folders = sorted({str(library.parent) for library in libraries})
    search_path = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if not folders or set(folders) <= set(search_path):
        return "pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'"
    return f"export LD_LIBRARY_PATH={':'.join([*folders, *filter(None, search_path)])}"


def _output_check(name: str, version: str, output: float | None, reinstall: str) -> Check:
    if output == EXPECTED_OUTPUT:
        return Check(name, "ok", version)
    detail = f"{version} computes {output} instead of {EXPECTED_OUTPUT:g}"
    return Check(name, "problem", detail, reinstall)


def _cupy_check(cupy: Any) -> Check:
    version = cupy.__version__
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        reason = one_line(error, with_type=True)
        return Check("cupy", "warning", f"{version} finds no GPU ({reason})")
    # A CuPy for another CUDA version fails only when it compiles a kernel.
    total = float((cupy.arange(4) * 2).sum()) if count else 12.0
    if total != 12:
        detail = f"{version} computes {total:g} instead of 12"
        return Check("cupy", "problem", detail, _reinstall("cupy"))
    return Check("cupy", "ok", f"{version}, {count} GPU{'s' if count != 1 else ''}")


def _reinstall(module: str) -> str:
    return f"pip install --force-reinstall {_distribution(module)}"


def _distribution(module: str) -> str:
    """Return the installed distribution that contains a module."""
    name = module.replace("_", "-")
    candidates = (f"{name}-gpu", name, f"{name}-cuda13x", f"{name}-cuda12x")
    return next((c for c in candidates if installed_version(c) is not None), name)
