"""`fada export --list` says what there is, what can be made and run here, and why not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from fada_deploy.inspection import targets as module
from fada_deploy.inspection.targets import Target, table, targets
from fada_deploy.runtime.backends.gpu import Gpu

NAMES = [
    "onnx fp32", "onnx fp16", "onnx bf16", "onnx int8-cpu", "onnx int8-tensorrt",
    "tensorrt engine", "tensorrt-rtx engine", "triton repository",
]  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Target]]:
    """Return a function that lists the targets of a machine with only these packages, and perhaps a GPU."""

    def pretend(*packages: str, gpu: bool = False) -> dict[str, Target]:
        def find(name: str) -> object | None:
            return object() if name in packages else None

        monkeypatch.setattr(module, "find_spec", find)
        monkeypatch.setattr("fada_deploy.runtime.backend_selection.find_spec", find)
        monkeypatch.setattr(module, "find_gpu", lambda: Gpu("a card", "8.6") if gpu else None)
        return {t.name: t for t in targets()}

    return pretend


def test_every_target_is_listed_with_what_it_needs() -> None:
    found = targets()
    assert [t.name for t in found] == NAMES
    text = table(found)
    for target in found:
        assert target.name in text and target.needs in text
        assert target.not_built in text and target.not_run in text
    documents = json.loads(json.dumps([t.to_dict() for t in found]))
    assert [(d["name"], d["can_build"], d["can_run"]) for d in documents] == [
        (t.name, t.can_build, t.can_run) for t in found
    ]


def test_the_commands_exist() -> None:
    import shlex

    from fada_deploy.cli.export import command

    known = {option for parameter in command.params for option in parameter.opts}
    for target in targets():
        assert {word for word in shlex.split(target.command) if word.startswith("--")} <= known


def test_a_bare_machine_builds_nothing_and_says_what_to_type(
    machine: Callable[..., dict[str, Target]],
) -> None:
    found = machine()
    for name in NAMES[:-1]:
        assert not found[name].can_build and not found[name].can_run
        assert "pip install 'fada_deploy[" in found[name].not_built
    assert found["onnx fp32"].not_run.endswith("pip install 'fada_deploy[cpu]'")
    # Copying a file needs nothing.
    assert found["triton repository"].can_build and not found["triton repository"].can_run


def test_a_runtime_machine_runs_what_it_cannot_build(
    machine: Callable[..., dict[str, Target]],
) -> None:
    found = machine("onnxruntime")
    assert found["onnx fp32"].runs_on == ("onnxruntime",) and not found["onnx fp32"].can_build
    assert "openvino" in found["onnx bf16"].not_run
    assert machine("openvino")["onnx bf16"].runs_on == ("openvino",)


def test_with_no_engine_nothing_is_proven(machine: Callable[..., dict[str, Target]]) -> None:
    found = machine("torch", "safetensors", "onnx", "onnxscript")
    assert "nothing would be proven" in found["onnx fp32"].not_built
    assert found["onnx fp16"].can_build and not found["onnx fp16"].can_run


def test_engines_need_a_gpu_where_they_do(machine: Callable[..., dict[str, Target]]) -> None:
    packages = ("tensorrt", "tensorrt_rtx", "cupy")
    without, with_gpu = machine(*packages), machine(*packages, gpu=True)
    assert "no NVIDIA GPU" in without["tensorrt engine"].not_built
    assert without["tensorrt-rtx engine"].can_build and not without["tensorrt-rtx engine"].can_run
    for name in ("tensorrt engine", "tensorrt-rtx engine"):
        assert with_gpu[name].can_build and with_gpu[name].runs_on == ("tensorrt",)
    assert "cupy is not installed" in machine("tensorrt", gpu=True)["tensorrt engine"].not_run


def test_nothing_optional_is_imported() -> None:
    code = (
        "import sys; from fada_deploy.inspection.targets import table, targets; table(targets());"
        "print(sorted({m.split('.')[0] for m in sys.modules}"
        " & {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'cupy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
