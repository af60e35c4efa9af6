"""The words at the end of an export, and the form of messages about files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fada_deploy
from fada_deploy.cli.export import _log_next_commands
from fada_deploy.export.result import ExportResult, RefusedFilesError, VerifiedEngine
from fada_deploy.export.verify import AccuracyCheck

PACKAGE = Path(fada_deploy.__file__).parent


@pytest.mark.parametrize(("change", "is_named"), [(-0.02, True), (0.0, False), (-1e-6, False)])
def test_worst_class_is_named_only_if_it_dropped(change: float, is_named: bool) -> None:
    text = AccuracyCheck(12, 0.5, 0.5, "sidewalk", change).text()
    assert ("sidewalk" in text) == is_named and "12 labeled frames" in text


def test_next_commands_name_the_written_files(capsys: pytest.CaptureFixture[str]) -> None:
    model, engine = Path("a b/model.onnx"), Path("model.engine")
    result = ExportResult(model, Path("r"), engines=(VerifiedEngine(engine, "not_run"),))
    _log_next_commands(result, Path("runs/a"))
    assert [line.partition("--model ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "'a b/model.onnx'",
        "model.engine",
    ]
    # A file that is the source of the export was not written.
    _log_next_commands(result, model)
    assert "model.onnx" not in capsys.readouterr().err


def test_refused_files_are_one_error_with_each_reason() -> None:
    reasons = ("a.onnx: 90 % equal labels", "b.onnx: 80 % equal labels")
    text = str(RefusedFilesError(ExportResult(Path("m"), Path("r"), refused=reasons)))
    assert all(reason in text for reason in reasons) and "\n" not in text


def test_no_colon_between_a_file_and_what_is_wrong_with_it() -> None:
    colon = re.compile(r"\}: (is|has|holds|was|cannot|does) ")
    files = [
        path
        for folder in ("export", "inspection", "runtime/backends", "training/weights")
        for path in (PACKAGE / folder).rglob("*.py")
    ]
    files += [PACKAGE / f for f in ("common/runs.py", "runtime/parity.py", "cli/newest_model.py")]
    assert len(files) > 30
    assert not [f"{path}: {line}" for path in files for line in colon.findall(path.read_text())]
