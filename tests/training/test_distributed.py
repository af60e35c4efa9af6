"""Training in two processes: the same samples, losses and weights as in one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_processes import run_as_torchrun

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.training import distributed
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel

# Some are left when a process is killed after the fourth.
ITERATIONS = 8


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a weights file for ResNet-18 with running statistics that can be frozen."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("resnet18", CITYSCAPES_19, (64, 64), "batch")).train()
    frames = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        for _ in range(20):
            model(frames)
    path = tmp_path_factory.mktemp("init") / "resnet18.pth"
    torch.save(model.feature_extractor["backbone"].state_dict(), path)
    return path


def train_command(
    blocks: Path,
    init: Path,
    out: Path,
    *,
    processes: int,
    batch: int = 2,
    more: tuple[object, ...] = (),
    launcher: tuple[str, ...] = ("--standalone",),
) -> list[str]:
    """Return the command of `fada train` in one or more processes."""
    launch = (
        ["-m", "torch.distributed.run", *launcher, f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    settings = [f"--set={s}.iterations={ITERATIONS}" for s in ("source", "adversarial", "distill")]
    settings += ["--set=distill.norm=frozen", "--set=save_every=3", *more]
    command = [
        sys.executable, *launch, "-m", "fada_deploy", "train",
        "--src", blocks / "source.toml", "--tgt", blocks / "target.toml",
        "--backbone", "resnet18", "--init", init, "--size", "64x64",
        "--batch", batch, *settings, "--out", out,
    ]  # fmt: skip
    return list(map(str, command))


def train(blocks: Path, init: Path, out: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `fada train` in one or more processes."""
    command = train_command(blocks, init, out, **options)
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_error_of_the_main_process_ends_the_others_without_a_traceback(
    blocks: Path, tmp_path: Path
) -> None:
    finished = train(blocks, tmp_path / "no.pth", tmp_path / "run", processes=2)
    assert finished.returncode == 1
    assert finished.stderr.count("no.pth: no such file") == 1
    assert "error: stopped, because the main process failed" in finished.stderr
    assert "[rank1]" not in finished.stderr and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(
    blocks: Path, init: Path, tmp_path: Path, fada: Callable[..., tuple[int, str, str]]
) -> None:
    """All three stages, with frozen statistics and random crops.

    The learning rates are low, so that float32 rounding does not grow from step to step. That of
    the discriminator is lowest, because the first steps of Adam do not depend on the size of the
    gradient and amplify rounding.
    """
    iterations = 3
    more = (
        *(f"--set={s}.iterations={iterations}" for s in ("source", "adversarial", "distill")),
        "--set=distill.scale=0.5,1.5",
        "--set=adversarial.discriminator_lr=1e-7",
        *(f"--set={s}.lr=5e-6" for s in ("source", "adversarial", "distill")),
    )
    # Both students get the same teacher: a difference in the last bit changes some pseudo-labels.
    teacher = tmp_path / "teacher-1"
    for part, stages in (("teacher", "source,adversarial"), ("student", "distill")):
        start = (f"--set=start={teacher}",) if part == "student" else ()
        for number in (1, 2):
            out = tmp_path / f"{part}-{number}"
            command = train_command(
                blocks, init, out, processes=number, more=(*more, "--stages", stages, *start)
            )
            _, *arguments = command[command.index("fada_deploy") :]
            if number == 1:
                code, _, err = fada(*arguments)
                assert code == 0, err[-2000:]
            else:
                err = run_as_torchrun(arguments, tmp_path, count=number)
            # Only the main process reports.
            assert err.count(f"run {out}: training on cpu") == 1
    for stage in ("source", "adversarial", "distill"):
        part = "student" if stage == "distill" else "teacher"
        runs = [tmp_path / f"{part}-{number}" for number in (1, 2)]
        lines = [(run / stage / "metrics.jsonl").read_text().splitlines() for run in runs]
        series = [[json.loads(line) for line in part] for part in lines]
        assert len(series[0]) == len(series[1]) == iterations
        for one, two in zip(*series, strict=True):
            for name in one.keys() - {
                "iteration",
                "seconds",
                "images_per_second",
                "loader_wait",
                "memory_mib",
            }:
                # A fraction of pixels, some of which may be undecided.
                tolerance = 0.01 if name == "discriminator_accuracy" else 1e-7
                assert two[name] == pytest.approx(one[name], rel=1e-5, abs=tolerance), (
                    stage,
                    one["iteration"],
                    name,
                )
        want, got = (load_file(run / stage / "weights.safetensors") for run in runs)
        for name, tensor in want.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5)
    assert not list(tmp_path.rglob("*.partial*"))


def process_of_rank(rank: int, out: Path) -> int:
    """Return the process id of a rank of `fada train --out OUT` that torchrun started."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"RANK=%d" % rank in environment and os.fsencode(out) in command:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_killed_process_is_restarted_with_the_same_result(
    blocks: Path, init: Path, tmp_path: Path
) -> None:
    """Two processes with a rendezvous; one is killed, and torchrun starts both again."""
    launcher = ("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--max-restarts=1")
    weights = []
    for name in ("uninterrupted", "elastic-run"):
        out = tmp_path / name
        command = train_command(
            blocks, init, out, processes=2, launcher=launcher, more=("--stages", "source")
        )
        metrics = out / "source/metrics.jsonl"
        with subprocess.Popen(
            command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as process:
            if name == "elastic-run":
                while not metrics.is_file() or metrics.read_text().count("\n") < 4:
                    assert process.poll() is None, process.communicate()[1]
                    time.sleep(0.02)
                os.kill(process_of_rank(1, out), signal.SIGKILL)
            _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
        assert err.count(f"run {out}: training on cpu") == (2 if name == "elastic-run" else 1)
        assert metrics.read_text().count("\n") == ITERATIONS
        weights.append(load_file(out / "source/weights.safetensors"))
    assert all(torch.equal(weights[1][key], value) for key, value in weights[0].items())


def test_rejects_batch_and_normalization_that_cannot_be_distributed(
    blocks: Path,
    init: Path,
    tmp_path: Path,
    fada: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def error(**options: Any) -> str:
        command = train_command(blocks, init, tmp_path / "run", processes=1, **options)
        code, _, err = fada(*command[command.index("fada_deploy") + 1 :])
        assert code == 2
        return err

    odd = error(batch=3)
    assert "batch must be a multiple of 2 (number of processes), got 3; use --batch 4" in odd
    norm = error(more=("--set=norm=batch",))
    assert "several processes cannot train batch normalization on a CPU" in norm


def test_restarts_on_several_machines_need_a_store_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "3",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed.initialize(torch.device("cpu"))


def test_single_process_functions_are_identities() -> None:
    value = torch.tensor([1.0, 2.0])
    assert (
        distributed.world_size() == 1
        and distributed.is_main_process()
        and distributed.local_slots(6) == range(6)
    )
    assert distributed.all_reduce_sum(value) is value and distributed.all_gather(3) == [3]
    assert distributed.any_process(True, torch.device("cpu")) and not distributed.any_process(
        False, torch.device("cpu")
    )
    parameter = torch.nn.Parameter(value.clone())
    parameter.grad = value.clone()
    distributed.all_reduce_gradients([parameter])
    np.testing.assert_array_equal(parameter.grad.numpy(), value.numpy())
