"""`fada train`: its help, and errors that tell how to continue."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fada_deploy.common.runs import STAGES
from fada_deploy.training.config import RunConfig
from fada_deploy.training.models.segmentation import BACKBONES
from fada_deploy.training.recipes import RECIPES
from fada_deploy.training.run_files import save_config

Run = Callable[..., tuple[int, str, str]]


def raise_from_train(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("fada_deploy.training.run.train", train)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_config(RunConfig("gta5", "cityscapes"), tmp_path / "my run")
    return tmp_path / "my run"


def test_interrupt_prints_the_command_that_resumes(
    fada: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_from_train(monkeypatch, KeyboardInterrupt())
    code, _, err = fada("train", "--resume", run, "--device", "cpu")
    assert code == 130 and f"fada train --resume '{run}'" in err


def test_too_little_memory_suggests_smaller_batches(
    fada: Run, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_from_train(monkeypatch, torch.OutOfMemoryError())
    code, _, err = fada("train", "--resume", run, "--device", "cpu")
    assert code == 1 and "--accumulate" in err and "--batch" in err


def test_resume_rejects_other_settings(fada: Run, run: Path) -> None:
    code, _, err = fada("train", "--resume", run, "--seed", 0)
    assert code == 2 and "--seed" in err
    code, _, err = fada("train", "--resume", run, "--seed", 3, "--set", "source.lr=1")
    assert code == 2 and "--seed, --set" in err


def test_help_lists_backbones_and_defaults(fada: Run) -> None:
    text = " ".join(fada("train", "--help")[1].split())
    assert set(text.partition("Network: ")[2].partition(".")[0].split(", ")) == set(BACKBONES)
    paper = RunConfig("gta5", "cityscapes")
    small, deploy = (
        RunConfig.from_dict({"src": "gta5", "tgt": "cityscapes", **as_lists(RECIPES[name])})
        for name in ("small", "deploy")
    )
    assert [getattr(paper, stage).batch for stage in STAGES] == [8, 4, 2, 8]
    assert {getattr(small, stage).batch for stage in STAGES} == {4}
    assert {getattr(deploy, stage).batch for stage in STAGES} == {6}
    batches = "8, adversarial 4, selftrain 2; with --recipe deploy: 6; with --recipe small: 4"
    assert f"[default: {batches}]" in text
    sizes = (paper.size, paper.distill.size, paper.distill.crop, paper.src_size)
    assert sizes == ((512, 1024), (1024, 2048), (512, 1024), (720, 1280))
    assert {small.size, small.src_size, small.distill.size} == {(192, 320)}
    assert {deploy.size, deploy.src_size, deploy.distill.size} == {(240, 320)}
    assert "1024x512, distill 2048x1024 with crops of 1024x512, source frames 1280x720" in text
    assert "with --recipe deploy: 320x240; with --recipe small: 320x192]" in text
    assert (paper.init, small.init) == ("imagenet", "none")
    assert "[default: imagenet; with --recipe small: none]" in text


def as_lists(value: Any) -> Any:
    """Return a document as a TOML file would hold it, with lists for tuples."""
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--recipe", "deploy", "--no-rendered"], "--no-rendered"),
        (["--src", "source.toml", "--src", "rendered", "--no-rendered"], "--no-rendered"),
        (["--src", "rendered", "--src-root", "somewhere"], "--src-root"),
        (["--src", "source.toml", "--tgt-root", "somewhere"], "--tgt-root"),
    ],
)
def test_options_that_contradict_others_are_refused(
    arguments: list[str], option: str, fada: Run, tmp_path: Path, blocks: Path
) -> None:
    arguments = [str(blocks / a) if a == "source.toml" else a for a in arguments]
    (tmp_path / "target").mkdir()
    shutil.copy(blocks / "target/train/images/00.png", tmp_path / "target")
    code, _, err = fada(
        "train", *arguments, "--tgt", tmp_path / "target", "--init", "none", "--out", tmp_path / "r"
    )
    assert code == 2 and option in err
    assert not (tmp_path / "r/config.json").exists()


def test_rendered_scenes_without_the_source_rendered(
    fada: Run, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_from_train(monkeypatch, KeyboardInterrupt())
    _, _, err = fada(
        "train", "--src", blocks / "source.toml", "--tgt", blocks / "target.toml",
        "--rendered-scenes", 7, "--out", tmp_path / "run",
    )  # fmt: skip
    assert "--rendered-scenes has no effect" in err
