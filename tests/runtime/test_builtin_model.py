"""The built-in model: its file, its labels on rendered scenes, and where it is used."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fada_deploy
from fada_deploy.cli.newest_model import open_newest
from fada_deploy.common.label_space import CITYSCAPES_19, DRIVING_11
from fada_deploy.common.metrics import Scores, confusion_matrix
from fada_deploy.common.runs import BUILTIN, exported_model
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import reference_path
from fada_deploy.synth.scene import render

Run = Callable[..., tuple[int, str, str]]
MODEL = exported_model(BUILTIN)


def test_the_file_is_small_and_says_how_it_was_trained() -> None:
    assert MODEL.stat().st_size + reference_path(MODEL).stat().st_size <= 4e6
    metadata = read_metadata(MODEL)
    assert metadata.label_space == DRIVING_11
    assert metadata.precision == "int8" and metadata.hardware_target == "cpu"
    config = metadata.provenance["config"]
    assert (config["src"], config["extra_sources"], config["recipe"]) == ("rendered", [], "deploy")
    text = json.dumps(metadata.to_dict())
    assert str(Path.home()) not in text and '"/' not in text


def test_it_labels_rendered_scenes() -> None:
    """The scenes have other seeds than those it was trained on."""
    to_space = DRIVING_11.from_ids(dict(enumerate(CITYSCAPES_19.names)))
    num_classes = DRIVING_11.num_classes
    matrix = np.zeros((num_classes, num_classes), np.int64)
    with fada_deploy.Segmenter("builtin", backend="onnxruntime") as segmenter:
        for seed in range(900_000, 900_008):
            frame, labels = render("random", seed, (288, 480))
            predicted = segmenter.labels([frame], color="rgb")[0]
            matrix += confusion_matrix(to_space[labels], predicted, num_classes)
    scores = Scores(DRIVING_11, matrix)
    assert scores.miou > 0.5 and scores.pixel_accuracy > 0.85


def test_every_backend_is_verified_against_the_float_network(fada: Run) -> None:
    code, out, err = fada("verify", BUILTIN, "--json")
    assert code == 0, err
    results = json.loads(out)["verification"]
    assert "onnxruntime" in results
    # Activations are rounded to int8, so the outputs are close but not equal.
    for result in results.values():
        assert 0.97 < result["equal_labels"] < 1 and result["logit_error"] > 1e-3


def test_it_is_used_where_there_is_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "fada_deploy"):
        segmenter, skipped = open_newest()
    with segmenter:
        assert segmenter.path == MODEL and not skipped
    assert "built-in" in caplog.text and "fada adapt builtin --tgt VIDEO" in caplog.text
    (tmp_path / "builtin").mkdir()
    (tmp_path / "builtin" / "export").mkdir()
    (tmp_path / "builtin" / "export" / "model.onnx").write_bytes(b"")
    assert exported_model(BUILTIN) == Path("builtin/export/model.onnx")


def test_infer_works_right_after_installation(fada: Run, streets: Path) -> None:
    code, _, err = fada("infer", streets / "clip" / "clip.mp4", "--out", "out", "--device", "cpu")
    assert code == 0 and "built-in" in err
    assert Path("out/overlay/clip.mp4").is_file()
