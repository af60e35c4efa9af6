"""Do the engines truly start: each runs a convolution whose answer is known."""

from __future__ import annotations

import importlib
import os
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fada_deploy.common.system import installed_version
from fada_deploy.inspection.doctor.check import (
    Check,
    card,
    is_here,
    last_line,
    overheard,
    said_to_type,
)

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def tiny_model() -> bytes:
    """Return an ONNX file: y (1,1,1,1) = convolution of x (1,1,2,2) with [[1, 2], [4, 8]], all float32.

    A convolution, since that is what needs cuDNN. Written by hand, as `onnx` is no part of the runtime; the
    numbers are the fields of onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto, ValueInfoProto).
    """
    weights = b"".join(_number(1, n) for n in (1, 1, 2, 2))  # dims
    weights += _number(2, 1) + _field(8, b"w")  # data_type FLOAT, name
    weights += _field(
        9, bytes.fromhex("0000803f 00000040 00008040 00000041")
    )  # raw_data: 1, 2, 4, 8
    node = _field(1, b"x") + _field(1, b"w") + _field(2, b"y") + _field(4, b"Conv")
    graph = _field(1, node) + _field(2, b"tiny") + _field(5, weights)
    graph += _field(11, _port(b"x", (1, 1, 2, 2))) + _field(12, _port(b"y", (1, 1, 1, 1)))
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))  # IR 8, opset 13


def gpu_check() -> Iterator[Check]:
    """Say which GPU there is."""
    from fada_deploy.runtime.backends.gpu import find_gpu

    gpu = find_gpu()
    if gpu is None:
        yield Check(
            "gpu",
            "ok",
            "no NVIDIA GPU, or no driver for one; a container needs `docker run --gpus all`",
        )
    else:
        yield Check("gpu", "ok", f"{gpu.name}, compute capability {gpu.compute_capability}")


def some_engine() -> Iterator[Check]:
    """Check that there is anything at all that runs a model."""
    from fada_deploy.common.errors import UsageError
    from fada_deploy.runtime.backend_selection import require_any_backend

    try:
        require_any_backend()
    except UsageError as error:
        yield Check("engines", "bad", *said_to_type(str(error)))


def onnxruntime_checks() -> Iterator[Check]:
    """Run the tiny model on the CPU, and on CUDA where that is listed; nothing where it is not installed."""
    ort = yield from _loaded("onnxruntime")
    if ort is None:
        return
    version, again = ort.__version__, _again("onnxruntime")
    answer, _, _ = _run_onnxruntime(ort, _CPU)
    yield _judged("onnxruntime cpu", version, answer, again)
    gpu = card()
    if _CUDA not in ort.get_available_providers():
        if gpu is not None:
            found = f"{version} has no CUDA provider, so the GPU stands idle for ONNX files"
            swap = (
                f"pip uninstall -y {_distribution('onnxruntime')} && pip install 'fada_deploy[gpu]'"
            )
            yield Check("onnxruntime cuda", "note", found, swap)
        return
    answer, provider, reason = _run_onnxruntime(ort, _CUDA)
    why = f" ({reason})" if reason else ""
    if provider == _CUDA:
        yield _judged("onnxruntime cuda", version, answer, again)
    elif gpu is None:
        found = f"is listed, but there is no NVIDIA GPU: frames go to the CPU{why}"
        yield Check("onnxruntime cuda", "note", found)
    else:
        found = f"is listed but does not start: {provider} takes its place in silence{why}"
        yield Check("onnxruntime cuda", "bad", found, _find_cuda())


def openvino_checks() -> Iterator[Check]:
    """Run the tiny model on the CPU; nothing where it is not installed."""
    openvino = yield from _loaded("openvino")
    if openvino is None:
        return
    with overheard():
        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(core.read_model(tiny_model()), "CPU", config)
        answer = float(compiled({"x": _x()})[0].item())
    version = str(openvino.__version__).partition("-")[0]
    yield _judged("openvino cpu", version, answer, _again("openvino"))


def tensorrt_checks() -> Iterator[Check]:
    """Check that each installed TensorRT loads, and say what keeps engines from being built or run."""
    from fada_deploy.inspection.targets import targets
    from fada_deploy.runtime.backends.trt_library import EXTRAS

    about = {target.name: target for target in targets()}
    some = False
    for flavor, extra in EXTRAS.items():
        trt = yield from _loaded(flavor)
        if trt is None:
            continue
        some = True
        target = about[f"{extra} engine"]
        # What hinders building may hinder running too.
        hindered = dict(said_to_type(text) for text in (target.not_built, target.not_run) if text)
        remedy = next((remedy for remedy in hindered.values() if remedy), "")
        found = "; ".join([f"{trt.__version__} loads", *hindered])
        yield Check(extra, "note" if hindered else "ok", found, remedy)
    cupy = (yield from _loaded("cupy")) if some else None
    if cupy is not None:
        yield _cupy(cupy)


def _loaded(package: str) -> Generator[Check, None, Any]:
    """Return a package's module; None where it is not installed, and with a line where it does not load."""
    if not is_here(package):
        return None
    try:
        with overheard():
            return importlib.import_module(package)
    except Exception as error:
        yield Check(
            package, "bad", f"is installed but does not load ({last_line(error)})", _again(package)
        )
        return None


def _run_onnxruntime(ort: Any, provider: str) -> tuple[float | None, str, str]:
    """Return the model's answer, the provider that the session really got, and what was said meanwhile."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    providers = [_CUDA, _CPU] if provider == _CUDA else [_CPU]
    with overheard() as reason:
        session = ort.InferenceSession(tiny_model(), options, providers=providers)
        got = session.get_providers()[0]
        if got != provider:
            return None, got, reason()
        return float(session.run(["y"], {"x": _x()})[0].item()), got, reason()


def _find_cuda() -> str:
    """Return what to type for CUDA's libraries: those that pip brought are on no path that the loader looks at."""
    spec = find_spec("nvidia") if is_here("nvidia") else None
    places = (
        [Path(place) for place in (spec.submodule_search_locations or ())]
        if spec is not None
        else []
    )
    folders = sorted(
        {str(library.parent) for place in places for library in place.rglob("lib*.so*")}
    )
    known = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if not folders or set(folders) <= set(known):
        return (
            "pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'  # then fada doctor again"
        )
    return f"export LD_LIBRARY_PATH={':'.join([*folders, *filter(None, known)])}"


def _judged(name: str, version: str, answer: float | None, again: str) -> Check:
    right = 1 * 1 + 2 * 2 + 3 * 4 + 4 * 8
    if answer == right:
        return Check(name, "ok", f"{version} runs")
    return Check(name, "bad", f"{version} computes {answer} where {right} is right", again)


def _x() -> Any:
    import numpy as np

    return np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2)


def _cupy(cupy: Any) -> Check:
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return Check(
            "cupy", "note", f"{cupy.__version__} loads, but finds no GPU ({last_line(error)})"
        )
    # A kernel of our own, as the engines' output needs one: compiling is where a wrong CuPy fails.
    total = float((cupy.arange(4) * 2).sum()) if count else 12.0
    if total != 12:
        return Check(
            "cupy", "bad", f"{cupy.__version__} computes {total} where 12 is right", _again("cupy")
        )
    return Check("cupy", "ok", f"{cupy.__version__}, {count} GPU{'s' if count != 1 else ''}")


def _again(module: str) -> str:
    return f"pip install --force-reinstall {_distribution(module)}"


def _distribution(module: str) -> str:
    """Return the name by which pip knows what is installed of a module."""
    plain = module.replace("_", "-")
    names = (f"{plain}-gpu", plain, f"{plain}-cuda13x", f"{plain}-cuda12x")
    return next((name for name in names if installed_version(name) is not None), plain)


def _port(name: bytes, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(_field(1, _number(1, n)) for n in shape)
    tensor = _number(1, 1) + _field(2, dims)  # elem_type FLOAT, shape
    return _field(1, name) + _field(2, _field(1, tensor))


def _field(number: int, payload: bytes) -> bytes:
    assert len(payload) < 128, "a longer one needs a longer length"
    return bytes([number << 3 | 2, len(payload)]) + payload


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3, value])
