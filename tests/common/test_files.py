"""Files are whole or not there; runs and models are found by age."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import atomic_path, numbered_dir, write_text
from fada_deploy.common.runs import final_weights, newest_models, newest_run
from fada_deploy.common.sizes import parse_size


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "a.json"
    write_text(file, "old")
    with pytest.raises(RuntimeError), atomic_path(file) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".json"
        raise RuntimeError
    assert file.read_text() == "old" and [p.name for p in file.parent.iterdir()] == ["a.json"]


def test_numbers_count_up_from_the_highest(tmp_path: Path) -> None:
    names = [numbered_dir(tmp_path, "run").name for _ in range(2)]
    (tmp_path / "run-017").mkdir()
    (tmp_path / "run-old").mkdir()
    assert [*names, numbered_dir(tmp_path, "run").name] == ["run-001", "run-002", "run-018"]


def touch(path: Path, age: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_newest_run_is_the_one_finished_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for name, age in (("a", 5), ("b", 50)):
        touch(tmp_path / name / "config.json", 200)
        touch(tmp_path / name / "source" / "weights.safetensors", 100)
        touch(tmp_path / name / "adversarial" / "weights.safetensors", age)
    touch(tmp_path / "unfinished" / "config.json", 0)
    touch(tmp_path / "stray" / "source" / "weights.safetensors", 0)
    run = newest_run(tmp_path)
    assert run.name == "a" and len(caplog.messages) == 2
    assert "unfinished" in caplog.messages[0] and "fada train --resume" in caplog.messages[0]
    assert str(run) in caplog.messages[1]
    with pytest.raises(ModelError, match=r"no run under .*; make one with `fada train`"):
        newest_run(tmp_path / "nowhere")


def test_models_are_found_newest_first_and_drafts_are_not(tmp_path: Path) -> None:
    old = touch(tmp_path / "a" / "export" / "model.onnx", 50)
    new = touch(tmp_path / "b" / "export" / "wide.onnx", 5)
    touch(tmp_path / "b" / "export" / ".wide.partial.onnx", 0)
    touch(tmp_path / "b" / "export" / "wide.reference.npz", 0)
    assert newest_models(tmp_path) == [new, old]


def test_the_last_finished_stage_is_what_a_run_is_worth(tmp_path: Path) -> None:
    source = touch(tmp_path / "source" / "weights.safetensors", 0)
    assert final_weights(tmp_path) == source
    distilled = touch(tmp_path / "distill" / "weights.safetensors", 100)
    assert final_weights(tmp_path) == distilled
    assert final_weights(tmp_path / "source") == source == final_weights(source)
    with pytest.raises(ModelError, match="no such run"):
        final_weights(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ModelError, match="holds no finished stage"):
        final_weights(tmp_path / "bare")


def test_sizes_are_width_by_height() -> None:
    assert parse_size("1024x512") == (512, 1024) == parse_size("1024X512")
    for text in ("1024", "x", "0x5", "axb"):
        with pytest.raises(ValueError, match=r".+"):
            parse_size(text)
