"""The newest exported model that this machine can run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import toy

from fada_deploy.cli.newest_model import open_newest
from fada_deploy.common.errors import MissingExtraError, ModelError
from fada_deploy.common.runs import exported_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.color_model(tmp_path / "m.onnx")


def use_models(monkeypatch: pytest.MonkeyPatch, models: list[Path]) -> None:
    monkeypatch.setattr("fada_deploy.cli.newest_model.newest_models", lambda: models)


def test_opens_the_newest_model_that_runs_here(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"rubbish")
    use_models(monkeypatch, [broken, model, tmp_path / "older.onnx"])
    segmenter, skipped = open_newest()
    with segmenter:
        assert segmenter.path == model
        assert len(skipped) == 1 and skipped[0].startswith(f"{broken} is not")
    use_models(monkeypatch, [broken, broken])
    with pytest.raises(ModelError, match="none of the 2 models"):
        open_newest()
    use_models(monkeypatch, [model])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError):
        open_newest(backend="openvino")


def test_skips_engines_of_other_machines(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = tmp_path / "runs" / "a" / "export"
    export.mkdir(parents=True)
    (export / "model.onnx").write_bytes(model.read_bytes())
    engine = export / "model.engine"
    engine.write_bytes(b"plan")
    os.utime(engine, (2e9, 2e9))
    monkeypatch.chdir(tmp_path)
    segmenter, skipped = open_newest()
    with segmenter:
        assert segmenter.path == Path("runs/a/export/model.onnx")
        assert "model.engine.json" in skipped[0]
    segmenter, skipped = open_newest(backend="openvino")
    with segmenter:
        assert len(skipped) == 1 and "model.engine" in skipped[0] and "openvino" in skipped[0]
    with pytest.raises(ModelError, match=r"model\.engine\.json"):
        open_newest(backend="tensorrt")
    assert exported_model(Path("runs/a")) == Path("runs/a/export/model.onnx")
    (export / "model.onnx").unlink()
    assert exported_model(Path("runs/a")) == Path("runs/a/export/model.engine")
    with pytest.raises(ModelError, match=r"no model under runs/.*openvino"):
        open_newest(backend="openvino")
