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

Fada = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run with an export. Its network cannot be loaded, so a late check exits with 1."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs") / "a-b-net-001"
    (folder / "source").mkdir(parents=True)
    document = {
        "model": {"backbone": "no-network", "label_space": toy.SPACE.to_dict()},
        "provenance": {"stage": "source"},
    }
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
