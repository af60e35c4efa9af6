"""`fada eval` and `fada ccd` on a run with checkpoints: tables, JSON, plots and usage errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fada_deploy.training.run import train
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights.checkpoints import load_model, save_weights

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two short stages, with a checkpoint halfway through each."""
    settings = [
        f"{s}.{k}"
        for s in ("source", "adversarial")
        for k in ("iterations=8", "batch=2", "lr=0.002")
    ]
    config = make_config(
        recipe="small",
        file=None,
        settings=[*settings, "checkpoint_every=4", "size=192x128", "src_size=192x128"],
        options={
            "src": "gta5",
            "tgt": "cityscapes",
            "src_root": str(streets / "gta5"),
            "tgt_root": str(streets / "cityscapes"),
            "stages": ("source", "adversarial"),
        },
    )
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    folder.mkdir()
    train(config, folder, device=torch.device("cpu"))
    return folder


def data(streets: Path) -> list[object]:
    return ["--data", "cityscapes", "--data-root", streets / "cityscapes"]


def test_all_reports_every_checkpoint_with_the_last_and_the_best(
    fada: Run, run: Path, streets: Path
) -> None:
    code, out, _ = fada("eval", run, *data(streets), "--all", "--json")
    document = json.loads(out)
    assert code == 0
    checkpoints = [(c["stage"], c["iteration"], c["last"]) for c in document["checkpoints"]]
    assert checkpoints == [
        ("source", 4, False),
        ("source", 8, True),
        ("adversarial", 4, False),
        ("adversarial", 8, True),
    ]
    scores = [c["miou"] for c in document["checkpoints"]]
    assert document["last"]["miou"] == scores[-1]
    assert document["best"]["miou"] == max(scores) and document["best"]["oracle"] is True
    assert scores[-1] == json.loads((run / "adversarial/scores.json").read_text())["miou"]
    code, out, _ = fada("eval", run, *data(streets), "--all")
    assert code == 0
    (last_of_source, last_of_run) = [x for x in out.splitlines() if "last of the stage" in x]
    assert last_of_source.split()[:3] == ["source", "8", "192x128"]
    assert last_of_run.split()[3] == f"{100 * scores[-1]:.1f}"
    assert "oracle" in next(line for line in out.splitlines() if line.startswith("best: "))


def test_confusion_matrix_as_csv_and_png(
    fada: Run, run: Path, streets: Path, tmp_path: Path
) -> None:
    table, plot = tmp_path / "m.csv", tmp_path / "m.png"
    code, out, _ = fada("eval", run, *data(streets), "--confusion", table, "--json")
    document = json.loads(out)
    rows = [line.split(",") for line in table.read_text().splitlines()]
    matrix = np.array([[int(v) for v in row[1:]] for row in rows[1:]])
    np.testing.assert_array_equal(matrix, document["confusion"])
    assert code == 0 and rows[0][1:] == [row[0] for row in rows[1:]] and matrix.sum() > 0
    hit, union = matrix[0, 0], matrix[0].sum() + matrix[:, 0].sum() - matrix[0, 0]
    assert document["iou"]["road"] == pytest.approx(hit / union)
    code, out, err = fada("eval", run, *data(streets), "--confusion", plot)
    assert code == 0 and cv2.imread(str(plot)).shape[0] > 500 and f"wrote {plot}" in err
    assert "cityscapes-13" in out and "cityscapes-16" in out


def test_weights_file_outside_a_run_is_evaluated(
    fada: Run, run: Path, streets: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "mine.safetensors"
    copy.write_bytes((run / "adversarial/checkpoints/000004.safetensors").read_bytes())
    code, out, _ = fada("eval", copy, *data(streets), "--json")
    document = json.loads(out)
    assert code == 0 and (document["stage"], document["iteration"], document["input"]) == (
        "adversarial",
        4,
        "192x128",
    )


def test_weights_without_an_iteration_are_evaluated(
    fada: Run, run: Path, streets: Path, tmp_path: Path
) -> None:
    model, provenance = load_model(run / "source/weights.safetensors")
    del provenance["iteration"]
    save_weights(tmp_path / "old.safetensors", model.state_dict(), model.spec, provenance)
    code, out, _ = fada("eval", tmp_path / "old.safetensors", *data(streets), "--json")
    assert code == 0 and json.loads(out)["iteration"] is None


def test_means_of_smaller_label_spaces_cover_only_their_classes(
    fada: Run, run: Path, streets: Path
) -> None:
    _, out, _ = fada("eval", run, *data(streets), "--json")
    document = json.loads(out)
    excluded = {
        16: {"terrain", "truck", "train"},
        13: {"terrain", "truck", "train", "wall", "fence", "pole"},
    }
    # driving-11 merges classes, which have no IoU of their own here.
    assert document["means"].keys() == {f"cityscapes-{number}" for number in excluded}
    for number, names in excluded.items():
        values = [v for n, v in document["iou"].items() if n not in names and v is not None]
        assert document["means"][f"cityscapes-{number}"] == pytest.approx(np.mean(values))


def test_scales_and_input_size_change_the_score(fada: Run, run: Path, streets: Path) -> None:
    _, one, _ = fada("eval", run, *data(streets), "--json")
    _, many, _ = fada("eval", run, *data(streets), "--mst", "--json")
    _, large, _ = fada("eval", run, *data(streets), "--size", "256x128", "--json")
    assert len({json.loads(d)["miou"] for d in (one, many, large)}) == 3
    assert json.loads(many)["views"] == "scales 0.7, 1, 1.3 + horizontal flip"
    assert json.loads(large)["input"] == "256x128"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "--confusion", "m.txt"], ".csv or .png, got m.txt"),
        (["RUN", "--confusion", "m.csv", "--all"], "omit --all"),
        (["RUN", "--backend", "openvino"], "--backend applies to exported models only"),
        (["RUN", "--model", "RUN"], "two models were named"),
        (["model.onnx", "--mst"], "--size, --mst and --all apply to runs only"),
    ],
)
def test_invalid_option_combinations_are_one_line_usage_errors(
    fada: Run, run: Path, streets: Path, arguments: list[str], message: str
) -> None:
    code, _, err = fada("eval", *[run if a == "RUN" else a for a in arguments], *data(streets))
    assert code == 2 and message in err and err.count("\n") == 1


def test_ccd_compares_two_stages(fada: Run, run: Path, tmp_path: Path) -> None:
    plot = tmp_path / "ccd.png"
    stages = (run / "source", run / "adversarial")
    code, out, err = fada("ccd", *stages, "--frames", 3, "--plot", plot)
    assert code == 0 and "[1]" in out and "road" in out and "mean" in out and f"wrote {plot}" in err
    assert cv2.imread(str(plot)).shape[1] > 500
    documents = {}
    for form in ("squared", "plain"):
        code, out, _ = fada("ccd", *stages, "--frames", 3, "--denominator", form, "--json")
        documents[form] = json.loads(out)["runs"]
    assert set(documents["squared"]) == set(map(str, stages))
    for name, values in documents["squared"].items():
        distances = [v for v in values["ccd"].values() if v is not None]
        assert values["mean"] == pytest.approx(np.mean(distances))
        assert values != documents["plain"][name]


def test_ccd_rejects_other_plot_formats_and_missing_runs(
    fada: Run, streets: Path, tmp_path: Path, run: Path
) -> None:
    code, _, err = fada("ccd", run, "--plot", tmp_path / "p.txt")
    assert code == 2 and ".pdf, .png, .svg, got" in err
    code, _, err = fada("ccd", tmp_path / "none")
    assert code == 1 and "no such run" in err


def test_model_option_equals_the_argument(fada: Run, run: Path, streets: Path) -> None:
    _, by_argument, _ = fada("eval", run, *data(streets), "--json")
    code, by_option, _ = fada("eval", "--model", run, *data(streets), "--json")
    assert code == 0 and json.loads(by_option) == json.loads(by_argument)


def test_ccd_of_recordings_is_a_usage_error(
    fada: Run, run: Path, streets: Path, tmp_path: Path
) -> None:
    model, provenance = load_model(run / "source/weights.safetensors")
    provenance["config"] |= {"tgt": str(streets / "clip"), "tgt_root": None}
    save_weights(tmp_path / "clip.safetensors", model.state_dict(), model.spec, provenance)
    code, _, err = fada("ccd", tmp_path / "clip.safetensors")
    assert code == 2 and "recordings without labels" in err and err.count("\n") == 1
