"""An engine is believed only where its sidecar vouches for it, and what differs is said in one line."""

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

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime.backends import gpu
from fada_deploy.runtime.backends.engine_file import (
    EngineSidecar,
    EngineTensor,
    can_record,
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


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_what_is_read(engine: Path) -> None:
    assert sidecar_path(engine).name == "model.engine.json" and can_record(engine)
    assert load_engine(engine) == (sidecar_of(), PLAN)
    proven = sidecar_of(
        verification={"tensorrt": {"equal_labels": 1.0}}, profile=None, gpu="A card"
    )
    write_sidecar(engine, proven)
    assert read_engine(engine) == proven
    assert json.loads(sidecar_path(engine).read_text())["metadata"]["precision"] == "fp16"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: sidecar_path(p).unlink(), r"model\.engine\.json is not beside it"),
        (lambda p: sidecar_path(p).write_text("{"), "is malformed"),
        (lambda p: sidecar_path(p).write_text("[]"), "is malformed"),
        (lambda p: sidecar_path(p).write_bytes(b"\xff\xfe"), "cannot be read"),
        (
            lambda p: p.write_bytes(PLAN[:-1]),
            "has 999 bytes where model.engine.json says 1000: it was cut short",
        ),
        (
            lambda p: p.write_bytes(PLAN[:-1] + b"!"),
            "is not the engine that model.engine.json speaks of",
        ),
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: write_sidecar(p, sidecar_of(b"b" * 1000)), "is not the engine that"),
    ],
)
def test_what_is_wrong_with_the_files_is_said(
    engine: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(engine)
    text = refusal(lambda: read_engine(engine))
    assert message.replace("\\", "") in text
    assert "cannot be read" in text or "fada export" in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 2, "sidecar schema 2, this version reads 1"),
        ("flavor", "caffe", "flavor 'caffe' is not known"),
        ("verification", "proven", "is malformed"),
        ("profile", {"min": 1}, "is malformed"),
        ("engine", None, "is malformed"),
        ("io", [{"name": "frames"}], "is malformed"),
        ("metadata", {"schema": 1}, "(metadata)"),
    ],
)
def test_strange_sidecars(engine: Path, key: str, value: Any, message: str) -> None:
    path = sidecar_path(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert message in refusal(lambda: read_engine(engine))


@pytest.mark.parametrize(
    ("changes", "version", "capability", "message"),
    [
        ({}, "1.7.1.116", "8.6", None),
        ({}, "1.7.2.5", "8.6", "built by tensorrt_rtx 1.7.1.116 and 1.7.2.5 is installed"),
        ({}, "1.7.1.116", "8.9", "built for SM86 and this GPU is SM89"),
        ({"compute_capabilities": ()}, "1.7.1.116", "12.0", None),
        (
            {"compute_capabilities": ()},
            "1.7.1.116",
            "7.5",
            "built for SM80 and later and this GPU is SM75",
        ),
        ({"flavor": "tensorrt", "flavor_version": "10.16.1.11"}, "10.16.1.11", "8.6", None),
        (
            {"flavor": "tensorrt", "flavor_version": "10.16.1.11"},
            "11.4.0.106",
            "8.6",
            "built by tensorrt 10",
        ),
        ({"flavor": "tensorrt", "options": {"version_compatible": True}}, "1.8.0.1", "8.6", None),
        (
            {"flavor": "tensorrt", "options": {"version_compatible": True}},
            "1.6.9.1",
            "8.6",
            "1.6.9.1 is installed",
        ),
        ({"options": {"hardware_compatible": True}}, "1.7.1.116", "12.0", None),
        ({"options": {"hardware_compatible": True}}, "1.7.1.116", "8.0", "this GPU is SM80"),
    ],
)
def test_another_version_or_gpu(
    changes: dict[str, Any], version: str, capability: str, message: str | None
) -> None:
    def check() -> None:
        check_can_run(sidecar_of(**changes), flavor_version=version, compute_capability=capability)

    if message is None:
        check()
    else:
        text = refusal(check)
        assert message in text and "`fada export model.fp16.onnx --trt`" in text


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_DRIVER", "libnothing.so.1")
    assert gpu.find_gpu() is None


def test_the_driver_is_asked_for_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for libcuda with one card, so that the C calls are at least made as their headers say."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed, so the stand-in cannot be compiled")
    (tmp_path / "cuda.c").write_text(
        "#include <string.h>\n"
        "int cuInit(unsigned f) { return f; }\n"
        "int cuDeviceGet(int *d, int i) { *d = i + 7; return i != 0; }\n"
        'int cuDeviceGetName(char *s, int n, int d) { strncpy(s, d == 7 ? "A card" : "", n); return 0; }\n'
        "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 12 : a == 76 ? 1 : d; return 0; }\n"
    )
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "cuda.c"], check=True)
    monkeypatch.setattr(gpu, "_DRIVER", str(library))
    found = gpu.find_gpu()
    assert found == gpu.Gpu("A card", "12.1") and found.architecture == "SM121"
    assert gpu.find_gpu(1) is None
    assert isinstance(ctypes.CDLL(str(library)), ctypes.CDLL)
