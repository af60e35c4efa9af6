"""Mistakes are reported before an export writes its first file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy
from safetensors.numpy import save_file

from fada_deploy.export.calibration_frames import TargetOfRun, target_of
from fada_deploy.runtime.backends.gpu import Gpu
from fada_deploy.training.settings import make_config

Fada = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run with an export. Its network cannot be loaded, so a late check exits with 1."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "a-b-net-001"
    (folder / "source").mkdir(parents=True)
    document = {
        "model": {
            "backbone": "no-network", "label_space": toy.SPACE.to_dict(), "size_hw": [64, 128],
            "norm": "batch", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
        },
        "provenance": {"stage": "source"},
    }  # fmt: skip
    weights = folder / "source" / "weights.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, weights, {"fada": json.dumps(document)})
    (folder / "config.json").write_text(json.dumps({"stages": ["source"]}))
    (folder / "export").mkdir()
    (folder / "export" / "model.onnx").write_bytes(b"earlier export")
    return folder


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("--trt",), ("tensorrt_rtx", "pip install")),
        (("--trt", "--trt-flavor", "tensorrt"), ("tensorrt", "pip install")),
        (("--triton", "models"), ("--triton", "--head labels")),
        (("--head", "labels", "--triton", "runs"), ("runs", "already exists")),
        (("--head", "labels", "--precision", "bf16", "--triton", "models"), ("bf16", "--trt")),
        (("--precision", "fp16", "--data", "kitti"), ("'kitti'",)),
    ],
)
def test_usage_errors_come_before_the_export(
    run: Path,
    fada: Fada,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    facts: tuple[str, ...],
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert fada("export", run, *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert all(fact in error for fact in facts), error
    assert (run / "export" / "model.onnx").read_bytes() == b"earlier export"
    assert not Path("models").exists()


def test_triton_needs_an_onnx_file_with_head_labels(
    tmp_path: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    model = toy.color_model(tmp_path / "model.onnx")
    assert fada("export", model, "--triton", tmp_path / "models") == 2
    assert "--head labels" in capsys.readouterr().err.splitlines()[-1]


def test_file_of_another_kind_is_neither_weights_nor_a_model(
    tmp_path: Path,
    fada: Fada,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, fact in (
        ("README.md", "README.md is not a run, a weights file or an ONNX model"),
        ("a.safetensors", "a.safetensors is not a safetensors file"),
    ):
        Path(name).write_text("# A project\n")
        assert fada("export", name) == 1
        assert fact in capsys.readouterr().err.splitlines()[-1]


def test_weights_file_needs_a_name_for_the_output(
    run: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fada("export", run / "source" / "weights.safetensors") == 2
    assert "--out" in capsys.readouterr().err.splitlines()[-1]


def test_the_builtin_model_is_not_exported_again(
    fada: Fada, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of its name would be taken for the built-in model later."""
    monkeypatch.chdir(tmp_path)
    assert fada("export", "builtin", "--calibration", "drive.mp4") == 2
    assert "already exported" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "file",
    ["source/weights.safetensors", "source/checkpoints/000500.safetensors", "export/model.onnx"],
)
def test_files_of_a_run_are_calibrated_with_its_target(tmp_path: Path, file: str) -> None:
    """Exported files name the target without its path."""
    settings = make_config(
        recipe="small", file=None, settings=[], options={"src": "gta5", "tgt": "/data/drives"}
    ).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(settings))
    shared = {"stage": "source", "config": {**settings, "tgt": "drives"}}
    frames = tmp_path / "target_frames"
    frames.mkdir()
    found = target_of(tmp_path / file, shared)
    assert found.provenance["stage"] == "source"
    assert found.provenance["config"]["tgt"] == "/data/drives"
    assert found.frames == frames
    assert target_of(tmp_path / "elsewhere" / "model.onnx", shared) == TargetOfRun(shared)


def test_a_gpu_that_no_engine_can_be_built_for(
    run: Path, fada: Fada, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert fada("export", run, "--trt", "--compute-capability", "SM12") == 2
    assert "SM12" in capsys.readouterr().err.splitlines()[-1]
    assert (run / "export/model.onnx").read_bytes() == b"earlier export"


def test_a_gpu_that_is_not_supported(
    run: Path, fada: Fada, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    gpu = Gpu("NVIDIA H100", "9.0")
    monkeypatch.setattr("fada_deploy.export.to_tensorrt.find_gpu", lambda: gpu)
    assert fada("export", run, "--trt") == 1
    assert "NVIDIA H100" in capsys.readouterr().err.splitlines()[-1]
