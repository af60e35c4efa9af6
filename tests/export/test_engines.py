"""Engines of both backbones, both heads and three precisions, built without a GPU; what becomes of them here.

TensorRT-RTX builds them; none is run, which takes a GPU.
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

from fada_deploy.common.errors import ModelError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.engines import rebuild_if_stale, verify_engine
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.export.precision import to_half
from fada_deploy.export.quantize import quantize
from fada_deploy.export.to_onnx import write_onnx
from fada_deploy.export.to_tensorrt import build_engine
from fada_deploy.runtime.backends.engine_file import read_engine
from fada_deploy.runtime.backends.gpu import find_gpu
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel

pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow
HEADS = ("logits", "labels")


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def resnet101(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return fp32 files of ResNet-101, whose builds do not depend on what its weights have learned."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("resnet101", CITYSCAPES_19, (64, 96), "batch")).eval()
    folder = tmp_path_factory.mktemp("resnet101")
    made = {}
    for head in HEADS:
        made[head] = folder / f"{head}.onnx"
        write_onnx(model, ModelMetadata(CITYSCAPES_19, (64, 96), head, True), made[head])
    return made


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", ["resnet101", "ddrnet23-slim"])
def test_every_precision_builds_as_what_it_is(
    exported: dict[str, Path], resnet101: dict[str, Path], tmp_path: Path, backbone: str, head: str
) -> None:
    model = (resnet101 if backbone == "resnet101" else exported)[head]
    metadata = read_metadata(model)
    height, width = metadata.input_size_hw
    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    int8 = quantize(model, frames, hardware_target="tensorrt", calibration="minmax", leave_out=0)
    files = {
        "fp32": (onnx.load(str(model)), metadata),
        "fp16": (to_half(onnx.load(str(model)), "fp16"), replace(metadata, precision="fp16")),
        "int8": (int8.document, replace(metadata, precision="int8", quantization=int8.to_dict())),
    }
    heavy = sum(node.op_type == "Conv" for node in files["fp32"][0].graph.node)
    for precision, (document, described) in files.items():
        path = tmp_path / f"{precision}.onnx"
        save_onnx(document, described, path)
        built = build_engine(path, path.with_suffix(".engine"), batch=(1, 2, 4), say=quiet)
        sidecar = read_engine(built.path)
        assert sidecar.layers[precision] > heavy // 2 and sidecar.precision == precision
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
    return build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", say=quiet).path


@pytest.mark.skipif(find_gpu() is not None, reason="here it would be run")
def test_an_engine_that_cannot_run_here_is_left_for_its_first_load(engine: Path) -> None:
    said: list[str] = []
    assert verify_engine(engine, said.append) == "not_run"
    assert len(said) == 1 and "compared when it is first opened" in said[0]
    assert read_engine(engine).verification == "not_run"


def test_an_engine_that_is_damaged_is_built_again_as_it_was(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    model, engine = tmp_path / "model.onnx", tmp_path / "model.engine"
    shutil.copy(exported["logits"], model)
    build_engine(model, engine, batch=(1, 3, 5), level=1, say=quiet)
    engine.write_bytes(engine.read_bytes()[:-100])
    with pytest.raises(ModelError):
        read_engine(engine)
    said: list[str] = []
    assert rebuild_if_stale(engine, "auto", said.append) is True
    sidecar = read_engine(engine)
    assert sidecar.profile == (1, 3, 5) and sidecar.options["level"] == 1
    assert "it was cut short" in said[0]
    assert rebuild_if_stale(model, "auto", said.append) is False
    engine.write_bytes(b"")
    model.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx, which it was built of, is not beside it"):
        rebuild_if_stale(engine, "auto", quiet)


def test_the_command_builds_without_torch_and_the_onnx_package(
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


@pytest.mark.skipif(find_gpu() is not None, reason="here it would be run")
def test_the_runtime_says_that_it_takes_a_gpu(
    engine: Path, streets: Path, fada: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    clip = next((streets / "clip").glob("*.mp4"))
    assert fada("infer", clip, "--model", engine, "--out", engine.parent / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "needs an NVIDIA GPU" in lines[0]


def test_a_file_of_another_precision_is_built_as_it_is(
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
    assert "is quantized for CPUs; give the file that is for tensorrt" in capsys.readouterr().err


def test_without_its_pack_no_engine_is_built(
    exported: dict[str, Path],
    fada: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model.onnx"
    shutil.copy(exported["logits"], model)
    assert fada("export", model, "--trt") == 1
    assert (
        "no such reference outputs" in capsys.readouterr().err
        and not (tmp_path / "model.engine").exists()
    )


@pytest.mark.skipif(find_gpu() is not None, reason="here it would be run")
def test_the_newest_to_verify_is_one_that_runs_here(
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
    assert "model runs/a/export/model.onnx, the newest" in capsys.readouterr().err
    weights = engine.parent / "a.pth"
    weights.write_bytes(b"x")
    assert fada("verify", weights) == 1
    assert "holds weights and is no exported model" in capsys.readouterr().err
