"""The targets of `fada export --list`: what this machine can build and run, and why not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from fada_deploy.common.extras import install_command
from fada_deploy.inspection import targets as module
from fada_deploy.inspection.targets import Target, list_targets, targets_table
from fada_deploy.runtime.backends.gpu import Gpu

NAMES = [
    "onnx fp32", "onnx fp16", "onnx bf16", "onnx int8-cpu", "onnx int8-tensorrt",
    "tensorrt engine", "tensorrt-rtx engine", "triton repository",
]  # fmt: skip


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Target]]:
    """Return a function that lists the targets of a machine with only these packages."""

    def simulate(*packages: str, gpu: bool = False) -> dict[str, Target]:
        def find(name: str) -> object | None:
            return object() if name in packages else None

        monkeypatch.setattr(module, "find_spec", find)
        monkeypatch.setattr("fada_deploy.runtime.backend_selection.find_spec", find)
        monkeypatch.setattr(module, "find_gpu", lambda: Gpu("Test GPU", "8.6") if gpu else None)
        return {t.name: t for t in list_targets()}

    return simulate


def test_table_and_documents_list_every_target() -> None:
    targets = list_targets()
    assert [t.name for t in targets] == NAMES
    text = targets_table(targets)
    for target in targets:
        for part in (
            target.name,
            target.needs,
            target.build_problem,
            target.build_remedy,
            target.run_problem,
            target.run_remedy,
        ):
            assert part in text
    documents = json.loads(json.dumps([t.to_dict() for t in targets]))
    assert [(d["name"], d["can_build"], d["can_run"]) for d in documents] == [
        (t.name, t.can_build, t.can_run) for t in targets
    ]


def test_commands_use_options_of_fada_export() -> None:
    import shlex

    from fada_deploy.cli.export import command

    known = {option for parameter in command.params for option in parameter.opts}
    for target in list_targets():
        assert {word for word in shlex.split(target.command) if word.startswith("--")} <= known


def test_without_packages_nothing_builds_and_remedies_are_given(
    machine: Callable[..., dict[str, Target]],
) -> None:
    targets = machine()
    for name in NAMES[:-1]:
        assert not targets[name].can_build and not targets[name].can_run
        assert targets[name].build_remedy.startswith("pip install ")
        assert targets[name].run_remedy.startswith("pip install ")
    assert targets["onnx fp32"].run_remedy == install_command("cpu")
    # A Triton repository needs no packages.
    assert targets["triton repository"].can_build and not targets["triton repository"].can_run


def test_backend_alone_runs_what_it_cannot_build(
    machine: Callable[..., dict[str, Target]],
) -> None:
    targets = machine("onnxruntime")
    assert targets["onnx fp32"].runs_on == ("onnxruntime",) and not targets["onnx fp32"].can_build
    assert "openvino" in targets["onnx bf16"].run_remedy
    assert machine("openvino")["onnx bf16"].runs_on == ("openvino",)


def test_fp32_export_needs_a_backend_to_verify_with(
    machine: Callable[..., dict[str, Target]],
) -> None:
    targets = machine("torch", "safetensors", "onnx", "onnxscript")
    assert "verified" in targets["onnx fp32"].build_problem
    assert targets["onnx fp16"].can_build and not targets["onnx fp16"].can_run


def test_only_tensorrt_needs_a_gpu_to_build(machine: Callable[..., dict[str, Target]]) -> None:
    packages = ("tensorrt", "tensorrt_rtx", "cupy")
    without, with_gpu = machine(*packages), machine(*packages, gpu=True)
    assert "no NVIDIA GPU" in without["tensorrt engine"].build_problem
    assert without["tensorrt-rtx engine"].can_build and not without["tensorrt-rtx engine"].can_run
    for name in ("tensorrt engine", "tensorrt-rtx engine"):
        assert with_gpu[name].can_build and with_gpu[name].runs_on == ("tensorrt",)
    assert "cupy is not installed" in machine("tensorrt", gpu=True)["tensorrt engine"].run_problem


@pytest.mark.parametrize(
    ("capability", "supported"),
    [("8.0", True), ("8.9", True), ("9.0", False), ("10.0", False), ("12.0", True), ("13.0", True)],
)
def test_tensorrt_rtx_on_a_gpu_that_it_does_not_support(
    machine: Callable[..., dict[str, Target]],
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    supported: bool,
) -> None:
    machine("tensorrt_rtx", "cupy", gpu=True)
    monkeypatch.setattr(module, "find_gpu", lambda: Gpu("Another GPU", capability))
    target = {t.name: t for t in list_targets()}["tensorrt-rtx engine"]
    assert (target.can_build, target.can_run) == (supported, supported)
    assert supported or "does not support Another GPU" in target.run_problem


def test_no_optional_package_is_imported() -> None:
    code = (
        "import sys; from fada_deploy.inspection.targets import list_targets, targets_table;"
        "targets_table(list_targets());"
        "print(sorted({m.split('.')[0] for m in sys.modules}"
        " & {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'cupy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
