"""Engines of both backbones, both heads and three precisions, built with TensorRT-RTX.

Building needs no GPU, running does, so no engine is run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fada_deploy.common.errors import ModelError, ToleranceError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export import engines
from fada_deploy.export.engines import rebuild_if_stale, verify_engine
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.export.options import EngineOptions
from fada_deploy.export.precision import to_half
from fada_deploy.export.quantize import quantize
from fada_deploy.export.to_onnx import write_onnx
from fada_deploy.export.to_tensorrt import build_engine
from fada_deploy.runtime.backends.engine_file import read_engine, write_sidecar
from fada_deploy.runtime.backends.gpu import Gpu, find_gpu
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import TOLERANCES
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow
HEADS = ("logits", "labels")


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return fp32 files of a ResNet-101 by head; untrained, as builds do not depend on weights."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("resnet18", CITYSCAPES_19, (64, 96), "batch")).eval()
    folder = tmp_path_factory.mktemp("resnet18")
    paths = {}
    for head in HEADS:
        paths[head] = folder / f"{head}.onnx"
        write_onnx(model, ModelMetadata(CITYSCAPES_19, (64, 96), head, True), paths[head])
    return paths


@pytest.mark.parametrize(
    ("backbone", "head"), [("resnet18", "logits"), ("ddrnet23-slim", "labels")]
)
def test_engine_has_the_precision_of_its_file(
    exported: dict[str, Path], resnet18: dict[str, Path], tmp_path: Path, backbone: str, head: str
) -> None:
    model = (resnet18 if backbone == "resnet18" else exported)[head]
    metadata = read_metadata(model)
    height, width = metadata.input_size_hw
    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    int8 = quantize(model, frames, hardware_target="tensorrt", method="minmax", float_layers=0)
    files = {
        "fp32": (onnx.load(str(model)), metadata),
        "fp16": (to_half(onnx.load(str(model)), "fp16"), replace(metadata, precision="fp16")),
        "int8": (int8.document, replace(metadata, precision="int8", quantization=int8.to_dict())),
    }
    layers = sum(node.op_type == "Conv" for node in files["fp32"][0].graph.node)
    for precision, (document, described) in files.items():
        path = tmp_path / f"{precision}.onnx"
        save_onnx(document, described, path)
        built = build_engine(path, path.with_suffix(".engine"), EngineOptions(batch=(1, 2, 4)))
        sidecar = read_engine(built.path)
        assert sidecar.layers[precision] > layers // 2 and sidecar.precision == precision
        out = ("float", 4) if head == "logits" else ("uint8", 3)
        assert [(t.name, t.kind, t.dtype, len(t.shape)) for t in sidecar.io] == [
            ("frames", "in", "uint8", 4),
            (head, "out", *out),
        ]
        assert sidecar.io[0].shape == (-1, height, width, 3) and sidecar.profile == (1, 2, 4)


@pytest.fixture
def engine(exported: dict[str, Path], tmp_path: Path) -> Path:
    for path in exported["logits"].parent.iterdir():
        shutil.copy(path, tmp_path)
    return build_engine(tmp_path / "model.onnx", tmp_path / "model.engine").path


@pytest.mark.skipif(find_gpu() is not None, reason="this machine would run the engine")
def test_without_a_gpu_verification_is_deferred(
    engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert verify_engine(engine) == "not_run"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "model.engine" in record.getMessage()
    assert read_engine(engine).verification == "not_run"


def test_damaged_engine_is_rebuilt_with_its_options(
    exported: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    shutil.copy(exported["logits"], model)
    build_engine(model, engine, EngineOptions(batch=(1, 3, 5), optimization_level=1))
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(ModelError):
        read_engine(engine)
    caplog.set_level("INFO", logger="fada_deploy")
    assert rebuild_if_stale(engine, "auto") is True
    sidecar = read_engine(engine)
    assert sidecar.profile == (1, 3, 5) and sidecar.options["level"] == 1
    assert "rebuilding model.engine" in caplog.text
    assert rebuild_if_stale(model, "auto") is False
    engine.write_bytes(b"")
    model.unlink()
    with pytest.raises(ModelError, match=r"copy its ONNX file model\.onnx next to it"):
        rebuild_if_stale(engine, "auto")


def test_an_engine_for_another_gpu_is_rebuilt_for_this_one(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its options; an engine for this GPU keeps the list of GPUs."""
    built: list[EngineOptions] = []

    def refuse(*_: object, **__: object) -> None:
        raise ModelError(f"{engine}: another GPU")

    monkeypatch.setattr(engines, "open_backend", refuse)
    monkeypatch.setattr(engines, "build_engine", lambda model, out, options: built.append(options))
    sidecar = replace(read_engine(engine), compute_capabilities=("SM86", "SM89"))
    for gpu in ("8.9", "12.0"):
        write_sidecar(engine, sidecar)
        monkeypatch.setattr(engines, "find_gpu", lambda gpu=gpu: Gpu("a GPU", gpu))
        assert rebuild_if_stale(engine, "auto")
    flags = {"level": 2, "version_compatible": True, "hardware_compatible": True}
    write_sidecar(engine, replace(sidecar, flavor="tensorrt", options=flags))
    assert rebuild_if_stale(engine, "auto")
    assert [o.compute_capabilities for o in built] == [("SM86", "SM89"), ("CURRENT",), ()]
    assert built[2].version_compatible and built[2].hardware_compatible
    assert not built[0].version_compatible and not built[0].hardware_compatible


def test_only_a_new_engine_is_deleted_if_it_exceeds_its_tolerance(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def differ(path: Path, **options: object) -> None:
        given.append((options["device"], options["tolerance"]))
        raise ToleranceError("too different")

    monkeypatch.setattr(engines, "open_backend", differ)
    with pytest.raises(ToleranceError, match="too different"):
        verify_engine(engine, device="cuda:1", tolerance=TOLERANCES["int8"])
    assert engine.is_file() and given == [("cuda:1", TOLERANCES["int8"])]
    with pytest.raises(ToleranceError, match="deleted"):
        engines.verify_new_engine(engine, TOLERANCES["bf16"])
    assert not list(engine.parent.glob("model.engine*")) and given[1] == (
        "auto",
        TOLERANCES["bf16"],
    )


def test_engines_are_built_without_torch_and_onnx(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    for path in exported["logits"].parent.iterdir():
        shutil.copy(path, tmp_path)
    hidden = "sys.modules |= dict.fromkeys(('torch', 'onnx', 'onnxruntime', 'openvino'))"
    code = f"import sys; {hidden}; from fada_deploy.cli import main; main(sys.argv[1:])"
    arguments = [
        "export",
        str(tmp_path / "model.onnx"),
        "--trt",
        "--trt-flavor",
        "tensorrt_rtx",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["engines"]
    assert Path(entry["model"]) == tmp_path / "model.engine"
    assert "convolutions: " in done.stderr


@pytest.mark.skipif(find_gpu() is not None, reason="this machine would run the engine")
def test_infer_with_an_engine_needs_a_gpu(
    engine: Path, streets: Path, fada: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = next((streets / "clip").glob("*.mp4"))
    assert fada("infer", clip, "--model", engine, "--out", engine.parent / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "needs an NVIDIA GPU" in lines[0]


def test_engine_of_an_fp16_file(
    exported: dict[str, Path],
    fada: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in exported["logits"].parent.iterdir():
        shutil.copy(path, tmp_path)
    model = tmp_path / "model.fp16.onnx"
    metadata = read_metadata(tmp_path / "model.onnx")
    save_onnx(
        to_half(onnx.load(str(tmp_path / "model.onnx")), "fp16"),
        replace(metadata, precision="fp16"),
        model,
    )
    assert fada("export", model, "--trt", "--trt-flavor", "tensorrt_rtx") == 0
    assert read_engine(model.with_suffix(".engine")).layers["fp16"] > 40
    save_onnx(
        onnx.load(str(model)), replace(metadata, precision="int8", hardware_target="cpu"), model
    )
    capsys.readouterr()
    assert fada("export", model, "--trt") == 2
    error = capsys.readouterr().err
    assert str(model) in error and "CPU" in error and "tensorrt" in error


def test_engine_needs_reference_outputs(
    exported: dict[str, Path],
    fada: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(exported["logits"], model)
    assert fada("export", model, "--trt") == 1
    assert "model.reference.npz" in capsys.readouterr().err
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.skipif(find_gpu() is not None, reason="this machine would run the engine")
def test_verify_takes_the_newest_model_that_runs_here(
    engine: Path,
    fada: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export = engine.parent / "runs" / "a" / "export"
    export.mkdir(parents=True)
    for path in engine.parent.glob("model.*"):
        shutil.copy(path, export)
    monkeypatch.chdir(engine.parent)
    assert fada("verify") == 0
    assert "runs/a/export/model.onnx" in capsys.readouterr().err
    weights = engine.parent / "a.pth"
    weights.write_bytes(b"x")
    assert fada("verify", weights) == 1
    assert str(weights) in capsys.readouterr().err
