"""Which run, stage and export the commands use, and what they warn about."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.runs import (
    CONFIG,
    all_weights,
    checkpoint_path,
    exported_model,
    final_weights,
    new_run,
    newer_stage,
    newest_models,
    unfinished_stages,
)
from fada_deploy.common.selection import (
    CandidateDocument,
    ConsistencyDocument,
    SelectionDocument,
    write_selection,
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


def write_choice(run: Path, chosen: str, *names: str) -> None:
    """Write a `selection.json` with candidates: stages, or `STAGE/ITERATION` for checkpoints."""
    candidates = []
    for name in names:
        stage, _, iteration = name.partition("/")
        path = checkpoint_path(run / stage, int(iteration)) if iteration else run / stage
        path = path if iteration else path / "weights.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        candidates.append(
            CandidateDocument(
                name=name,
                stage=stage,
                iteration=int(iteration or 90),
                weights=path.relative_to(run).as_posix(),
                sha256="0",
                consistency=0.5,
                consistency_by_change=ConsistencyDocument(
                    mirrored=0.5, smaller=0.5, larger=0.5, recolored=0.5
                ),
                score=0.5,
                expected_iou=0.5,
                ensemble_agreement=0.9,
                neighborhood_density=3.0,
                mirror_agreement=0.9,
                entropy=0.3,
                class_fractions={},
                missing_classes=(),
                vanished_classes=(),
            )
        )
    document = SelectionDocument(
        frames=5, chosen=chosen, best=chosen, agreeing=("mirrored", "smaller"),
        candidates=tuple(candidates),
    )  # fmt: skip
    write_selection(run, document)


def test_the_chosen_stage_replaces_the_last_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fada_deploy")
    stages = ("source", "selftrain", "distill")
    run = make_run(tmp_path, stages, stages)
    write_choice(run, "selftrain", *stages)
    assert final_weights(run) == run / "selftrain" / "weights.safetensors"
    (line,) = caplog.messages
    assert "chosen without labels: selftrain" in line and "2 of 5 parts" in line
    # Who names a stage or a file wants it.
    assert final_weights(run / "distill") == run / "distill" / "weights.safetensors"
    assert len(caplog.messages) == 1
    model = run / "export" / "model.onnx"
    assert newer_stage(model, {"stage": "selftrain"}) is None
    assert newer_stage(model, {"stage": "selftrain", "iteration": 90}) is None
    # An export of the last stage is not what `fada export` would write now.
    assert newer_stage(model, {"stage": "distill", "iteration": 90}) == "selftrain"
    assert newer_stage(model, {"stage": "source"}) == "selftrain"
    assert newer_stage(run / "model.onnx", {"stage": "source"}) is None


def test_a_checkpoint_can_be_chosen(tmp_path: Path) -> None:
    run = make_run(tmp_path, ("source",), ("source",))
    checkpoint = checkpoint_path(run / "source", 30)
    checkpoint.parent.mkdir()
    checkpoint.touch()
    write_choice(run, "source/30", "source/30", "source")
    assert final_weights(run) == checkpoint
    model = run / "export" / "model.onnx"
    assert newer_stage(model, {"stage": "source", "iteration": 30}) is None
    assert newer_stage(model, {"stage": "source", "iteration": 90}) == "source/30"
    checkpoint.unlink()
    assert final_weights(run) == run / "source" / "weights.safetensors"


@pytest.mark.parametrize("problem", ["incomplete", "damaged"])
def test_a_choice_that_does_not_fit_the_run_is_not_used(
    tmp_path: Path, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    stages = ("source", "adversarial", "distill")
    run = make_run(tmp_path, stages, stages)
    write_choice(run, "source", *stages[:2])
    if problem == "damaged":
        (run / "selection.json").write_text('{"chosen": "source"')
    assert final_weights(run) == run / "distill" / "weights.safetensors"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "selection.json" in record.getMessage()
    assert f"`fada train --resume {run}`" in record.getMessage()
    assert newer_stage(run / "export" / "model.onnx", {"stage": "source"}) == "distill"
    assert len(caplog.records) == 1


def test_the_folder_of_a_new_run_must_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    run = tmp_path / "my run"
    run.mkdir()
    (run / CONFIG).write_text("{}")
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("x")
    for folder, message in (
        (file, "is a file"),
        (run, f"fada train --resume '{run}'"),
        (other, "not a run; name another folder"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            new_run("gta5", "cityscapes", "resnet101", folder)
    assert new_run("gta5", "cityscapes", "resnet101", tmp_path / "new/run").is_dir()


def test_checkpoints_are_those_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="is a file"):
        all_weights(tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="no such folder"):
        all_weights(tmp_path / "missing")


def test_a_run_without_a_finished_stage_can_be_continued(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"stages": ["source"]}')
    with pytest.raises(ModelError, match="fada train --resume"):
        final_weights(tmp_path)
