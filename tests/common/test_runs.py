"""Which run, stage and export the commands use, and what they warn about."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from fada_deploy.common.runs import (
    exported_model,
    final_weights,
    newer_stage,
    newest_models,
    unfinished_stages,
)


def make_run(folder: Path, planned: tuple[str, ...], finished: tuple[str, ...]) -> Path:
    for stage in finished:
        (folder / stage).mkdir(parents=True)
        (folder / stage / "weights.safetensors").touch()
    (folder / "config.json").write_text(json.dumps({"stages": planned}))
    return folder


def write_export(run: Path, name: str, time: float) -> Path:
    path = run / "export" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time, time))
    return path


def test_weights_of_an_unfinished_run_are_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "a", ("source", "distill"), ("source",))
    assert unfinished_stages(run) == ["distill"]
    assert final_weights(run) == run / "source" / "weights.safetensors"
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING
    assert "stage source" in message and f"fada train --resume {run}" in message
    # Who names the stage or the file wants it.
    final_weights(run / "source")
    final_weights(run / "source" / "weights.safetensors")
    final_weights(make_run(tmp_path / "b", ("source",), ("source",)))
    assert len(caplog.records) == 1


def test_stages_of_unreadable_settings_are_unknown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", (), ("source",))
    for text in ("", "[]", "{}", '{"stages": 3}'):
        (run / "config.json").write_text(text)
        assert unfinished_stages(run) == []


def test_newest_run_comes_first_and_fp32_before_other_precisions(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    models = [
        write_export(new, "model.onnx", 20),
        write_export(new, "model.int8-cpu.onnx", 40),
        write_export(new, "model.fp16.onnx", 30),
        write_export(old, "model.onnx", 35),
    ]
    write_export(new, ".model.partial.onnx", 50)
    assert newest_models(tmp_path) == models
    assert exported_model(new) == models[0]
    models[0].unlink()
    assert exported_model(new) == models[1]


@pytest.mark.parametrize(
    ("finished", "stage", "newer"),
    [
        (("source", "distill"), "source", "distill"),
        (("source", "distill"), "distill", None),
        (("source",), "distill", None),
        ((), "source", None),
        (("source", "distill"), "another", None),
        (("source", "distill"), None, None),
    ],
)
def test_export_of_an_earlier_stage_is_outdated(
    tmp_path: Path, finished: tuple[str, ...], stage: str | None, newer: str | None
) -> None:
    (tmp_path / "a").mkdir()
    run = make_run(tmp_path / "a", ("source", "distill"), finished)
    provenance = {} if stage is None else {"stage": stage}
    assert newer_stage(run / "export" / "model.onnx", provenance) == newer
    assert newer_stage(run / "model.onnx", provenance) is None
