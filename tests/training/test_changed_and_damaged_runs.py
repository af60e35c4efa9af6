"""A run whose data has changed or moved, whose files are damaged, or whose target is unreadable."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

Fada = Callable[..., tuple[int, str, str]]
SMALL = [
    word
    for setting in ("iterations=2", "batch=2")
    for stage in ("source", "adversarial")
    for word in ("--set", f"{stage}.{setting}")
]
TRAIN = [
    "--recipe", "small", "--backbone", "tiny", "--size", "96x64", "--augment", "none",
    "--device", "cpu", *SMALL,
]  # fmt: skip


@pytest.fixture
def data(blocks: Path, tmp_path: Path) -> Path:
    """Return a copy of the data sets that may be changed."""
    return Path(shutil.copytree(blocks, tmp_path / "data"))


@pytest.fixture(scope="module")
def half(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two stages, of which the first is trained, and the data that it names."""
    from fada_deploy.cli import main

    folder = tmp_path_factory.mktemp("half")
    shutil.copytree(blocks, folder / "data")
    arguments = [
        "train", "--src", folder / "data/source.toml", "--tgt", folder / "data/target.toml",
        *TRAIN, "--stages", "source,adversarial", "--out", folder / "run",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fada_deploy.training.run.train_adversarial", lambda *_, **__: 1 / 0)
        with pytest.raises(SystemExit):
            main(list(map(str, arguments)))
    assert (folder / "run/source/weights.safetensors").is_file()
    return folder


@pytest.fixture
def started(half: Path, tmp_path: Path) -> Path:
    """Return a copy of the run; its data is at the same place as that of the original."""
    return Path(shutil.copytree(half / "run", tmp_path / "run"))


def test_labels_that_have_changed_are_refused(half: Path, started: Path, fada: Fada) -> None:
    path = next((half / "data/source/train/labels").glob("*.png"))
    before = path.read_bytes()
    assert cv2.imwrite(str(path), np.zeros((64, 96), np.uint8))
    try:
        code, _, err = fada("train", "--resume", started)
    finally:
        path.write_bytes(before)
    assert code == 1 and "contents of frames or label files have changed" in err


def test_corrected_labels_are_scored_again(
    half: Path, started: Path, fada: Fada, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = started / "source/scores.json"
    monkeypatch.setattr("fada_deploy.training.run.train_adversarial", lambda *_, **__: 1 / 0)
    before = json.loads(scores.read_text())
    fada("train", "--resume", started)
    assert json.loads(scores.read_text()) == before
    path = next((half / "data").rglob("val/labels/*.png"))
    content = path.read_bytes()
    assert cv2.imwrite(str(path), np.zeros((64, 96), np.uint8))
    try:
        fada("train", "--resume", started)
    finally:
        path.write_bytes(content)
    after = json.loads(scores.read_text())
    assert after["files"] != before["files"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.json", "[]", "data.json"),
        ("data.json", "{", "data.json"),
        ("sources.json", "[]", ""),
        ("source/scores.json", "{}", "scored again"),
        ("source/scores.json", "{", "scored again"),
        ("source_classes.npz", "x", "source_classes.npz: damaged"),
        # An archive with a damaged member, for which zipfile raises `zlib.error`.
        ("source_classes.npz", None, "source_classes.npz: damaged"),
    ],
)
def test_damaged_files_are_named_or_made_again(
    started: Path,
    fada: Fada,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: str | None,
    words: str,
) -> None:
    if content is None:
        data = bytearray((started / name).read_bytes())
        data[60:70] = bytes(255 - value for value in data[60:70])
        (started / name).write_bytes(data)
    else:
        (started / name).write_text(content)
    # The second stage is not trained: reaching it is enough.
    monkeypatch.setattr("fada_deploy.training.run.train_adversarial", lambda *_, **__: 1 / 0)
    code, _, err = fada("train", "--resume", started)
    assert words in err and "Traceback" not in err
    assert code == (1 if "json" not in name or name == "data.json" else 70), err
    if "scored again" in words:
        assert json.loads((started / name).read_text())["frames"] == 6


def test_metrics_and_scores_of_a_killed_run(started: Path, fada: Fada) -> None:
    """The report leaves out a line that was not finished, and names damaged scores."""
    with (started / "source/metrics.jsonl").open("a") as file:
        file.write('{"iteration": 3, "los')
    assert fada("report", started)[0] == 0
    (started / "source/scores.json").write_text("[1]")
    code, _, err = fada("report", started)
    assert code == 1 and "scores.json" in err and "Traceback" not in err
    assert fada("inspect", started)[0] in (0, 1)


def test_folders_of_moved_data_sets_are_checked(half: Path, started: Path, fada: Fada) -> None:
    """The settings of the run stay as they are if the folders cannot be used."""
    before = (started / "config.json").read_bytes()
    for option in ("--src-root", "--tgt-root"):
        code, _, err = fada("train", "--resume", started, option, half)
        assert code == 2 and option in err and "gta5, synthia" in err
    code, _, err = fada("train", "--resume", started, "--src-root", half, "--src-root", half)
    assert code == 2 and "got 2, and 0 sources" in err
    code, _, err = fada("train", "--resume", started, "--seed", 2)
    assert code == 2 and "leave out --seed" in err
    assert (started / "config.json").read_bytes() == before


def test_a_run_goes_on_where_its_data_sets_were_moved(
    streets: Path, fada: Fada, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fada_deploy.training.run.train_supervised", lambda *_, **__: 1 / 0)
    old = shutil.copytree(streets, tmp_path / "old")
    code, _, err = fada(
        "train", "--src", "gta5", "--src-root", old / "gta5", "--tgt", "cityscapes",
        "--tgt-root", old / "cityscapes", *TRAIN, "--stages", "source", "--out", "run",
    )  # fmt: skip
    assert code == 70, err
    old.rename(tmp_path / "new")
    before = Path("run/config.json").read_bytes()
    assert fada("train", "--resume", "run")[0] == 1
    # The roots are exchanged: nothing is changed.
    roots = ("--src-root", "new/cityscapes", "--tgt-root", "new/gta5")
    assert fada("train", "--resume", "run", *roots)[0] == 1
    assert Path("run/config.json").read_bytes() == before
    roots = ("--src-root", "new/gta5", "--tgt-root", "new/cityscapes")
    code, _, err = fada("train", "--resume", "run", *roots)
    assert code == 70, err
    config = json.loads(Path("run/config.json").read_text())
    assert config["src_root"] == str(tmp_path / "new/gta5")


@pytest.mark.slow
def test_a_finished_source_stage_needs_no_initial_weights(
    data: Path, fada: Fada, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fada_deploy.common.label_space import CITYSCAPES_19
    from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel

    model = SegmentationModel(ModelSpec("tiny", CITYSCAPES_19, (64, 96), "batch"))
    init = tmp_path / "init.pth"
    torch.save(model.feature_extractor["backbone"].state_dict(), init)
    train = ["train", "--src", data / "source.toml", "--tgt", data / "target.toml", *TRAIN,
             "--init", init, "--init-norm", "caffe", "--out", "run"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("fada_deploy.training.run.train_adversarial", lambda *_, **__: 1 / 0)
        assert fada(*train, "--stages", "source,adversarial")[0] == 70
    init.unlink()
    code, _, err = fada("train", "--resume", "run")
    assert code == 0, err


def test_a_target_that_cannot_be_read_is_found_before_training(
    data: Path, fada: Fada, tmp_path: Path
) -> None:
    for image in (data / "target/train/images").iterdir():
        image.write_bytes(b"not an image")
    code, _, err = fada(
        "train", "--src", data / "source.toml", "--tgt", data / "target.toml", *TRAIN,
        "--stages", "source,adversarial", "--out", "run",
    )  # fmt: skip
    assert code == 1 and "none of 6 frames of the target can be read" in err
    assert not (tmp_path / "run/source").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the file system refuses such names")
def test_names_that_are_not_utf_8(data: Path, fada: Fada) -> None:
    folder = data / "source/train"
    for sub in ("images", "labels"):
        os.rename(
            os.fsencode(folder / sub / "00.png"), os.fsencode(folder / sub) + b"/stra\xdfe.png"
        )
    code, _, err = fada(
        "train", "--src", data / "source.toml", "--tgt", data / "target.toml", *TRAIN,
        "--stages", "source", "--out", "run",
    )  # fmt: skip
    assert code == 0, err


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_of_the_choice(
    data: Path, fada: Fada, tmp_path: Path
) -> None:
    train = [
        "train", "--src", data / "source.toml", "--tgt", data / "target.toml", *TRAIN,
        "--set", "checkpoint_every=1", "--stages", "source,adversarial", "--out", "run",
    ]  # fmt: skip
    assert fada(*train)[0] == 0
    checkpoint = tmp_path / "run/source/checkpoints/000001.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (tmp_path / "run/selection.json").unlink()
    code, _, err = fada("train", "--resume", "run")
    assert code == 0 and "000001.safetensors" in err and "left out of the choice" in err
    names = [
        c["name"] for c in json.loads((tmp_path / "run/selection.json").read_text())["candidates"]
    ]
    assert names == ["source", "adversarial/000001", "adversarial"]


def test_a_repeated_option_with_one_value_is_a_warning(fada: Fada) -> None:
    code, _, err = fada("train", "--recipe", "deploy", "--tgt", "a.mp4", "--tgt", "b.mp4")
    assert code == 1 and "--tgt is given 2 times" in err and "b.mp4: no such file" in err
    # Options that may be repeated, and flags.
    code, _, err = fada("train", "--src", "x", "--src", "y", "--json", "--json")
    assert code == 2 and "times" not in err


@pytest.mark.parametrize("setting", ["seed=9", "start=runs/a", "stages=distill", "method=fada"])
def test_a_comparison_refuses_settings_of_a_single_run(fada: Fada, setting: str) -> None:
    code, _, err = fada("compare", "--src", "gta5", "--tgt", "cityscapes", "--set", setting)
    assert code == 2 and f"--set {setting.partition('=')[0]}" in err and "each run" in err


@pytest.mark.parametrize("target", ["missing.mp4", "missing.toml"])
def test_a_missing_target_is_found_before_scenes_are_rendered(
    fada: Fada, cache: Path, target: str
) -> None:
    before = sorted(cache.rglob("rendered/*"))
    code, _, err = fada("train", "--src", "rendered", "--init", "none", "--tgt", target)
    assert code == 1 and f"{target}: no such file" in err
    assert sorted(cache.rglob("rendered/*")) == before
