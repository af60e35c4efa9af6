"""An engine is loaded only if its sidecar describes it; every error is one line."""

from __future__ import annotations

import ctypes
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy

from fada_deploy.common.documents import MAX_BYTES
from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends import gpu
from fada_deploy.runtime.backends.engine_file import (
    EngineSidecar,
    EngineTensor,
    can_write_sidecar,
    check_can_run,
    load_engine,
    read_engine,
    sidecar_path,
    write_sidecar,
)

PLAN = b"a plan of no library" * 50


def sidecar_of(plan: bytes = PLAN, **changes: Any) -> EngineSidecar:
    sidecar = EngineSidecar(
        flavor="tensorrt_rtx",
        flavor_version="1.7.1.116",
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        engine_bytes=len(plan),
        onnx_name="model.fp16.onnx",
        onnx_sha256="0" * 64,
        metadata=ModelMetadata(
            toy.SPACE, (64, 128), "logits", align_corners=False, precision="fp16"
        ),
        io=(
            EngineTensor("frames", "in", "uint8", (-1, 64, 128, 3)),
            EngineTensor("logits", "out", "float", (-1, 13, 8, 16)),
        ),
        precision="fp16",
        layers={"fp16": 54},
        compute_capabilities=("SM86",),
        profile=(1, 1, 8),
        options={"level": 3},
        versions={"fada_deploy": "0.1.0"},
    )
    return replace(sidecar, **changes)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(PLAN)
    write_sidecar(path, sidecar_of())
    return path


def error_message(run: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sidecar_round_trip(engine: Path) -> None:
    assert sidecar_path(engine).name == "model.engine.json" and can_write_sidecar(engine)
    assert load_engine(engine) == (sidecar_of(), PLAN)
    verified = sidecar_of(
        verification={"tensorrt": {"equal_labels": 1.0}}, profile=None, gpu="A card"
    )
    write_sidecar(engine, verified)
    assert read_engine(engine) == verified
    assert json.loads(sidecar_path(engine).read_text())["metadata"]["precision"] == "fp16"


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda p: sidecar_path(p).unlink(), ["model.engine.json is missing", "fada export"]),
        (lambda p: sidecar_path(p).write_text("{"), ["model.engine.json", "invalid JSON"]),
        (lambda p: sidecar_path(p).write_text("[]"), ["model.engine.json", "found a list"]),
        (lambda p: sidecar_path(p).write_text("[" * 9999), ["model.engine.json", "fada export"]),
        (lambda p: sidecar_path(p).write_bytes(b"\xff\xfe"), ["model.engine.json", "utf-8"]),
        (
            lambda p: sidecar_path(p).write_text(" " * (MAX_BYTES + 1)),
            ["model.engine.json", f"{MAX_BYTES >> 20} MiB"],
        ),
        (lambda p: p.write_bytes(PLAN[:-1]), ["999 bytes", "1000 bytes", "model.fp16.onnx --trt"]),
        (lambda p: p.write_bytes(PLAN[:-1] + b"!"), ["sha256", "model.fp16.onnx --trt"]),
        (lambda p: write_sidecar(p, sidecar_of(b"b" * 1000)), ["sha256", "model.engine.json"]),
        (lambda p: p.unlink(), ["model.engine", "cannot be read"]),
    ],
)
def test_rejects_missing_damaged_and_other_files(
    engine: Path, damage: Callable[[Path], None], parts: list[str]
) -> None:
    damage(engine)
    message = error_message(lambda: read_engine(engine))
    assert all(part in message for part in parts), message


def with_value(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set the value at a dotted path; `...` deletes the key."""
    target = document
    *parents, key = path.split(".")
    for parent in parents:
        target = target[parent]
    if value is ...:
        del target[key]
    else:
        target[key] = value
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", 2),
        ("schema", "1"),
        ("flavor", "caffe"),
        ("flavor_version", None),
        ("verification", "verified"),
        ("verification", {"tensorrt": 1}),
        ("profile", {"min": 1}),
        ("profile", {"min": 0, "opt": 1, "max": 2}),
        ("profile", {"min": 4, "opt": 2, "max": 8}),
        ("profile", {"min": 1, "opt": 1.5, "max": 2}),
        ("engine", None),
        ("engine.sha256", "0" * 63),
        ("engine.sha256", "z" * 64),
        ("engine.bytes", "1000"),
        ("engine.bytes", -1),
        ("onnx.name", "../other/model.onnx"),
        ("onnx.name", ""),
        ("onnx.sha256", 7),
        ("compute_capabilities", ["8.6"]),
        ("compute_capabilities", ["SM"]),
        ("compute_capabilities", "SM86"),
        ("gpu", None),
        ("io", [{"name": "frames"}]),
        ("io", [{"name": "frames", "kind": "both", "dtype": "uint8", "shape": [1]}]),
        ("io", [{"name": "frames", "kind": "in", "dtype": "uint8", "shape": ["1"]}]),
        ("precision.layers", {"fp16": True}),
        ("precision.layers", {"fp16": -1}),
        ("precision.requested", ...),
        ("options", []),
        ("versions", {"python": 3}),
        ("metadata", ...),
        ("metadata.schema", 2),
        ("metadata.precision", "fp8"),
        ("unknown", 1),
    ],
)
def test_rejects_invalid_sidecars(engine: Path, path: str, value: Any) -> None:
    """The message names the sidecar, the key and the command that builds the engine again."""
    document = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps(with_value(document, path, value)))
    message = error_message(lambda: read_engine(engine))
    assert message.startswith(str(sidecar_path(engine))) and "fada export" in message
    assert path.split(".")[0] in message and path.split(".")[-1] in message


@pytest.mark.parametrize(
    ("changes", "version", "capability", "message"),
    [
        ({}, "1.7.1.116", "8.6", None),
        ({}, "1.7.2.5", "8.6", "1.7.2.5 is installed"),
        ({}, "1.7.1.116", "8.9", "SM89"),
        ({"compute_capabilities": ()}, "1.7.1.116", "12.0", None),
        (
            {"compute_capabilities": ()},
            "1.7.1.116",
            "7.5",
            "SM75",
        ),
        ({"flavor": "tensorrt", "flavor_version": "10.16.1.11"}, "10.16.1.11", "8.6", None),
        (
            {"flavor": "tensorrt", "flavor_version": "10.16.1.11"},
            "11.4.0.106",
            "8.6",
            "tensorrt 10.16.1.11",
        ),
        ({"flavor": "tensorrt", "options": {"version_compatible": True}}, "1.8.0.1", "8.6", None),
        (
            {"flavor": "tensorrt", "options": {"version_compatible": True}},
            "1.6.9.1",
            "8.6",
            "1.6.9.1 is installed",
        ),
        ({"options": {"hardware_compatible": True}}, "1.7.1.116", "12.0", None),
        ({"options": {"hardware_compatible": True}}, "1.7.1.116", "8.0", None),
        ({"options": {"hardware_compatible": True}}, "1.7.1.116", "7.5", "SM75"),
    ],
)
def test_engine_must_fit_library_version_and_gpu(
    changes: dict[str, Any], version: str, capability: str, message: str | None
) -> None:
    def check() -> None:
        check_can_run(sidecar_of(**changes), flavor_version=version, compute_capability=capability)

    if message is None:
        check()
    else:
        text = error_message(check)
        assert message in text and "fada export model.fp16.onnx --trt" in text


def test_find_gpu_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_DRIVER", "libnothing.so.1")
    assert gpu.find_gpu() is None


def test_find_gpu_calls_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace libcuda by a library with one GPU that has the same C functions."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed, so the stand-in cannot be compiled")
    (tmp_path / "cuda.c").write_text(
        "#include <string.h>\n"
        "int cuInit(unsigned f) { return f; }\n"
        "int cuDeviceGet(int *d, int i) { *d = i + 7; return i != 0; }\n"
        "int cuDeviceGetName(char *s, int n, int d) {\n"
        '  strncpy(s, d == 7 ? "A card" : "", n); return 0; }\n'
        "int cuDeviceGetAttribute(int *v, int a, int d) {\n"
        "  *v = a == 75 ? 12 : a == 76 ? 1 : d; return 0; }\n"
    )
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "cuda.c"], check=True)
    monkeypatch.setattr(gpu, "_DRIVER", str(library))
    card = gpu.find_gpu()
    assert card == gpu.Gpu("A card", "12.1") and card.architecture == "SM121"
    assert gpu.find_gpu(1) is None
    assert isinstance(ctypes.CDLL(str(library)), ctypes.CDLL)
