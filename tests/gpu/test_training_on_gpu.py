"""Training on a GPU: gradients equal those of a CPU, every stage trains, memory stays flat."""

from __future__ import annotations

import json
import os
import signal
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fada_deploy.common.errors import InterruptedRunError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.training.data.loader import Batch, BatchLoader, Sample
from fada_deploy.training.loop import TrainingLoop
from fada_deploy.training.losses import count_labeled
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import make_optimizer
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.stage_config import AdversarialStage
from fada_deploy.training.stages.adversarial import adversarial_step

SETTINGS = [
    "src_size=96x64", "size=96x64", "label_space=cityscapes-13", "save_every=2", "amp=bf16",
    *(f"{stage}.iterations=4" for stage in ("source", "adversarial", "selftrain", "distill")),
    "distill.size=96x64", "distill.crop=96x64", "augment=strong",
]  # fmt: skip
STAGES = ("source", "adversarial", "selftrain", "distill")


def batch(device: torch.device, seed: int, size_hw: tuple[int, int]) -> Batch:
    rng = np.random.default_rng(seed)
    frames = torch.from_numpy(rng.integers(0, 256, (2, *size_hw, 3), np.uint8)).to(device)
    labels = torch.from_numpy(rng.integers(0, 13, (2, *size_hw))).to(device)
    labels[:, :7] = 255
    return Batch(frames, labels, (0, 1))


def gradients(device: torch.device, method: str) -> dict[str, Tensor]:
    """Return the gradients of F, G and D in one update without batch statistics."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("resnet18", CITYSCAPES_13, (64, 96), "frozen"))
    model = model.to(device)
    settings = AdversarialStage(adversarial_weight=0.1)
    torch.manual_seed(1)
    context = MethodContext(model, settings, None, None)  # type: ignore[arg-type]
    aligner = Aligner.create(make_method(method, context), settings)
    aligner.method.discriminator.to(device)
    src, tgt = batch(device, 1, (64, 128)), batch(device, 2, (64, 96))
    aligner.accumulate_gradients(
        model, src, tgt, amp=False, num_labeled=count_labeled(src.labels), num_parts=1
    )
    networks = {"model": model, "d": aligner.method.discriminator}
    return {
        f"{key}.{name}": p.grad.cpu()
        for key, network in networks.items()
        for name, p in network.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("method", ["fada", "advent", "minent"])
def test_gradients_are_those_of_a_cpu(device: torch.device, method: str) -> None:
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        got, want = gradients(device, method), gradients(torch.device("cpu"), method)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed
    assert got.keys() == want.keys()
    for name in want:
        error = (got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-12)
        assert error < 1e-3, name


def test_every_stage_trains_and_resumes(
    device: torch.device, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16; interrupted and resumed, all stages are trained and scored."""
    options: dict[str, Any] = {
        "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"), "stages": STAGES,
    }  # fmt: skip
    config = make_config(recipe="small", file=None, settings=SETTINGS, options=options)
    run, log, logged = tmp_path / "run", TrainingLoop.log, 0

    def interrupting_log(self: TrainingLoop, *values: Any) -> None:
        nonlocal logged
        log(self, *values)
        logged += 1
        if logged == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "log", interrupting_log)
        with pytest.raises(InterruptedRunError):
            train(config, run, device=device)
    result = train(load_config(run), run, device=device)
    assert set(result.scores) == set(STAGES)
    for stage in STAGES:
        weights = load_file(run / stage / "weights.safetensors")
        assert all(
            torch.isfinite(value).all() for value in weights.values() if value.is_floating_point()
        )
        lines = [json.loads(x) for x in (run / stage / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["iteration"] == 4 and lines[-1]["memory_mib"] > 0


@pytest.mark.parametrize("method", ["proda", "cbst", "siban", "cda"])
def test_other_methods_train(
    device: torch.device, method: str, blocks: Path, tmp_path: Path
) -> None:
    stage = "selftrain" if method in ("proda", "cbst") else "adversarial"
    options: dict[str, Any] = {
        "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"),
        "stages": ("source", stage),
    }  # fmt: skip
    settings = {"proda": "selftrain.prototypes=true", "cbst": "selftrain.rounds=2"}
    more = [settings.get(method, f"method={method}")]
    config = make_config(recipe="small", file=None, settings=SETTINGS + more, options=options)
    assert set(train(config, tmp_path / "run", device=device).scores) == {"source", stage}


def test_memory_stays_flat(device: torch.device) -> None:
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("ddrnet23-slim", CITYSCAPES_13, (64, 96), "batch"))
    model = model.to(device).train()
    settings = AdversarialStage(optimizer="adamw")
    context = MethodContext(model, settings, None, None)  # type: ignore[arg-type]
    method = make_method("fada", context)
    method.discriminator.to(device)
    aligner, optimizer = Aligner.create(method, settings), make_optimizer(model, settings)
    src, tgt = batch(device, 1, (64, 128)), batch(device, 2, (64, 96))

    def peak(steps: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(steps):
            adversarial_step(model, optimizer, aligner, src, tgt, amp=True)
        return torch.cuda.max_memory_allocated(device)

    peak(20)
    first, later = peak(20), peak(980)
    assert later <= 1.02 * first


def test_batches_on_the_gpu_are_those_of_the_cpu(device: torch.device) -> None:
    """Copied from pinned memory in the background, while the GPU computes."""

    class Order:
        def __getitem__(self, position: int) -> int:
            return position

    def load(index: int, rng: np.random.Generator) -> Sample:
        frame = rng.integers(0, 256, (64, 96, 3), np.uint8)
        return Sample(frame, rng.integers(0, 13, (64, 96)).astype(np.uint8))

    loaders = [
        BatchLoader(load, Order(), batch=4, seed=1, device=torch.device(name))
        for name in ("cpu", str(device))
    ]
    work = torch.randn(1024, 1024, device=device)
    for i in range(50):
        work = (work @ work).sign()
        want, got = (loader[i] for loader in loaders)
        assert torch.equal(got.frames_bhwc.cpu(), want.frames_bhwc)
        assert torch.equal(got.labels.cpu(), want.labels)
    for loader in loaders:
        loader.close()


def test_one_process_with_nccl(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collectives of training return what a single process has."""
    from fada_deploy.training import distributed

    if not torch.distributed.is_nccl_available():
        pytest.skip("this PyTorch has no NCCL")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29511")
    torch.distributed.init_process_group("nccl", rank=0, world_size=1)
    try:
        value = torch.arange(6.0, device=device)
        assert torch.equal(distributed.all_reduce_sum(value), value)
        model = torch.nn.Linear(3, 2).to(device)
        model(torch.ones(1, 3, device=device)).sum().backward()
        before = deepcopy([p.grad for p in model.parameters()])
        distributed.all_reduce_gradients(model.parameters())
        for p, grad in zip(model.parameters(), before, strict=True):
            assert torch.equal(p.grad, grad)  # type: ignore[arg-type]
    finally:
        torch.distributed.destroy_process_group()
