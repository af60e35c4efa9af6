"""`fada doctor` reports what does not work and how to fix it, and never fails itself."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fada_deploy.common import system
from fada_deploy.common.extras import install_command
from fada_deploy.inspection.doctor import Check, backends, machine, packages, training
from fada_deploy.inspection.doctor.check import captured_output, run_checks
from fada_deploy.inspection.doctor.tiny_model import tiny_model
from fada_deploy.runtime.backends.gpu import Gpu

Run = Callable[..., tuple[int, str, str]]
GPU = "fada_deploy.runtime.backends.gpu.find_gpu"


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that simulates installed versions; None is a missing package."""

    def simulate(**versions: str | None) -> None:
        real = importlib.metadata.version

        def version(name: str) -> str:
            simulated = versions.get(name.replace("-", "_"), "")
            if simulated is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return simulated or real(name)

        monkeypatch.setattr("importlib.metadata.version", version)

    return simulate


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPU, lambda index=0: Gpu("Test GPU", "8.6"))


def add_module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def fake_onnxruntime(*used_providers: str, output: float = 49) -> dict[str, Any]:
    """Return a module that lists CUDA and whose sessions use `used_providers` instead."""

    def session(model: bytes, options: object, providers: list[str]) -> Any:
        print("EP Error: libcudnn.so.9: cannot open shared object file")
        is_cuda = "CUDAExecutionProvider" in providers
        used = list(used_providers) if is_cuda else ["CPUExecutionProvider"]
        return SimpleNamespace(
            get_providers=lambda: used, run=lambda *_: [np.full((1, 1, 1, 1), output)]
        )

    return {
        "__version__": "1.99",
        "get_available_providers": lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "SessionOptions": SimpleNamespace,
        "InferenceSession": session,
    }


def test_no_problem_on_this_machine(
    fada: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = fada("doctor", "--json")
    document = json.loads(out)
    assert (code, err, set(document)) == (0, "", {"problems", "checks"}), document
    assert document["problems"] == 0, document
    for check in document["checks"]:
        assert set(check) == {"name", "state", "detail", "remedy"} and check["detail"]
        assert check["state"] == "warning" or not check["remedy"]
    states = {check["name"]: check["state"] for check in document["checks"]}
    for name in (
        "python",
        "libraries",
        "clashes",
        "onnxruntime cpu",
        "openvino cpu",
        "torch",
        "video",
        "cache",
    ):
        assert states[name] == "ok"
    # onnxruntime may write to the cache folder; the checks do not.
    assert not [p for p in tmp_path.rglob("*") if p.name in ("fada_deploy", "runs")]


def test_remedies_are_below_their_checks(fada: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [
        Check("one", "ok", "works"),
        Check("another", "problem", "does not work", "pip install it"),
        Check("third", "warning", "is slow"),
        Check("fourth", "info", "is optional"),
    ]
    monkeypatch.setattr("fada_deploy.inspection.doctor.diagnose", lambda: checks)
    code, out, _ = fada("doctor")
    assert code == 1
    assert out.splitlines() == [
        "ok       one      works",
        "problem  another  does not work",
        "                  run: pip install it",
        "warning  third    is slow",
        "info     fourth   is optional",
        "1 problem found",
    ]
    monkeypatch.setattr("fada_deploy.inspection.doctor.diagnose", lambda: checks[:1])
    code, out, _ = fada("doctor")
    assert code == 0 and out.splitlines()[-1] == "no problems found"
    monkeypatch.setattr("fada_deploy.inspection.doctor.diagnose", lambda: 2 * checks)
    code, out, _ = fada("doctor")
    assert code == 1 and out.splitlines()[-1] == "2 problems found"


def test_tiny_model_equals_that_of_the_onnx_package() -> None:
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    weights = np.array([[1, 2], [4, 8]], np.float32).reshape(1, 1, 2, 2)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    rebuilt = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    embedded = onnx.load_from_string(tiny_model())
    onnx.checker.check_model(embedded, full_check=True)
    assert embedded.graph.initializer[0] == rebuilt.graph.initializer[0]
    assert (
        embedded.graph.input[0] == rebuilt.graph.input[0]
        and embedded.graph.output[0] == rebuilt.graph.output[0]
    )
    assert len(tiny_model()) < 1000
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 2)).astype(np.float32)
    outputs = [
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for data in (tiny_model(), rebuilt.SerializeToString())
    ]
    assert np.array_equal(*outputs)
    assert outputs[0].item() == pytest.approx(float((x * weights).sum()), rel=1e-5)


def test_two_distributions_of_onnxruntime_clash(installed: Callable[..., None], gpu: None) -> None:
    installed(onnxruntime="1.30.0", onnxruntime_gpu="1.31.0")
    (check,) = packages.clash_checks()
    assert (
        check.state == "problem" and "onnxruntime 1.30.0 and onnxruntime-gpu 1.31.0" in check.detail
    )
    assert (
        check.remedy
        == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


def test_two_distributions_of_opencv_clash(installed: Callable[..., None]) -> None:
    installed(opencv_python="4.12.0", opencv_python_headless="4.11.0")
    (check,) = packages.clash_checks()
    assert check.state == "problem" and check.remedy.endswith(
        "&& pip install opencv-python-headless"
    )
    installed(opencv_python_headless=None, opencv_contrib_python="4.13.0", opencv_python=None)
    assert [c.state for c in packages.clash_checks()] == ["ok"]
    library = by_name(packages.library_checks())["libraries"]
    assert library.state == "ok" and "opencv-contrib-python 4.13.0" in library.detail


def test_tensorrt_version_of_onnxruntime_is_neutral(installed: Callable[..., None]) -> None:
    installed(onnxruntime=None, onnxruntime_gpu="1.31.0", tensorrt="11.4.0")
    note = by_name(packages.clash_checks())["tensorrt in onnxruntime"]
    assert note.state == "info" and "TensorRT 10" in note.detail and "11.4.0" in note.detail
    installed(onnxruntime=None, onnxruntime_gpu="1.31.0", tensorrt="10.16.1")
    assert [c.state for c in packages.clash_checks()] == ["ok"]


REQUIRES = [
    "numpy>=1.26", "opencv-python-headless>=4.10",
    'torch>=2.6; extra == "train"', 'safetensors>=0.4.5; extra == "train"',
    'fada_deploy[onnx,train]; extra == "export"', 'onnxscript>=0.7.2; extra == "export"',
    'onnx>=1.17; extra == "onnx"',
    'tensorrt<12,>=10.16; extra == "tensorrt"', 'cupy-cuda13x[ctk]>=14; extra == "tensorrt"',
    'elsewhere>=1; (sys_platform == "amiga") and extra == "train"',
]  # fmt: skip


def test_extras_are_compared_with_the_metadata(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: REQUIRES)
    monkeypatch.setattr(packages, "_extra_names", lambda: ["train", "export", "onnx", "tensorrt"])
    installed(
        torch="2.10.0+cpu", safetensors="0.4.5", onnxscript="0.7.2", onnx=None, tensorrt=None,
        cupy_cuda13x=None, cupy_cuda12x=None, cupy=None,
    )  # fmt: skip
    checks = by_name(packages.extra_checks())
    detail = "torch 2.10.0+cpu, safetensors 0.4.5"
    assert checks["extra train"] == Check("extra train", "ok", detail)
    others = checks["other extras"]
    assert others.state == "info" and not others.remedy
    # onnxscript is needed by `export` only, so `export` was wanted and is incomplete.
    assert "export (onnx missing), onnx, tensorrt;" in others.detail
    installed(torch="2.5.9", safetensors="1.0rc1", tensorrt="12.0", cupy_cuda13x=None,
              cupy_cuda12x="14.1")  # fmt: skip
    checks = by_name(packages.extra_checks())
    train, tensorrt = checks["extra train"], checks["extra tensorrt"]
    assert train.state == "problem" and "torch 2.5.9 (needs >=2.6)" in train.detail
    assert train.remedy == "pip install 'torch>=2.6'"
    assert "safetensors 1.0rc1" in train.detail and "safetensors 1.0rc1 (" not in train.detail
    assert tensorrt.state == "problem" and "cupy-cuda12x 14.1" in tensorrt.detail


def test_missing_extras_are_neutral(
    fada: Run, installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation with only the CPU backend is complete for its users."""
    requires = [
        "numpy>=1.26", 'onnxruntime>=1.20; extra == "cpu"', 'torch>=2.6; extra == "train"',
        'onnx>=1.17; extra == "onnx"', 'onnxruntime>=1.20; extra == "onnx"',
        'fada_deploy[onnx,train]; extra == "export"', 'matplotlib>=3.8; extra == "plot"',
        'pytest>=8; extra == "dev"',
    ]  # fmt: skip
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requires)
    names = ["cpu", "train", "onnx", "export", "plot", "dev"]
    monkeypatch.setattr(packages, "_extra_names", lambda: names)
    installed(onnxruntime="1.30", torch=None, onnx=None, matplotlib=None, pytest=None)
    cpu, others = packages.extra_checks()
    assert (cpu.name, cpu.state) == ("extra cpu", "ok")
    assert others.detail.startswith("not installed: train, onnx, export, plot;")
    assert (others.state, others.remedy) == ("info", "")
    monkeypatch.setattr("fada_deploy.inspection.doctor.diagnose", lambda: [cpu, others])
    code, out, _ = fada("doctor")
    assert code == 0 and "warning" not in out and out.splitlines()[-1] == "no problems found"


def test_old_and_missing_libraries_are_a_problem(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: REQUIRES)
    installed(numpy="1.25.2", opencv_python_headless=None)
    check = by_name(packages.library_checks())["libraries"]
    assert check.state == "problem"
    assert check.remedy == "pip install 'numpy>=1.26' 'opencv-python-headless>=4.10'"
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.10.4")
    (check,) = packages.python_check()
    assert check.state == "problem" and ">=3.11" in check.detail and check.remedy


def test_missing_package_metadata_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("version", "requires", "metadata"):
        monkeypatch.setattr(f"importlib.metadata.{function}", gone)
    assert [
        c.state
        for c in (*packages.python_check(), *packages.library_checks(), *packages.extra_checks())
    ] == [
        "ok",
        "warning",
        "ok",
    ]


def test_silent_fallback_to_the_cpu_is_a_problem(
    gpu: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    add_module(monkeypatch, "onnxruntime", **fake_onnxruntime("CPUExecutionProvider"))
    checks = by_name(backends.onnxruntime_checks())
    assert checks["onnxruntime cpu"].state == "ok"
    cuda = checks["onnxruntime cuda"]
    assert cuda.state == "problem" and "silently" in cuda.detail and "libcudnn.so.9" in cuda.detail
    assert cuda.remedy
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(GPU, lambda index=0: None)
    assert by_name(backends.onnxruntime_checks())["onnxruntime cuda"].state == "info"


def test_cuda_libraries_from_pip_are_added_to_the_search_path(
    gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "nvidia/cu13/lib"
    folder.mkdir(parents=True)
    (folder / "libcublasLt.so.13").touch()
    add_module(monkeypatch, "onnxruntime", **fake_onnxruntime("CPUExecutionProvider"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    spec = ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "nvidia")]
    monkeypatch.setattr(backends, "find_spec", lambda name: spec)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/other")
    remedy = by_name(backends.onnxruntime_checks())["onnxruntime cuda"].remedy
    assert remedy == f"export LD_LIBRARY_PATH={folder}:/other"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{folder}")
    assert by_name(backends.onnxruntime_checks())["onnxruntime cuda"].remedy.startswith(
        "pip install"
    )


def test_wrong_output_is_a_problem(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    add_module(monkeypatch, "onnxruntime", **fake_onnxruntime("CUDAExecutionProvider"))
    assert [c.state for c in backends.onnxruntime_checks()] == ["ok", "ok"]
    add_module(monkeypatch, "onnxruntime", **fake_onnxruntime("CUDAExecutionProvider", output=48))
    wrong = by_name(backends.onnxruntime_checks())["onnxruntime cuda"]
    assert wrong.state == "problem" and "48" in wrong.detail and "49" in wrong.detail


def test_unused_gpu_is_a_warning(gpu: None) -> None:
    pytest.importorskip("onnxruntime")
    check = by_name(backends.onnxruntime_checks())["onnxruntime cuda"]
    assert check.state == "warning" and check.remedy.endswith(install_command("gpu"))


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "tensorrt_rtx"])
@pytest.mark.parametrize(
    "error", ["ImportError('libfoo.so.3: cannot open')", "ModuleNotFoundError('x')", "1 / 0"]
)
def test_backend_that_cannot_be_imported_is_a_problem(
    package: str, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise {error}\n")
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    part = {
        "onnxruntime": backends.onnxruntime_checks,
        "openvino": backends.openvino_checks,
        "tensorrt_rtx": backends.tensorrt_checks,
    }[package]
    check = by_name(part())[package]
    assert check.state == "problem" and "cannot be imported" in check.detail
    assert check.remedy == f"pip install --force-reinstall {package.replace('_', '-')}"


def test_no_backend_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_deploy.runtime.backend_selection.find_spec", lambda name: None)
    (check,) = backends.backend_check()
    assert check.state == "problem" and check.remedy == install_command("cpu")


def test_tensorrt_without_a_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    add_module(monkeypatch, "tensorrt", __version__="11.4.0")
    monkeypatch.setattr("fada_deploy.inspection.targets.find_gpu", lambda: None)
    check = by_name(backends.tensorrt_checks())["tensorrt"]
    assert check.state == "warning" and "11.4.0" in check.detail and "no NVIDIA GPU" in check.detail


def test_cupy_without_a_driver_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    class CUDARuntimeError(RuntimeError):
        pass

    def no_driver() -> int:
        raise CUDARuntimeError("cudaErrorInsufficientDriver")

    add_module(monkeypatch, "tensorrt", __version__="11.4.0")
    runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=no_driver)
    add_module(
        monkeypatch,
        "cupy",
        __version__="14.0",
        cuda=SimpleNamespace(runtime=runtime),
        arange=np.arange,
    )
    note = by_name(backends.cupy_check())["cupy"]
    assert note.state == "warning" and "cudaErrorInsufficientDriver" in note.detail
    runtime.getDeviceCount = lambda: 1
    assert by_name(backends.cupy_check())["cupy"] == Check("cupy", "ok", "14.0, 1 GPU")


def test_invalid_or_too_many_threads_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_deploy.common.system.usable_cores", lambda: 2)
    for value, state in (
        ("64", "warning"),
        ("2", "ok"),
        ("8,2", "warning"),
        ("many", "warning"),
        ("0", "warning"),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        check = by_name(machine.core_checks())["OMP_NUM_THREADS"]
        assert check.state == state and bool(check.remedy) == (state == "warning")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert by_name(machine.core_checks())["OMP_NUM_THREADS"].remedy == "export OMP_NUM_THREADS=2"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_quota_limits_the_number_of_cores(
    files: dict[str, str], quota: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("fada_deploy.common.system._CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert system.cpu_quota() == quota
    assert system.usable_cores() == (8 if quota is None else math.ceil(quota))
    detail = by_name(machine.core_checks())["cores"].detail
    assert (f"processor time of {quota:g}" in detail) if quota else ("time" not in detail)


def test_unwritable_cache_is_a_problem(
    fada: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    # A file in place of a folder, because the tests may run as root.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/cache"))
    code, out, _ = fada("doctor")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("problem  cache"))
    assert "cannot be written" in lines[at] and "run: export XDG_CACHE_HOME=" in lines[at + 1]
    assert (code, lines[-1]) == (1, "1 problem found")


def test_nearly_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert {c.state for c in machine.disk_checks() if c.name == "runs"} == {"warning"}


def test_pyav_without_h264_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.codecs_available", {"h264"})
    (check,) = machine.video_checks()
    assert (
        check.state == "problem" and check.detail.endswith("codec libx264") and "av" in check.remedy
    )


def test_windows_need_a_screen_and_opencv_with_gui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for screen, gui, state in (
        (":0", "QT5", "ok"),
        (":0", "NONE", "warning"),
        ("", "QT5", "info"),
        ("", "NONE", "info"),
    ):
        monkeypatch.setenv("DISPLAY", screen)
        monkeypatch.setattr("cv2.getBuildInformation", lambda gui=gui: f"  GUI:        {gui}\n")
        (check,) = machine.display_check()
        assert check.state == state and bool(check.remedy) == (state == "warning")


def test_missing_numba_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "is_installed", lambda name: False)
    # Outside the checkout the command names its folder.
    monkeypatch.chdir(tmp_path)
    (check,) = machine.kernel_check()
    assert check.state == "warning" and check.remedy == install_command("fast")
    assert ".[fast]" not in check.remedy


def test_numba_that_cannot_compile_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_deploy.runtime.kernels.loader.KernelLoader.wait", lambda self: False)
    monkeypatch.setitem(sys.modules, "fada_deploy.runtime.kernels.upsample_compiled", None)
    monkeypatch.delattr("fada_deploy.runtime.kernels.upsample_compiled", raising=False)
    monkeypatch.setattr(machine, "is_installed", lambda name: True)
    (check,) = machine.kernel_check()
    assert check.state == "warning" and "Error" in check.detail and check.remedy


@pytest.mark.parametrize(
    ("code", "state", "text"),
    [
        ("print('[\"13.0\", 2]')", "ok", "CUDA 13.0, 2 GPUs"),
        ("print('[\"13.0\", 0]')", "problem", "driver may be too old"),
        ("print('[null, 0]')", "warning", "built without CUDA"),
        ("raise ImportError('libtorch.so: cannot open')", "problem", "libtorch.so: cannot open"),
        ("import os; os.abort()", "problem", "exit code -6"),
        ("import time; time.sleep(60)", "problem", "within 1 s"),
    ],
)
def test_torch_is_imported_in_another_process(
    code: str, state: str, text: str, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CODE", code)
    monkeypatch.setattr(training, "_TIMEOUT_S", 1.0 if "sleep" in code else 60.0)
    monkeypatch.setattr(training, "is_installed", lambda name: True)
    torch = training.TorchCheck()
    (check,) = torch.checks()
    torch.close()
    assert check.state == state and text in check.detail


def test_exception_in_a_check_becomes_a_problem() -> None:
    def part() -> Iterable[Check]:
        yield Check("first", "ok", "fine")
        raise RuntimeError("something\n\nthe last line\n")

    first, broken = run_checks("second", part)
    assert first.state == "ok"
    assert (
        broken.state == "problem"
        and broken.detail == "RuntimeError: the last line"
        and broken.remedy
    )


def test_output_of_libraries_is_captured(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_output() as reason:
        os.write(2, b"\x1b[0;31mFailed to load libcublas\x1b[m\nand so on\n")
        print("chatter")
        assert reason() == "Failed to load libcublas"
        os.write(
            2, b"\x1b[1;31m2026 [E:onnxruntime:Default, bridge.cc:9 Get()] /src/bridge.cc:4 Get() "
        )
        os.write(
            2, b"with error: libcublas.so.13: cannot open shared object file\x1b[m\nFailed: it\n"
        )
        assert reason() == "libcublas.so.13: cannot open shared object file"
    print("after")
    assert capfd.readouterr() == ("after\n", "")


def run_fada(code: str, **environ: str) -> tuple[int, dict[str, Check], str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        check=False,
    )
    assert done.stdout.startswith("{"), done.stderr
    return (
        done.returncode,
        by_name(Check(**c) for c in json.loads(done.stdout)["checks"]),
        done.stderr,
    )


def test_doctor_works_without_torch_and_onnx() -> None:
    code, checks, stderr = run_fada(
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from fada_deploy.cli import main; main(['doctor', '--json'])"
    )
    assert code == 0, checks
    assert "torch" not in checks and checks["onnxruntime cpu"].state == "ok"
    assert "Traceback" not in stderr


def test_opencv_that_cannot_be_imported_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')\n"
    )
    code, checks, _ = run_fada(
        "import sys; sys.modules['torch'] = None\n"
        "from fada_deploy.cli import main; main(['doctor', '--json'])",
        PYTHONPATH=str(tmp_path),
    )
    assert code == 1
    assert checks["cv2"].state == "problem" and "libGL.so.1" in checks["cv2"].detail
    assert checks["cv2"].remedy == "pip install --force-reinstall opencv-python-headless"
    assert {
        checks[name].state
        for name in ("python", "onnxruntime cpu", "openvino cpu", "cores", "runs")
    } == {"ok"}
