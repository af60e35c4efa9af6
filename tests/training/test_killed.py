"""A run that is killed again and again, by SIGKILL, ends with the very bits of one that never was.

Each life of the run is a process of its own, and dies after a random number of iterations, every
third time in the middle of writing its state.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fada_deploy.training.config import STAGES, RunConfig
from fada_deploy.training.loop import TrainingLoop
from fada_deploy.training.run import load_config, train
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights import checkpoints

KILLS, ITERATIONS = 30, 36


def config(blocks: Path) -> RunConfig:
    each = [
        f"iterations={ITERATIONS}",
        "max_iterations=40",
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
        "amp=bf16",
    ]
    paths = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "backbone": "ddrnet23-slim",
    }
    return make_config(preset="paper", file=None, settings=settings, options=paths)


def live(config: RunConfig, folder: Path, die_after: int | None, in_a_save: bool) -> None:
    """Train in this process; be killed after some iterations, or in the first save after that."""
    torch.set_num_threads(1)
    lived = 0
    log, save = TrainingLoop.log, torch.save

    def counting(self: TrainingLoop, *values: Any) -> None:
        nonlocal lived
        log(self, *values)
        lived += 1
        if lived == die_after and not in_a_save:
            os.kill(os.getpid(), signal.SIGKILL)

    def half(content: Any, path: Path) -> None:
        save(content, path)
        if in_a_save and die_after is not None and lived >= die_after:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    TrainingLoop.log = counting  # type: ignore[method-assign]
    checkpoints.torch.save = half
    train(config, folder, device=torch.device("cpu"), say=lambda text: None)


@pytest.mark.slow
def test_killed_thirty_times_it_ends_with_the_same_bits(blocks: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fada_deploy.training.run"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def life(
        config: RunConfig, folder: Path, die_after: int | None, in_a_save: bool = False
    ) -> int:
        process = context.Process(target=live, args=(config, folder, die_after, in_a_save))
        process.start()
        process.join(timeout=300)
        assert process.exitcode is not None
        return process.exitcode

    assert life(config(blocks), whole, None) == 0
    rng = np.random.default_rng(0)
    killed.mkdir()
    first, deaths, where = config(blocks), 0, set()
    while deaths < KILLS:
        made = load_config(killed) if (killed / "config.json").is_file() else first
        # A life makes at least three iterations, the distance of two saves, so that the run goes on.
        code = life(made, killed, int(rng.integers(3, 7)), in_a_save=deaths % 3 == 2)
        assert code in (0, -signal.SIGKILL), "a life ends by the kill, or at the run's end"
        deaths += code != 0
        where.add(next(s for s in reversed(STAGES) if (killed / s).is_dir()))
        if code == 0:
            break
    assert deaths >= 20 and where == set(STAGES), f"{deaths} deaths in {where}"
    assert life(load_config(killed), killed, None) == 0
    for stage in STAGES:
        want, got = (
            load_file(folder / stage / "weights.safetensors") for folder in (whole, killed)
        )
        assert all(torch.equal(want[name], got[name]) for name in want), stage
    assert not list(killed.rglob("*.partial*")), (
        "what a dead process left half-written is cleaned up"
    )
