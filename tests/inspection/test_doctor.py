"""`fada doctor` finds what is broken, says what to type, and breaks at nothing itself."""

from __future__ import annotations

import importlib.metadata
import json
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

from fada_deploy.inspection.doctor import Check, machine, packages, training
from fada_deploy.inspection.doctor import backends as engines
from fada_deploy.inspection.doctor.check import guarded, overheard
from fada_deploy.runtime.backends.gpu import Gpu

Run = Callable[..., tuple[int, str, str]]
GPU = "fada_deploy.runtime.backends.gpu.find_gpu"


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that pretends these versions, None for what is not there; others stay as they are."""

    def pretend(**versions: str | None) -> None:
        real = importlib.metadata.version

        def version(name: str) -> str:
            found = versions.get(name.replace("-", "_"), "")
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found or real(name)

        monkeypatch.setattr("importlib.metadata.version", version)

    return pretend


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPU, lambda index=0: Gpu("a card", "8.6"))


def put(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def onnxruntime_that_gives(*providers: str, answer: float = 49) -> dict[str, Any]:
    """Return a library that lists CUDA, and whose sessions get other providers than they were asked for."""

    def session(model: bytes, options: object, providers: list[str]) -> Any:
        print("EP Error: libcudnn.so.9: cannot open shared object file")
        got = given if "CUDAExecutionProvider" in providers else ["CPUExecutionProvider"]
        return SimpleNamespace(
            get_providers=lambda: got, run=lambda *_: [np.full((1, 1, 1, 1), answer)]
        )

    given = list(providers)
    return {
        "__version__": "1.99",
        "get_available_providers": lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        "SessionOptions": SimpleNamespace,
        "InferenceSession": session,
    }


def test_nothing_is_bad_here(fada: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = fada("doctor", "--json")
    document = json.loads(out)
    assert (code, err, set(document), document["bad"]) == (0, "", {"bad", "checks"}, 0), document
    for check in document["checks"]:
        assert set(check) == {"name", "state", "found", "remedy"} and check["found"]
        assert check["state"] == "note" or (check["state"] == "ok" and not check["remedy"])
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
    # onnxruntime keeps a file of its own in the cache folder.
    assert not [p for p in tmp_path.rglob("*") if p.name in ("fada_deploy", "runs")]


def test_the_table_has_remedies_under_their_lines(
    fada: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        Check("one", "ok", "is well"),
        Check("another", "bad", "is not", "mend it"),
        Check("third", "note", "is slow"),
    ]
    monkeypatch.setattr("fada_deploy.inspection.doctor.diagnose", lambda: checks)
    code, out, _ = fada("doctor")
    assert code == 1
    assert out.splitlines() == [
        "ok    one      is well",
        "bad   another  is not",
        "               type: mend it",
        "note  third    is slow",
        "1 to mend",
    ]
    monkeypatch.setattr("fada_deploy.inspection.doctor.diagnose", lambda: checks[:1])
    code, out, _ = fada("doctor")
    assert code == 0 and out.splitlines()[-1] == "all well"


def test_the_tiny_model_is_what_onnx_would_write() -> None:
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
    embedded = onnx.load_from_string(engines.tiny_model())
    onnx.checker.check_model(embedded, full_check=True)
    assert embedded.graph.initializer[0] == rebuilt.graph.initializer[0]
    assert (
        embedded.graph.input[0] == rebuilt.graph.input[0]
        and embedded.graph.output[0] == rebuilt.graph.output[0]
    )
    assert len(engines.tiny_model()) < 1000
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 2)).astype(np.float32)
    answers = [
        ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for data in (engines.tiny_model(), rebuilt.SerializeToString())
    ]
    assert np.array_equal(*answers)
    assert answers[0].item() == pytest.approx(float((x * weights).sum()), rel=1e-5)


def test_two_onnxruntimes_clash(installed: Callable[..., None], a_gpu: None) -> None:
    installed(onnxruntime="1.30.0", onnxruntime_gpu="1.31.0")
    (check,) = packages.clashes()
    assert check.state == "bad" and "onnxruntime 1.30.0 and onnxruntime-gpu 1.31.0" in check.found
    assert (
        check.remedy
        == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


def test_two_opencvs_clash_and_another_one_does_not(installed: Callable[..., None]) -> None:
    installed(opencv_python="4.12.0", opencv_python_headless="4.11.0")
    (check,) = packages.clashes()
    assert check.state == "bad" and check.remedy.endswith("&& pip install opencv-python-headless")
    installed(opencv_python_headless=None, opencv_contrib_python="4.12.0", opencv_python=None)
    assert [c.state for c in packages.clashes()] == ["ok"]
    library = by_name(packages.libraries())["libraries"]
    assert library.state == "ok" and "opencv-contrib-python 4.12.0" in library.found


def test_onnxruntimes_own_tensorrt_is_only_a_note(installed: Callable[..., None]) -> None:
    installed(onnxruntime=None, onnxruntime_gpu="1.31.0", tensorrt="11.4.0")
    note = by_name(packages.clashes())["tensorrt in onnxruntime"]
    assert note.state == "note" and "TensorRT 10" in note.found and "11.4.0" in note.found
    installed(onnxruntime=None, onnxruntime_gpu="1.31.0", tensorrt="10.16.1")
    assert [c.state for c in packages.clashes()] == ["ok"]


REQUIRES = [
    "numpy>=1.26", "opencv-python-headless>=4.10",
    'torch>=2.6; extra == "train"', 'safetensors>=0.4.5; extra == "train"',
    'fada_deploy[onnx,train]; extra == "export"', 'onnxscript>=0.3; extra == "export"',
    'onnx>=1.17; extra == "onnx"',
    'tensorrt<12,>=10.16; extra == "tensorrt"', 'cupy-cuda13x[ctk]>=14; extra == "tensorrt"',
    'elsewhere>=1; (sys_platform == "amiga") and extra == "train"',
]  # fmt: skip


def test_extras_are_compared_with_the_metadata(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: REQUIRES)
    installed(
        torch="2.10.0+cpu",
        safetensors="0.4.5",
        onnxscript="0.3",
        onnx=None,
        tensorrt=None,
        cupy_cuda13x=None,
    )
    found = by_name(packages.extras())
    assert found["extra train"] == Check("extra train", "ok", "torch 2.10.0+cpu, safetensors 0.4.5")
    assert found["extra export"].state == "note" and "onnx missing" in found["extra export"].found
    assert found["extra export"].remedy == "pip install 'fada_deploy[export]'"
    assert "onnx, tensorrt" in found["other extras"].found and found["other extras"].state == "ok"
    installed(
        torch="2.5.9", safetensors="1.0rc1", tensorrt="12.0", cupy_cuda13x=None, cupy_cuda12x="14.1"
    )
    found = by_name(packages.extras())
    assert (
        found["extra train"].state == "bad"
        and "torch 2.5.9, where >=2.6 is needed" in found["extra train"].found
    )
    assert (
        found["extra tensorrt"].state == "bad"
        and "cupy-cuda12x 14.1" in found["extra tensorrt"].found
    )


def test_old_and_missing_libraries_are_bad(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda name: REQUIRES)
    installed(numpy="1.25.2", opencv_python_headless=None)
    check = by_name(packages.libraries())["libraries"]
    assert check.state == "bad"
    assert check.remedy == "pip install 'numpy>=1.26' 'opencv-python-headless>=4.10'"
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.10.4")
    (check,) = packages.python()
    assert check.state == "bad" and ">=3.11" in check.found and check.remedy


def test_without_metadata_it_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("version", "requires", "metadata"):
        monkeypatch.setattr(f"importlib.metadata.{function}", gone)
    assert [c.state for c in (*packages.python(), *packages.libraries(), *packages.extras())] == [
        "ok",
        "note",
        "ok",
    ]


def test_a_provider_that_falls_back_in_silence_is_bad(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, "onnxruntime", **onnxruntime_that_gives("CPUExecutionProvider"))
    found = by_name(engines.onnxruntime_checks())
    assert found["onnxruntime cpu"].state == "ok"
    cuda = found["onnxruntime cuda"]
    assert cuda.state == "bad" and "in silence" in cuda.found and "libcudnn.so.9" in cuda.found
    assert cuda.remedy
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(GPU, lambda index=0: None)
    assert by_name(engines.onnxruntime_checks())["onnxruntime cuda"].state == "note"


def test_cuda_that_pip_brought_is_put_on_the_loaders_path(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "nvidia/cu13/lib"
    folder.mkdir(parents=True)
    (folder / "libcublasLt.so.13").touch()
    put(monkeypatch, "onnxruntime", **onnxruntime_that_gives("CPUExecutionProvider"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    spec = ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "nvidia")]
    monkeypatch.setattr(engines, "find_spec", lambda name: spec)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/other")
    remedy = by_name(engines.onnxruntime_checks())["onnxruntime cuda"].remedy
    assert remedy == f"export LD_LIBRARY_PATH={folder}:/other"
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{folder}")
    assert by_name(engines.onnxruntime_checks())["onnxruntime cuda"].remedy.startswith(
        "pip install"
    )


def test_a_provider_that_starts_must_compute_right(
    a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, "onnxruntime", **onnxruntime_that_gives("CUDAExecutionProvider"))
    assert [c.state for c in engines.onnxruntime_checks()] == ["ok", "ok"]
    put(monkeypatch, "onnxruntime", **onnxruntime_that_gives("CUDAExecutionProvider", answer=48))
    wrong = by_name(engines.onnxruntime_checks())["onnxruntime cuda"]
    assert wrong.state == "bad" and "48" in wrong.found and "49" in wrong.found


def test_a_gpu_that_stands_idle_is_a_note(a_gpu: None) -> None:
    pytest.importorskip("onnxruntime")
    idle = by_name(engines.onnxruntime_checks())["onnxruntime cuda"]
    assert idle.state == "note" and "fada_deploy[gpu]" in idle.remedy


@pytest.mark.parametrize("package", ["onnxruntime", "openvino", "tensorrt_rtx"])
@pytest.mark.parametrize(
    "error", ["ImportError('libfoo.so.3: cannot open')", "ModuleNotFoundError('x')", "1 / 0"]
)
def test_an_engine_that_does_not_load_is_one_bad_line(
    package: str, error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise {error}\n")
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    part = {
        "onnxruntime": engines.onnxruntime_checks,
        "openvino": engines.openvino_checks,
        "tensorrt_rtx": engines.tensorrt_checks,
    }[package]
    check = by_name(part())[package]
    assert check.state == "bad" and "does not load" in check.found
    assert check.remedy == f"pip install --force-reinstall {package.replace('_', '-')}"


def test_no_engine_at_all_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_deploy.runtime.backend_selection.find_spec", lambda name: None)
    (check,) = engines.some_engine()
    assert check.state == "bad" and check.remedy.startswith("pip install 'fada_deploy[cpu]'")


def test_tensorrt_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, "tensorrt", __version__="11.4.0")
    monkeypatch.setattr("fada_deploy.inspection.targets.find_gpu", lambda: None)
    check = by_name(engines.tensorrt_checks())["tensorrt"]
    assert (
        check.state == "note" and "11.4.0 loads" in check.found and "no NVIDIA GPU" in check.found
    )


def test_cupy_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class CUDARuntimeError(RuntimeError):
        pass

    def no_driver() -> int:
        raise CUDARuntimeError("cudaErrorInsufficientDriver")

    put(monkeypatch, "tensorrt", __version__="11.4.0")
    runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=no_driver)
    put(
        monkeypatch,
        "cupy",
        __version__="14.0",
        cuda=SimpleNamespace(runtime=runtime),
        arange=np.arange,
    )
    note = by_name(engines.tensorrt_checks())["cupy"]
    assert note.state == "note" and "cudaErrorInsufficientDriver" in note.found
    runtime.getDeviceCount = lambda: 1
    assert by_name(engines.tensorrt_checks())["cupy"] == Check("cupy", "ok", "14.0, 1 GPU")


def test_too_many_threads_are_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr("fada_deploy.common.system.usable_cores", lambda: 2)
    for asked, state in (
        ("64", "note"),
        ("2", "ok"),
        ("8,2", "note"),
        ("many", "note"),
        ("0", "note"),
    ):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        check = by_name(machine.cores())["OMP_NUM_THREADS"]
        assert check.state == state and bool(check.remedy) == (state == "note")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert by_name(machine.cores())["OMP_NUM_THREADS"].remedy == "export OMP_NUM_THREADS=2"


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
def test_a_quota_below_the_cores_is_a_note(
    files: dict[str, str], quota: float | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr("fada_deploy.common.system.usable_cores", lambda: 8)
    check = by_name(machine.cores()).get("core quota")
    if quota is None:
        assert check is None
    else:
        assert check is not None and check.state == "note" and f"{quota:g} cores" in check.found
        assert check.remedy == f"taskset -c {min(os.sched_getaffinity(0))} fada …"


def test_a_cache_that_cannot_be_written_is_bad(
    fada: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    # Not a matter of permissions: the tests may run as root.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file/cache"))
    code, out, _ = fada("doctor")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("bad   cache"))
    assert "cannot be written" in lines[at] and "type: export XDG_CACHE_HOME=" in lines[at + 1]
    assert (code, lines[-1]) == (1, "1 to mend")


def test_a_disk_that_is_nearly_full_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert {c.state for c in machine.disks() if c.name == "runs"} == {"note"}


def test_a_pyav_without_h264_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.codecs_available", {"h264"})
    (check,) = machine.codecs()
    assert (
        check.state == "bad" and check.found.endswith("no codec libx264") and "av" in check.remedy
    )


def test_windows_need_a_screen_and_an_opencv_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for screen, gui, state in (
        (":0", "QT5", "ok"),
        (":0", "NONE", "note"),
        ("", "QT5", "note"),
        ("", "NONE", "note"),
    ):
        monkeypatch.setenv("DISPLAY", screen)
        monkeypatch.setattr("cv2.getBuildInformation", lambda gui=gui: f"  GUI:        {gui}\n")
        (check,) = machine.display()
        assert check.state == state and bool(check.remedy) == (state == "note")


def test_kernels_without_numba_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "is_here", lambda name: False)
    (check,) = machine.kernels()
    assert check.state == "note" and check.remedy == "pip install 'fada_deploy[fast]'"


def test_numba_that_does_not_compile_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fada_deploy.runtime.kernels.loader.KernelLoader.wait", lambda self: False)
    monkeypatch.setitem(sys.modules, "fada_deploy.runtime.kernels.upsample_compiled", None)
    monkeypatch.delattr("fada_deploy.runtime.kernels.upsample_compiled", raising=False)
    monkeypatch.setattr(machine, "is_here", lambda name: True)
    (check,) = machine.kernels()
    assert check.state == "note" and "Error" in check.found and check.remedy


@pytest.mark.parametrize(
    ("code", "state", "text"),
    [
        ("print('[\"13.0\", 2]')", "ok", "CUDA 13.0, 2 GPUs"),
        ("print('[\"13.0\", 0]')", "bad", "the driver may be too old"),
        ("print('[null, 0]')", "note", "built without CUDA"),
        ("raise ImportError('libtorch.so: cannot open')", "bad", "libtorch.so: cannot open"),
        ("import os; os.abort()", "bad", "exit code -6"),
        ("import time; time.sleep(60)", "bad", "within 1 s"),
    ],
)
def test_torch_is_asked_in_another_process(
    code: str, state: str, text: str, a_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CODE", code)
    monkeypatch.setattr(training, "_PATIENCE_S", 1.0 if "sleep" in code else 60.0)
    monkeypatch.setattr(training, "is_here", lambda name: True)
    torch = training.Torch()
    (check,) = torch.checks()
    torch.close()
    assert check.state == state and text in check.found


def test_a_check_that_raises_is_a_bad_line_of_its_own() -> None:
    def part() -> Iterable[Check]:
        yield Check("first", "ok", "fine")
        raise RuntimeError("something\n\nthe last line\n")

    first, broken = guarded("second", part)
    assert first.state == "ok"
    assert broken.state == "bad" and broken.found == "RuntimeError: the last line" and broken.remedy


def test_what_a_library_prints_stays_off_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with overheard() as reason:
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


def test_it_works_without_torch_and_onnx() -> None:
    code, found, said = run_fada(
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None\n"
        "from fada_deploy.cli import main; main(['doctor', '--json'])"
    )
    assert code == 0, found
    assert "torch" not in found and found["onnxruntime cpu"].state == "ok"
    assert "Traceback" not in said


def test_an_opencv_that_does_not_load_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')\n"
    )
    code, found, _ = run_fada(
        "import sys; sys.modules['torch'] = None\nfrom fada_deploy.cli import main; main(['doctor', '--json'])",
        PYTHONPATH=str(tmp_path),
    )
    assert code == 1
    assert found["cv2"].state == "bad" and "libGL.so.1" in found["cv2"].found
    assert found["cv2"].remedy == "pip install --force-reinstall opencv-python-headless"
    assert {
        found[name].state for name in ("python", "onnxruntime cpu", "openvino cpu", "cores", "runs")
    } == {"ok"}
