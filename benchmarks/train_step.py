"""Our adversarial step against the published algorithm: `python benchmarks/train_step.py`.

The reference implementation follows the released code: two passes of the network, three passes of
the discriminator, and every loss on materialized full-resolution tensors. Both start from the same
weights and get the same batch, with source and target of different size. Their float32 gradients
are compared before anything is timed. Times are medians of alternating steps; peak memory is
measured in one process per variant. On a GPU the sizes are larger, both also run in bfloat16, and
ours also with CUDA graphs; float32 uses TF32 in convolutions alone, as `fada train` does. The part
of the time in which the GPU computes nothing is 1 minus the sum of the times of its kernels in a
profiled step, over the time of a step. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.tables import format_table
from fada_deploy.training.compilation import Compilation
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.device import has_fast_bf16
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.base import MethodContext
from fada_deploy.training.methods.fada import fada
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.stage_config import AdversarialStage
from fada_deploy.training.stages.adversarial import adversarial_step

STAGE = AdversarialStage()
# Compiled networks are compiled in the first step, and recorded as CUDA graphs in the next ones.
WARM_UP = 4
# Backbone → (normalization, source (H, W), target (H, W), images per domain).
CASES = {
    "ddrnet23-slim": ("batch", (240, 400), (192, 320), 4),
    "pidnet-s": ("batch", (240, 400), (192, 320), 4),
    "resnet101": ("frozen", (320, 576), (256, 512), 1),
}
# Sizes that fill a GPU, and those of the recipe `small`.
GPU_CASES = {
    "ddrnet23-slim small": ("batch", (192, 320), (192, 320), 4),
    "ddrnet23-slim": ("batch", (512, 1024), (512, 1024), 8),
    "pidnet-s": ("batch", (512, 1024), (512, 1024), 8),
    "efficientnet-lite0": ("batch", (512, 1024), (512, 1024), 8),
    "resnet101": ("frozen", (720, 1280), (512, 1024), 4),
}
GRAPHS = "ours bf16 graphs"
# Networks that wait for their launches; it takes a minute to compile one.
GRAPH_CASES = ("ddrnet23-slim small", "ddrnet23-slim")
VARIANTS = ("reference", "reference bf16", "ours", "ours bf16", GRAPHS)


def variants(backbone: str, device: torch.device) -> tuple[str, ...]:
    """Return the variants of a case that a device computes in hardware."""
    names = VARIANTS if has_fast_bf16(device) else [v for v in VARIANTS if "bf16" not in v]
    has_graphs = device.type == "cuda" and backbone in GRAPH_CASES
    return tuple(v for v in names if v != GRAPHS or has_graphs)


def case(backbone: str, device: torch.device) -> tuple[str, tuple[int, int], tuple[int, int], int]:
    """Return normalization, sizes and images per domain."""
    return (GPU_CASES if device.type == "cuda" else CASES)[backbone]


def reference_step(
    model: SegmentationModel,
    d: nn.Module,
    optimizer: torch.optim.Optimizer,
    d_optimizer: torch.optim.Optimizer,
    src: Batch,
    tgt: Batch,
    *,
    amp: bool,
) -> None:
    """Update F and G, then D, exactly as published; networks and losses under autocast."""
    with torch.autocast(src.frames_bhwc.device.type, torch.bfloat16, enabled=amp):
        _reference_step(model, d, optimizer, d_optimizer, src, tgt)


def _reference_step(
    model: SegmentationModel,
    d: nn.Module,
    optimizer: torch.optim.Optimizer,
    d_optimizer: torch.optim.Optimizer,
    src: Batch,
    tgt: Batch,
) -> None:

    def up(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def soft_cross_entropy(d_logits: Tensor, encodings: Tensor) -> Tensor:
        return (-encodings * F.log_softmax(d_logits, 1)).sum(1).mean()

    optimizer.zero_grad()
    src_features = model.features(src.frames_bhwc)
    src_logits = up(model.classifier(src_features), src.size_hw) / STAGE.temperature
    F.cross_entropy(src_logits, src.labels, ignore_index=255).backward()
    src_soft = F.softmax(src_logits, 1).detach().clamp(max=STAGE.clip)

    tgt_features = model.features(tgt.frames_bhwc)
    tgt_logits = up(model.classifier(tgt_features), tgt.size_hw) / STAGE.temperature
    tgt_soft = F.softmax(tgt_logits, 1).detach().clamp(max=STAGE.clip)
    d_logits = up(d(tgt_features), tgt.size_hw)
    zeros = torch.zeros_like(tgt_soft)
    (
        STAGE.adversarial_weight * soft_cross_entropy(d_logits, torch.cat((tgt_soft, zeros), 1))
    ).backward()
    optimizer.step()

    d_optimizer.zero_grad()
    d_logits = up(d(src_features.detach()), src.size_hw)
    (
        0.5 * soft_cross_entropy(d_logits, torch.cat((src_soft, torch.zeros_like(src_soft)), 1))
    ).backward()
    d_logits = up(d(tgt_features.detach()), tgt.size_hw)
    (0.5 * soft_cross_entropy(d_logits, torch.cat((zeros, tgt_soft), 1))).backward()
    d_optimizer.step()


def no_source() -> Any:
    """FADA needs nothing of the source when it is built."""
    raise NotImplementedError


def make(
    backbone: str, device: torch.device, *, variant: str
) -> tuple[SegmentationModel, nn.Module, Callable[[], None]]:
    """Return a network, its discriminator and the step of a variant on a fixed batch."""
    norm, src_hw, tgt_hw, images = case(backbone, device)
    torch.manual_seed(0)
    spec = ModelSpec(backbone.split()[0], CITYSCAPES_19, tgt_hw, norm)
    model = SegmentationModel(spec).to(device).train()
    method = fada(MethodContext(model, STAGE, no_source, no_source))
    d = method.discriminator.to(device)
    batches = []
    for height, width in (src_hw, tgt_hw):
        # Uniform patches instead of noise, so that confidences resemble street scenes.
        labels = torch.randint(0, 19, (images, 1, height // 16, width // 16)).float()
        labels = F.interpolate(labels, (height, width), mode="nearest")[:, 0].long()
        frames = (labels[..., None] * 13 + torch.randint(0, 20, (images, height, width, 3))).to(
            torch.uint8
        )
        batches.append(Batch(frames.to(device), labels.to(device), tuple(range(images))))
    src, tgt = batches
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    d_optimizer = torch.optim.Adam(d.parameters(), lr=0.0)
    aligner = Aligner(method, d_optimizer, STAGE)
    compilation = Compilation(device, enabled=False, cuda_graphs=variant == GRAPHS)
    compilation.model(model)
    compilation.network(d)

    def step() -> None:
        amp = "bf16" in variant
        compilation.start_iteration()
        if variant.startswith("reference"):
            reference_step(model, d, optimizer, d_optimizer, src, tgt, amp=amp)
        else:
            adversarial_step(model, optimizer, aligner, src, tgt, amp=amp)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return model, d, step


def gradients(backbone: str, device: torch.device, variant: str) -> list[Tensor]:
    """Return all gradients after one step."""
    model, d, step = make(backbone, device, variant=variant)
    step()
    return [
        p.grad.detach().clone() for m in (model, d) for p in m.parameters() if p.grad is not None
    ]


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the norm of the difference of all gradients, relative to the norm of `expected`."""
    difference = sum(
        float((a - e).double().square().sum()) for a, e in zip(actual, expected, strict=True)
    )
    return float((difference / sum(float(e.double().square().sum()) for e in expected)) ** 0.5)


def peak_mib(backbone: str, device: str, variant: str) -> float:
    """Return the peak memory of three steps in MiB, measured in a separate process."""
    command = [
        sys.executable,
        __file__,
        "--peak",
        variant,
        "--backbones",
        backbone,
        "--device",
        device,
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(backbone: str, device: torch.device, variant: str) -> None:
    """Print the peak memory of three steps in MiB."""
    _, _, step = make(backbone, device, variant=variant)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_resident_mib()
    for _ in range(3):
        step()
    print(
        torch.cuda.max_memory_allocated() / 2**20
        if device.type == "cuda"
        else peak_resident_mib() - before
    )


def peak_resident_mib() -> float:
    """Return the peak resident memory of this process in MiB.

    `ru_maxrss` is not used because it starts with the value of the parent process.
    """
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(backbone: str, device: torch.device, repeats: int) -> dict[str, object]:
    """Return the seconds and peak MiB of each variant, and the error of our gradients."""
    _, src_hw, tgt_hw, images = case(backbone, device)
    expected = gradients(backbone, device, "reference")
    # Only in float32: in bfloat16 the gradients of random weights are noise. The tests compare
    # bfloat16 on a trained network.
    error = relative_error(gradients(backbone, device, "ours"), expected)
    del expected
    steps = {v: make(backbone, device, variant=v)[2] for v in variants(backbone, device)}
    times: dict[str, list[float]] = {v: [] for v in steps}
    for repeat in range(repeats + WARM_UP):
        for variant, step in steps.items():
            start = time.perf_counter()
            step()
            if repeat >= WARM_UP:
                times[variant].append(time.perf_counter() - start)
    seconds = {v: statistics.median(t) for v, t in times.items()}
    idle = {}
    if device.type == "cuda":
        idle = {v: 1 - busy_seconds(step) / seconds[v] for v, step in steps.items()}
    # The processes that measure the peaks need the memory of the device.
    del steps, step
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "backbone": backbone,
        "size": f"{images} of {src_hw[1]}x{src_hw[0]} + {images} of {tgt_hw[1]}x{tgt_hw[0]}",
        "seconds": seconds,
        "images_per_second": {v: 2 * images / s for v, s in seconds.items()},
        "idle": idle,
        "mib": {v: peak_mib(backbone, str(device), v) for v in times},
        "gradient_error": error,
    }


def busy_seconds(step: Callable[[], None]) -> float:
    """Return for how long the kernels of a step ran on the GPU."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
    return float(sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6)


def baseline(variant: str) -> str:
    """Return the reference variant of the same precision."""
    return "reference bf16" if "bf16" in variant else "reference"


def print_table(row: dict[str, Any]) -> None:
    seconds, mib = row["seconds"], row["mib"]
    cells = [
        [
            variant,
            f"{seconds[variant]:.3f}",
            f"{seconds[variant] / seconds[baseline(variant)]:.2f}",
            f"{row['images_per_second'][variant]:.1f}",
            f"{row['idle'][variant]:.0%}" if variant in row["idle"] else "",
            f"{mib[variant]:.0f}",
            f"{mib[variant] / mib[baseline(variant)]:.2f}",
            f"{row['gradient_error']:.0e}" if variant == "ours" else "",
        ]
        for variant in seconds
    ]
    print(f"{row['backbone']}, {row['size']}")
    header = (
        "variant", "s/step", "relative", "images/s", "idle", "peak MiB", "relative",
        "gradient error",
    )  # fmt: skip
    print(format_table(header, cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", help="comma-separated backbones [all of the device]")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5, help="timed steps [%(default)s]")
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    backbones = (
        args.backbones.split(",")
        if args.backbones
        else list(GPU_CASES if device.type == "cuda" else CASES)
    )
    if args.peak:
        print_peak(backbones[0], device, args.peak)
        return
    rows = []
    for backbone in backbones:
        rows.append(measure(backbone, device, args.repeats))
        print_table(rows[-1])
    document = {
        "benchmark": "train_step",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else args.device,
        "threads": args.threads,
        "rows": rows,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
