"""A run that is killed by SIGKILL many times gives the same weights as an uninterrupted run.

Each attempt runs in its own process and is killed after a random number of iterations, every third
one while it writes its state.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_processes import context

from fada_deploy.common.runs import STAGES
from fada_deploy.training.config import RunConfig
from fada_deploy.training.loop import TrainingLoop
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights import checkpoints

# `make torture` kills a longer run a hundred times.
TORTURE = int(os.environ.get("FADA_TORTURE", "1")) > 1
KILLS, ITERATIONS = (250, 125) if TORTURE else (16, 7)


def config(blocks: Path) -> RunConfig:
    each = [
        f"iterations={ITERATIONS}",
        f"max_iterations={ITERATIONS + 2}",
        "batch=2",
        "ema=0.9",
        "lr=0.001",
        "optimizer=adamw",
    ]
    settings = [f"{stage}.{setting}" for stage in STAGES for setting in each]
    settings += [
        "distill.size=96x64",
        "distill.crop=64x64",
        "size=96x64",
        "src_size=96x64",
        "save_every=3",
        # bfloat16 is slow where the processor does not have it.
        "amp=bf16" if TORTURE else "amp=auto",
    ]
    paths: dict[str, Any] = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "backbone": "ddrnet23-slim",
        "init": "none",
        "stages": STAGES,
    }
    return make_config(recipe="paper", file=None, settings=settings, options=paths)


def train_until_killed(
    config: RunConfig, folder: Path, kill_after: int | None, during_save: bool
) -> None:
    """Train in this process and kill it after some iterations, or in the first save after that."""
    torch.set_num_threads(1)
    iterations = 0
    log, save = TrainingLoop.log, torch.save

    def counting_log(self: TrainingLoop, *values: Any) -> None:
        nonlocal iterations
        log(self, *values)
        iterations += 1
        if iterations == kill_after and not during_save:
            os.kill(os.getpid(), signal.SIGKILL)

    def truncating_save(content: Any, path: Path) -> None:
        save(content, path)
        if during_save and kill_after is not None and iterations >= kill_after:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingLoop.log = counting_log  # type: ignore[method-assign]
    checkpoints.torch.save = truncating_save
    train(config, folder, device=torch.device("cpu"))


@pytest.mark.slow
def test_killed_run_ends_with_identical_weights(blocks: Path, tmp_path: Path) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"

    def attempt(
        config: RunConfig, folder: Path, kill_after: int | None, during_save: bool = False
    ) -> int:
        arguments = (config, folder, kill_after, during_save)
        process = context().Process(target=train_until_killed, args=arguments)
        process.start()
        process.join(timeout=300)
        assert process.exitcode is not None
        return process.exitcode

    assert attempt(config(blocks), uninterrupted, None) == 0
    rng = np.random.default_rng(0)
    killed.mkdir()
    initial, num_killed, stages_killed = config(blocks), 0, set()
    while num_killed < KILLS:
        resumed = load_config(killed) if (killed / "config.json").is_file() else initial
        # At least three iterations, the interval between saves, so that each attempt progresses.
        kill_after, during_save = int(rng.integers(3, 7)), num_killed % 3 == 2
        code = attempt(resumed, killed, kill_after, during_save)
        assert code in (0, -signal.SIGKILL), "an attempt ends by SIGKILL or at the end of the run"
        num_killed += code != 0
        stages_killed.add(next(s for s in reversed(STAGES) if (killed / s).is_dir()))
        if code == 0:
            break
    assert num_killed >= (100 if TORTURE else 5) and stages_killed == set(STAGES), (
        f"{num_killed} in {stages_killed}"
    )
    assert attempt(load_config(killed), killed, None) == 0
    for stage in STAGES:
        want, got = (
            load_file(folder / stage / "weights.safetensors") for folder in (uninterrupted, killed)
        )
        assert all(torch.equal(want[name], got[name]) for name in want), stage
    assert not list(killed.rglob("*.partial*")), "partial files of killed processes must be removed"
