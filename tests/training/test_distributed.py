"""Two processes take the steps that one would: the same samples, losses and weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.training import distributed
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel

ITERATIONS = 20


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of weights for ResNet-18 whose statistics fit its activations, so that they can be frozen."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("resnet18", CITYSCAPES_19, (64, 96), "batch")).train()
    frames = torch.randint(0, 256, (4, 64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        for _ in range(30):
            model(frames)
    path = tmp_path_factory.mktemp("init") / "resnet18.pth"
    torch.save(model.feature_extractor["backbone"].state_dict(), path)
    return path


def train(
    blocks: Path,
    init: Path,
    out: Path,
    *,
    processes: int,
    batch: int = 4,
    more: tuple[object, ...] = (),
) -> str:
    launch = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes > 1
        else []
    )
    settings = [f"--set={s}.iterations={ITERATIONS}" for s in ("source", "adversarial", "distill")]
    settings += ["--set=distill.norm=frozen", "--set=save_every=7", *more]
    command = [
        sys.executable, *launch, "-m", "fada_deploy", "train",
        "--src", blocks / "source.toml", "--tgt", blocks / "target.toml",
        "--backbone", "resnet18", "--init", init, "--size", "96x64", "--batch", batch, *settings, "--out", out,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=600
    )
    return done.stderr if done.returncode else ""


@pytest.mark.slow
def test_two_processes_equal_one(blocks: Path, init: Path, tmp_path: Path) -> None:
    """All three stages, frozen statistics, and cut windows whose ignored borders differ from frame to frame.

    At rates low enough that float32's rounding does not grow from step to step, least of all the
    discriminator's, since Adam's first steps are as long for a gradient of rounding as for any other.
    """
    more = (
        "--set=distill.scale=0.5,1.5",
        "--set=adversarial.discriminator_lr=1e-7",
        *(f"--set={s}.lr=5e-6" for s in ("source", "adversarial", "distill")),
    )
    # One teacher for both students: of two that differ in the last bit, a pixel in a thousand labels otherwise.
    teacher = tmp_path / "teaching-1"
    for part, stages in (("teaching", "source,adversarial"), ("student", "distill")):
        start = (f"--set=start={teacher}",) if part == "student" else ()
        for number in (1, 2):
            out = tmp_path / f"{part}-{number}"
            failed = train(
                blocks, init, out, processes=number, more=(*more, "--stages", stages, *start)
            )
            assert not failed, failed[-2000:]
    for stage in ("source", "adversarial", "distill"):
        part = "student" if stage == "distill" else "teaching"
        runs = [tmp_path / f"{part}-{number}" for number in (1, 2)]
        lines = [(run / stage / "metrics.jsonl").read_text().splitlines() for run in runs]
        series = [[json.loads(line) for line in part] for part in lines]
        assert len(series[0]) == len(series[1]) == ITERATIONS
        for one, two in zip(*series, strict=True):
            for name in one.keys() - {"iteration", "seconds", "images_per_second", "memory_mib"}:
                # Counted pixels, of which one may lie on the border.
                near = 0.01 if name == "discriminator_accuracy" else 1e-7
                assert two[name] == pytest.approx(one[name], rel=1e-5, abs=near), (
                    stage,
                    one["iteration"],
                    name,
                )
        want, got = (load_file(run / stage / "weights.safetensors") for run in runs)
        for name, tensor in want.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5)
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.slow
def test_what_processes_cannot_share_is_said(blocks: Path, init: Path, tmp_path: Path) -> None:
    said = train(blocks, init, tmp_path / "odd", processes=2, batch=3)
    assert "a batch of 3 cannot be shared out among 2 processes" in said
    said = train(blocks, init, tmp_path / "norm", processes=2, more=("--set=norm=batch",))
    assert "trainable normalization cannot be shared among processes on a CPU" in said


def test_alone_everything_is_its_own() -> None:
    value = torch.tensor([1.0, 2.0])
    assert (
        distributed.size() == 1 and distributed.is_main() and distributed.local_slots(6) == range(6)
    )
    assert distributed.total(value) is value and distributed.gather(3) == [3]
    assert distributed.any_of(True, torch.device("cpu")) and not distributed.any_of(
        False, torch.device("cpu")
    )
    parameter = torch.nn.Parameter(value.clone())
    parameter.grad = value.clone()
    distributed.add_gradients([parameter])
    np.testing.assert_array_equal(parameter.grad.numpy(), value.numpy())
