"""Time a source step of EfficientNet-Lite0 on a CPU: `python benchmarks/depthwise.py`.

Compares the depthwise convolutions of the package with those of torch, in bfloat16 and in float32.
The variants take turns in one process, so that a change of the machine's speed affects all of them.
Prints the median seconds of a step and the ratio to torch's bfloat16 step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.system import usable_cores
from fada_deploy.training.losses import segmentation_loss
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel

PATCHED = "fada_deploy.training.models.efficientnet.depthwise_conv2d"


def torch_conv(x: Tensor, weight: Tensor, *, stride: int, padding: int) -> Tensor:
    """Return torch's depthwise convolution."""
    return F.conv2d(x, weight, None, stride, padding, groups=len(weight))


def make_step(size_hw: tuple[int, int], batch: int) -> Callable[[bool], None]:
    """Return a function that trains one step on random data, in bfloat16 or in float32."""
    torch.manual_seed(0)
    spec = ModelSpec("efficientnet-lite0", CITYSCAPES_19, size_hw, "batch")
    model = SegmentationModel(spec).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    frames = torch.randint(0, 256, (batch, *size_hw, 3), dtype=torch.uint8)
    labels = torch.randint(0, 19, (batch, *size_hw))

    def step(bf16: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(frames)
        segmentation_loss(logits, labels).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and print the variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(usable_cores())
    step = make_step((240, 320), 6)
    seconds: dict[str, list[float]] = {"torch, bf16": [], "torch, fp32": [], "own, bf16": []}
    for _ in range(arguments.rounds + 2):
        for name, times in seconds.items():
            start = time.perf_counter()
            if name.startswith("torch"):
                with mock.patch(PATCHED, torch_conv):
                    step(name.endswith("bf16"))
            else:
                step(True)
            times.append(time.perf_counter() - start)
    medians = {name: statistics.median(times[2:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:12} {median:.3f} s  {median / medians['torch, bf16']:.2f}")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
