"""The choice of a stage: hand-made candidates, a run whose last stage has collapsed, resume."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fada_deploy.common.errors import ModelError
from fada_deploy.common.files import sha256
from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_19
from fada_deploy.common.runs import final_weights
from fada_deploy.common.selection import (
    CandidateDocument,
    SelectionDocument,
    read_selection,
    write_selection,
)
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.training import selection
from fada_deploy.training.run import train
from fada_deploy.training.selection import Candidate, choose, select_stage
from fada_deploy.training.settings import make_config
from fada_deploy.training.unlabeled_scores import CHANGES, UnlabeledScores
from fada_deploy.training.weights.checkpoints import load_model, save_weights

CPU = torch.device("cpu")
K = CITYSCAPES_13.num_classes
Fada = Callable[..., tuple[int, str, str]]


def make_scores(
    consistency: tuple[float, ...],
    frame_fractions: dict[str, float] | None = None,
    expected_iou: float = 0.5,
) -> UnlabeledScores:
    fractions = np.full(K, 0.5)
    for name, fraction in (frame_fractions or {}).items():
        fractions[CITYSCAPES_13.names.index(name)] = fraction
    return UnlabeledScores(
        consistency=dict(zip(CHANGES, consistency, strict=True)),
        expected_iou=expected_iou,
        ensemble_agreement=0.9,
        neighborhood_density=3.0,
        mirror_agreement=0.95,
        entropy=0.4,
        class_fractions=np.full(K, 1 / K),
        frame_fractions=fractions,
    )


def choose_among(candidates: dict[str, UnlabeledScores]) -> SelectionDocument:
    run = Path("runs/a")
    return choose(
        [
            Candidate(name, name.split("/")[0], 10, run / name / "weights.safetensors", name)
            for name in candidates
        ],
        list(candidates.values()),
        np.full(K, 0.5),
        CITYSCAPES_13,
        run=run,
        frames=7,
    )


def test_the_most_consistent_candidate_is_chosen() -> None:
    document = choose_among(
        {
            "source": make_scores((0.5, 0.6, 0.5, 0.5)),
            "adversarial/000100": make_scores((0.7, 0.5, 0.6, 0.6)),
            "adversarial": make_scores((0.6, 0.55, 0.5, 0.55), {"car": 0.02, "sky": 0.025}, 0.55),
        }
    )
    assert document.chosen == document.best == "adversarial/000100"
    assert document.agreeing == ("mirrored", "larger", "recolored")
    assert [each.consistency for each in document.candidates] == pytest.approx([0.525, 0.6, 0.55])
    assert document.chosen_candidate.weights == "adversarial/000100/weights.safetensors"
    assert document.candidates[2].missing_classes == ("sky", "car")
    assert document.candidates[2].vanished_classes == ("sky", "car")
    assert document.candidates[0].class_fractions["road"] == pytest.approx(1 / K)


def test_vanished_classes_are_compared_with_a_finished_stage() -> None:
    document = choose_among(
        {
            "source/000100": make_scores((0.4,) * 4, {"car": 0.0, "bus": 0.0}),
            "source": make_scores((0.5,) * 4, {"bus": 0.0}),
            "selftrain": make_scores((0.6,) * 4, {"car": 0.0, "bus": 0.0}),
        }
    )
    assert [each.vanished_classes for each in document.candidates] == [("car",), (), ("car",)]


def test_a_sure_network_must_also_be_consistent() -> None:
    document = choose_among(
        {
            "source": make_scores((0.6, 0.6, 0.6, 0.6), expected_iou=0.4),
            "adversarial": make_scores((0.5, 0.5, 0.5, 0.5), expected_iou=0.55),
            "selftrain": make_scores((0.5, 0.5, 0.5, 0.5), expected_iou=0.7),
        }
    )
    # 0.36 · 0.4 = 0.144, 0.25 · 0.55 = 0.1375 and 0.25 · 0.7 = 0.175
    want = [0.144 ** (1 / 3), 0.1375 ** (1 / 3), 0.175 ** (1 / 3)]
    assert [each.score for each in document.candidates] == pytest.approx(want)
    assert document.chosen == "selftrain" and document.agreeing == ("expected_iou",)


def test_the_last_of_equal_candidates_is_chosen() -> None:
    same = make_scores((0.5, 0.5, 0.5, 0.5))
    assert choose_among({"source": same, "selftrain": same}).chosen == "selftrain"


def test_the_start_can_be_best_but_is_never_chosen() -> None:
    document = choose_among(
        {
            "start": make_scores((0.7, 0.7, 0.7, 0.7), {"person": 0.0}, 0.6),
            "selftrain": make_scores((0.6, 0.6, 0.6, 0.6), {"person": 0.0, "bus": 0.0}),
        }
    )
    assert (document.chosen, document.best) == ("selftrain", "start")
    assert document.agreeing == (*CHANGES, "expected_iou")
    # The first candidate does not predict persons either, so they have not vanished.
    assert document.candidates[1].missing_classes == ("person", "bus")
    assert document.candidates[1].vanished_classes == ("bus",)


def collapse(run: Path, stage: str, name: str = "weights.safetensors") -> Path:
    """Write weights of a stage that predict one class: those of the source with another bias."""
    model, provenance = load_model(run / "source" / "weights.safetensors")
    weights = model.state_dict()
    bias = [key for key in weights if key.startswith("classifier") and key.endswith("bias")][-1]
    assert weights[bias].shape == (model.spec.space.num_classes,)
    weights[bias][model.spec.space.names.index("sky")] += 50
    path = run / stage / name
    path.parent.mkdir(exist_ok=True, parents=True)
    save_weights(path, weights, model.spec, provenance | {"stage": stage, "iteration": 5})
    return path


@pytest.fixture
def collapsed(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of a trained run with an adversarial stage that has collapsed."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"stages": ["source", "adversarial"]}))
    collapse(run, "adversarial")
    return run


@pytest.fixture
def target(streets: Path) -> FrameDataset:
    frames = open_dataset("cityscapes", streets / "cityscapes", split="train", space=CITYSCAPES_19)
    return replace(frames, pairs=frames.pairs[:6])


def select(run: Path, target: FrameDataset, start: Path | None = None) -> SelectionDocument | None:
    return select_stage(run, target, start=start, seed=1, device=CPU)


def test_a_collapsed_stage_is_flagged_and_not_exported(
    collapsed: Path, streets: Path, fada: Fada
) -> None:
    """Resuming the finished run writes the file, and `fada export` follows it."""
    code, _, err = fada("train", "--resume", collapsed, "--device", "cpu")
    assert code == 0
    document = read_selection(collapsed)
    assert document is not None and document.chosen == "source"
    assert len(document.agreeing) == 5 and document.frames == 16
    warnings = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert any("than the stage source" in line for line in warnings)
    (vanished,) = (line for line in warnings if "no longer contain" in line)
    assert "adversarial: " in vanished and "road" in vanished and "sky" not in vanished
    assert "chosen without labels: source" in err and "expected IoU %" in err
    assert document.candidates[1].class_fractions["sky"] == pytest.approx(1, abs=0.01)
    names = document.candidates[1].vanished_classes
    assert {"road", "building", "car"} <= set(names)

    code, _, err = fada("export", collapsed, "--calibration", streets / "clip")
    assert code == 0 and "chosen without labels: source" in err
    model = collapsed / "export" / "model.onnx"
    weights = collapsed / "source" / "weights.safetensors"
    metadata = read_metadata(model)
    assert metadata.provenance["stage"] == "source"
    assert metadata.hashes["weights"] == sha256(weights)
    assert "warning" not in fada("inspect", model)[2]
    # Another stage can be exported by name, and the commands say that it is another one.
    code, _, err = fada("export", collapsed / "adversarial", "--calibration", streets / "clip")
    assert code == 0 and read_metadata(model).provenance["stage"] == "adversarial"
    assert "export of the stage adversarial; the run now has source" in fada("inspect", model)[2]
    page = (collapsed / "report.html").read_text()
    assert "chosen without labels: source" in page and "adversarial: road" in page


def test_an_up_to_date_file_is_kept(
    collapsed: Path, target: FrameDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = select(collapsed, target)
    path = collapsed / "selection.json"
    written = path.read_bytes(), path.stat().st_mtime_ns
    scored: list[Any] = []
    original = selection.score_candidates

    def counting(*arguments: Any, **options: Any) -> Any:
        scored.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(selection, "score_candidates", counting)
    assert select(collapsed, target) == first and not scored
    assert (path.read_bytes(), path.stat().st_mtime_ns) == written
    # New weights, a damaged file or a missing one: the same result is measured again.
    path.write_text("{}")
    assert select(collapsed, target) == first and len(scored) == 1
    assert path.read_bytes() == written[0]
    collapse(collapsed, "selftrain")
    document = select(collapsed, target)
    assert document is not None and len(scored) == 2
    assert [each.name for each in document.candidates] == ["source", "adversarial", "selftrain"]
    assert document.chosen == "source"


def test_checkpoints_and_the_start_are_candidates(
    collapsed: Path, trained: Path, target: FrameDataset, caplog: pytest.LogCaptureFixture
) -> None:
    start = trained / "source" / "weights.safetensors"
    checkpoints = collapsed / "adversarial" / "checkpoints"
    checkpoints.mkdir()
    good = checkpoints / "000003.safetensors"
    shutil.move(collapsed / "source" / "weights.safetensors", good)
    (collapsed / "source" / "scores.json").unlink()
    document = select(collapsed, target, start)
    assert document is not None
    names = [each.name for each in document.candidates]
    # The checkpoint has the weights, and so the name, of the source stage.
    assert names == ["start", "source/000003", "adversarial"]
    # The checkpoint has the weights of the start, and the last of equals is chosen.
    assert document.best == document.chosen == names[1]
    assert final_weights(collapsed) == good
    assert document.candidates[0].weights == start.as_posix()
    good.unlink()
    caplog.clear()
    only = select(collapsed, target, start)
    assert only is not None and (only.chosen, only.best) == ("adversarial", "start")
    (line,) = (text for text in caplog.messages if "better on the target" in text)
    assert f"fada export {start} --out model.onnx" in line
    assert final_weights(collapsed) == collapsed / "adversarial" / "weights.safetensors"


def test_one_candidate_needs_no_choice(trained: Path, target: FrameDataset) -> None:
    assert select(trained, target) is None and read_selection(trained) is None


def test_a_target_without_readable_frames_is_a_warning(
    collapsed: Path, target: FrameDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    frames = replace(target, pairs=[replace(target.pairs[0], image=broken)] * 3)
    assert select(collapsed, frames) is None and read_selection(collapsed) is None
    assert "no stage is chosen: none of 3 target frames can be read" in caplog.text


def test_training_a_stage_removes_the_file_and_writes_it_again(
    blocks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run of the tests of training, with two short stages."""
    caplog.set_level(logging.INFO, "fada_deploy")
    config = make_config(
        recipe="paper",
        file=None,
        settings=[
            *(f"{s}.{v}" for s in ("source", "adversarial") for v in ("iterations=3", "batch=2")),
            "size=96x64", "src_size=96x64", "adversarial.full_resolution=false",
            "checkpoint_every=2",
        ],
        options={
            "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"),
            "backbone": "tiny", "init": "none", "stages": ("source", "adversarial"),
        },
    )  # fmt: skip
    train(config, tmp_path, device=CPU)
    document = read_selection(tmp_path)
    assert document is not None
    names = ["source/000002", "source", "adversarial/000002", "adversarial"]
    assert [(c.name, c.iteration) for c in document.candidates] == list(
        zip(names, (2, 3, 2, 3), strict=True)
    )
    assert final_weights(tmp_path) == tmp_path / document.chosen_candidate.weights
    before = (tmp_path / "selection.json").read_bytes()
    weights = load_file(tmp_path / "adversarial" / "weights.safetensors")
    (tmp_path / "adversarial" / "weights.safetensors").unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fada_deploy.training.run.train_adversarial", fail)
        train(config, tmp_path, device=CPU)
    assert read_selection(tmp_path) is None
    train(config, tmp_path, device=CPU)
    again = load_file(tmp_path / "adversarial" / "weights.safetensors")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert (tmp_path / "selection.json").read_bytes() == before


def candidate_document(name: str = "source", **changes: Any) -> CandidateDocument:
    document = choose_among(
        {name: make_scores((0.5,) * 4), f"{name}2": make_scores((0.4,) * 4)}
    ).candidates[0]
    return msgspec.structs.replace(document, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "distill"}, "found chosen 'distill' and best 'source', expected two of"),
        ({"frames": 0}, "frames: found 0, expected a whole number of at least 1"),
        ({"extra": 1}, "unknown key extra; allowed are version"),
        ({"candidates": []}, "candidates: found "),
    ],
)
def test_a_damaged_file_is_one_line_with_a_remedy(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    document = choose_among({"source": make_scores((0.5,) * 4), "b": make_scores((0.4,) * 4)})
    write_selection(tmp_path, document)
    assert read_selection(tmp_path) == document
    path = tmp_path / "selection.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError) as caught:
        read_selection(tmp_path)
    text = str(caught.value)
    assert message in text and "fada train --resume" in text and "\n" not in text
