"""`fada train`: errors that tell how to continue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fada_deploy.training.config import RunConfig
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
    code, _, err = fada("train", "--resume", run, "--seed", 3, "--set", "source.lr=1")
    assert code == 2 and "--seed, --set" in err
