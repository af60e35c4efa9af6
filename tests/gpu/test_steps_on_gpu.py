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
from safetensors.torch import load_file

from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.training.data.augmentation import get_augmentation
from fada_deploy.training.data.color_change import draw_color_change
from fada_deploy.training.data.color_kernels import change_colors
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.methods.self_trainers import make_self_training
from fada_deploy.training.methods.self_training import CollapseMonitor
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
    monitor = CollapseMonitor(CITYSCAPES_13.names, window=5)
    src, tgt = batch(device, 1), batch(device, 2)

    def step(iteration: int) -> dict[str, torch.Tensor]:
        teacher.start_iteration(iteration)
        target = teacher.views(src, tgt, np.random.default_rng(iteration))
        losses = self_training_step(
            model, optimizer, aligner, target.src, tgt, target.views, stage, amp=True
        )
        average.update(iteration)
        monitor.update(target.src.labels, target.labels)
        return losses

    step(0)  # creates the states of the optimizers
    with without_synchronization():
        losses = step(1)
    assert {"segmentation", "adversarial", "mixed", "masked"} <= losses.keys()
    assert all(torch.isfinite(loss) for loss in losses.values())


STAGES = ("source", "adversarial", "selftrain", "distill")


def trained(
    device: torch.device, blocks: Path, run: Path, *settings: str
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Train all stages; return what each of them changed in the weights, and its last losses."""
    options: dict[str, Any] = {
        "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"), "stages": STAGES,
    }  # fmt: skip
    # Steps of SGD are proportional to the gradients.
    settings = (
        "src_size=96x64", "size=96x64", "label_space=cityscapes-13", "augment=light",
        "selftrain.align=true", "distill.size=96x64", "distill.crop=96x64",
        *(f"{stage}.{setting}" for stage in STAGES
          for setting in ("iterations=4", "optimizer=sgd", "lr=1e-3", "warmup=0")),
        *settings,
    )  # fmt: skip
    config = make_config(recipe="small", file=None, settings=settings, options=options)
    assert set(train(config, run, device=device).scores) == set(STAGES)
    weights = {
        stage: {k: v.double() for k, v in load_file(run / stage / "weights.safetensors").items()}
        for stage in STAGES
    }
    changes, losses = {}, {}
    for before, after in (("source", "adversarial"), ("adversarial", "selftrain")):
        pairs = ((weights[after][name], value) for name, value in weights[before].items())
        changes[after] = torch.cat([(a - b).flatten() for a, b in pairs])
    for stage in STAGES:
        line = json.loads((run / stage / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
        names = ("segmentation", "adversarial", "mixed", "discriminator_target")
        losses |= {f"{stage} {name}": line[name] for name in names if name in line}
    return changes, losses


def test_cuda_graphs_make_the_steps_of_the_networks(
    device: torch.device, blocks: Path, tmp_path: Path
) -> None:
    """In float32, up to rounding; a batch of gradients that was overwritten would differ."""
    results = [
        trained(device, blocks, tmp_path / str(graphs), f"cuda_graphs={graphs}", "amp=off")
        for graphs in ("false", "true")
    ]
    (plain, plain_losses), (graphs, graph_losses) = results
    assert graph_losses == pytest.approx(plain_losses, rel=0.05)
    for stage, change in plain.items():
        assert change.norm() > 0
        assert (graphs[stage] - change).norm() < 0.1 * change.norm(), stage


def test_cuda_graphs_train_every_stage_in_bfloat16(
    device: torch.device, blocks: Path, tmp_path: Path
) -> None:
    changes, losses = trained(device, blocks, tmp_path / "run", "cuda_graphs=true", "amp=bf16")
    assert all(torch.isfinite(change).all() for change in changes.values())
    assert np.isfinite(list(losses.values())).all()


def test_deterministic_runs_are_equal(device: torch.device, blocks: Path, tmp_path: Path) -> None:
    first, again = (
        trained(device, blocks, tmp_path / name, "deterministic=true", "amp=bf16")
        for name in ("first", "again")
    )
    assert first[1] == again[1]
    assert all(torch.equal(first[0][stage], again[0][stage]) for stage in first[0])
