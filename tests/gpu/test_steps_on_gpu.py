"""Steps on a GPU: color changes on the device, no step that waits for the host, CUDA graphs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.training.data.augmentation import get_augmentation
from fada_deploy.training.data.color_kernels import change_colors, draw_color_change
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.methods.self_trainers import make_self_training
from fada_deploy.training.methods.self_training_base import SelfTrainingContext
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import AveragedWeights, make_optimizer
from fada_deploy.training.run import train
from fada_deploy.training.settings import make_config
from fada_deploy.training.stage_config import AdversarialStage, SelfTrainingStage
from fada_deploy.training.stages.selftrain import self_training_step

SIZE_HW = (64, 96)


def batch(device: torch.device, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (2, *SIZE_HW, 3), np.uint8)).to(device)
    labels = torch.from_numpy(rng.integers(0, 13, (2, *SIZE_HW))).to(device)
    return Batch(frames, labels, (0, 1), ego=torch.zeros(SIZE_HW, dtype=torch.bool, device=device))


@contextmanager
def without_synchronization() -> Iterator[None]:
    """Raise where PyTorch makes the host wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_color_changes_are_those_of_a_cpu(device: torch.device) -> None:
    frames = torch.randint(0, 256, (6, 120, 200, 3), generator=torch.Generator().manual_seed(0))
    frames = frames.byte()
    # The random numbers of the noise differ; JPEG amplifies rounding.
    augmentation = replace(get_augmentation("strong"), noise=0.0, jpeg=0.0)
    rng = np.random.default_rng(1)
    drawn = [draw_color_change(augmentation, (0.5, 0.5, 0.5, 0.2), rng) for _ in frames]
    changes = [change for change in drawn if change is not None]
    want, got = (change_colors(frames.to(d), changes).cpu().int() for d in ("cpu", device))
    error = (want - got).abs()
    assert (error > 1).float().mean() < 1e-3 and error.float().mean() < 0.05
    strong = [draw_color_change(get_augmentation("strong"), (0,) * 4, rng) for _ in frames]
    changes = [change for change in strong if change is not None]
    first, again = (change_colors(frames.to(device), changes) for _ in range(2))
    assert torch.equal(first, again)


def test_a_self_training_step_does_not_wait(device: torch.device) -> None:
    """With alignment, mixed frames and masked frames, in bfloat16."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("ddrnet23-slim", CITYSCAPES_13, SIZE_HW, "batch"))
    model = model.to(device).train()
    settings = AdversarialStage(optimizer="adamw")
    stage = SelfTrainingStage(
        optimizer="adamw", max_norm=1.0, masked_weight=1.0, iterations=10, max_iterations=10
    )
    method = make_method("fada", MethodContext(model, settings, None, None))  # type: ignore[arg-type]
    method.discriminator.to(device)
    aligner, optimizer = Aligner.create(method, settings), make_optimizer(model, stage)
    average = AveragedWeights(model, 0.9)
    context = SelfTrainingContext(
        model, average, stage, get_augmentation("strong"), True,
        count_target=lambda _: torch.zeros(()), whole_target=lambda: iter(()),
    )  # fmt: skip
    teacher = make_self_training(context)
    src, tgt = batch(device, 1), batch(device, 2)

    def step(iteration: int) -> None:
        teacher.start_iteration(iteration)
        target = teacher.views(src, tgt, np.random.default_rng(iteration))
        self_training_step(
            model, optimizer, aligner, target.src, tgt, target.views, stage, amp=True
        )
        average.update(iteration)

    step(0)  # creates the states of the optimizers
    with without_synchronization():
        step(1)


def test_cuda_graphs_train_every_stage(device: torch.device, blocks: Path, tmp_path: Path) -> None:
    """The losses of the first iterations are those without graphs, up to rounding."""
    options: dict[str, Any] = {
        "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"),
        "stages": ("source", "adversarial", "selftrain"),
    }  # fmt: skip
    losses = {}
    for graphs in (False, True):
        settings = [
            "src_size=96x64", "size=96x64", "label_space=cityscapes-13", "amp=off",
            f"cuda_graphs={str(graphs).lower()}", "selftrain.align=true", "augment=light",
            *(f"{stage}.{setting}" for stage in options["stages"]
              for setting in ("iterations=5", "lr=1e-6")),
        ]  # fmt: skip
        config = make_config(recipe="small", file=None, settings=settings, options=options)
        run = tmp_path / f"graphs-{graphs}"
        assert set(train(config, run, device=device).scores) == set(options["stages"])
        losses[graphs] = [
            json.loads(line)["segmentation"]
            for stage in options["stages"]
            for line in (run / stage / "metrics.jsonl").read_text("utf-8").splitlines()
        ]
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
