"""One adversarial step against a plain reading of the published algorithm: `python benchmarks/train_step.py`.

The plain reading is what the released code does: two passes of the network, the discriminator run three
times, and every loss taken on materialized full-resolution tensors. Both start from the same weights
and see the same batch, source and target of unequal size; gradients in float32 are compared before anything is
timed. Times are medians of steps taken in turn; peak memory is each variant's own process. Prints a
table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.training.config import AdversarialStage
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.stages.adversarial import adversarial_step

STAGE = AdversarialStage()
# backbone, normalization, source (H, W), target (H, W), images of each domain
CASES = {
    "ddrnet23-slim": ("batch", (240, 400), (192, 320), 4),
    "pidnet-s": ("batch", (240, 400), (192, 320), 4),
    "resnet101": ("frozen", (320, 576), (256, 512), 1),
}
VARIANTS = ("plain", "ours", "ours bf16")


def plain_step(
    model: SegmentationModel, d: nn.Module, optimizer: torch.optim.Optimizer, d_optimizer: torch.optim.Optimizer,
    src: Batch, tgt: Batch,
) -> None:  # fmt: skip
    """The published step, as it reads."""

    def up(x: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def soft_cross_entropy(answers: Tensor, encodings: Tensor) -> Tensor:
        return (-encodings * F.log_softmax(answers, 1)).sum(1).mean()

    optimizer.zero_grad()
    src_features = model.features(src.frames_bhwc)
    src_logits = up(model.classifier(src_features), src.size_hw) / STAGE.temperature
    F.cross_entropy(src_logits, src.labels, ignore_index=255).backward()
    src_soft = F.softmax(src_logits, 1).detach().clamp(max=STAGE.clip)

    tgt_features = model.features(tgt.frames_bhwc)
    tgt_logits = up(model.classifier(tgt_features), tgt.size_hw) / STAGE.temperature
    tgt_soft = F.softmax(tgt_logits, 1).detach().clamp(max=STAGE.clip)
    answers = up(d(tgt_features), tgt.size_hw)
    nothing = torch.zeros_like(tgt_soft)
    (
        STAGE.adversarial_weight * soft_cross_entropy(answers, torch.cat((tgt_soft, nothing), 1))
    ).backward()
    optimizer.step()

    d_optimizer.zero_grad()
    answers = up(d(src_features.detach()), src.size_hw)
    (
        0.5 * soft_cross_entropy(answers, torch.cat((src_soft, torch.zeros_like(src_soft)), 1))
    ).backward()
    answers = up(d(tgt_features.detach()), tgt.size_hw)
    (0.5 * soft_cross_entropy(answers, torch.cat((nothing, tgt_soft), 1))).backward()
    d_optimizer.step()


def make(
    backbone: str, device: torch.device, *, variant: str
) -> tuple[SegmentationModel, nn.Module, Callable[[], None]]:
    """Return a network, its discriminator, and a step of the variant on a batch that never changes."""
    norm, src_hw, tgt_hw, images = CASES[backbone]
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec(backbone, CITYSCAPES_19, tgt_hw, norm)).to(device).train()
    method = make_method("fada", model, STAGE)
    d = method.make_discriminator().to(device)
    batches = []
    for height, width in (src_hw, tgt_hw):
        # Patches of class and color, not noise: encodings as on streets, some of them clipped.
        labels = torch.randint(0, 19, (images, 1, height // 16, width // 16)).float()
        labels = F.interpolate(labels, (height, width), mode="nearest")[:, 0].long()
        frames = (labels[..., None] * 13 + torch.randint(0, 20, (images, height, width, 3))).to(
            torch.uint8
        )
        batches.append(Batch(frames.to(device), labels.to(device), tuple(range(images))))
    src, tgt = batches
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    d_optimizer = torch.optim.Adam(d.parameters(), lr=0.0)

    def step() -> None:
        if variant == "plain":
            plain_step(model, d, optimizer, d_optimizer, src, tgt)
        else:
            amp = variant == "ours bf16"
            adversarial_step(
                model, d, optimizer, d_optimizer, src, tgt, STAGE, method=method, amp=amp
            )
        if device.type == "cuda":
            torch.cuda.synchronize()

    return model, d, step


def gradients(backbone: str, device: torch.device, variant: str) -> list[Tensor]:
    model, d, step = make(backbone, device, variant=variant)
    step()
    return [
        p.grad.detach().clone() for m in (model, d) for p in m.parameters() if p.grad is not None
    ]


def disagreement(got: list[Tensor], want: list[Tensor]) -> float:
    """Return the norm of the difference of all gradients over the norm of the plain ones."""
    difference = sum(float((g - w).double().square().sum()) for g, w in zip(got, want, strict=True))
    return float((difference / sum(float(w.double().square().sum()) for w in want)) ** 0.5)


def peak(backbone: str, device: str, variant: str) -> float:
    """Return the MiB that three steps add to a process of their own."""
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
    _, _, step = make(backbone, device, variant=variant)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = high_water()
    for _ in range(3):
        step()
    print(
        torch.cuda.max_memory_allocated() / 2**20
        if device.type == "cuda"
        else high_water() - before
    )


def high_water() -> float:
    """Return the most memory this process ever held, in MiB. (`ru_maxrss` would begin with the parent's.)"""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", default=",".join(CASES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    backbones = args.backbones.split(",")
    if args.peak:
        print_peak(backbones[0], device, args.peak)
        return
    rows = []
    for backbone in backbones:
        _, src_hw, tgt_hw, images = CASES[backbone]
        plain = gradients(backbone, device, "plain")
        # In bfloat16 the gradients of random weights are noise; tests compare them on a trained network.
        differs = disagreement(gradients(backbone, device, "ours"), plain)
        del plain
        steps = {v: make(backbone, device, variant=v)[2] for v in VARIANTS}
        times: dict[str, list[float]] = {v: [] for v in VARIANTS}
        for repeat in range(args.repeats + 1):
            for variant, step in steps.items():
                start = time.perf_counter()
                step()
                if repeat:
                    times[variant].append(time.perf_counter() - start)
        seconds = {v: statistics.median(t) for v, t in times.items()}
        del steps
        memory = {v: peak(backbone, args.device, v) for v in VARIANTS}
        size = f"{images} of {src_hw[1]}x{src_hw[0]} + {images} of {tgt_hw[1]}x{tgt_hw[0]}"
        print(f"{backbone}, {size}")
        for v in VARIANTS:
            ratios = f"time {seconds[v] / seconds['plain']:.2f}  memory {memory[v] / memory['plain']:.2f}"
            gradient = f"  gradients differ by {differs:.0e}" if v == "ours" else ""
            print(f"  {v:<10} {seconds[v]:7.3f} s  {memory[v]:7.0f} MiB  {ratios}{gradient}")
        rows.append(
            {
                "backbone": backbone,
                "size": size,
                "seconds": seconds,
                "mib": memory,
                "differ": differs,
            }
        )
    print(
        json.dumps(
            {
                "benchmark": "train_step",
                "device": args.device,
                "threads": args.threads,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
