"""What a precision costs and gains on this CPU: `python benchmarks/precision.py model.onnx [--data mine.toml]`.

Takes an fp32 export and the files that `fada export --precision` made beside it. Every file is run on every
backend that has kernels for it, in turn on the same frames (its reference outputs's) with equal threads; labels are
compared with the trained network's, and scored on a labeled data set where one is given. Prints a table and
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median

from fada_deploy.common.system import usable_cores
from fada_deploy.data import open_dataset
from fada_deploy.evaluation import evaluate
from fada_deploy.runtime.backend_selection import open_backend, runnable_backends
from fada_deploy.runtime.backends import Backend
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs, compare
from fada_deploy.runtime.segmenter import Segmenter


def timed(backends: list[Backend], reference: ReferenceOutputs, repeats: int) -> list[float]:
    """Return each backend's median ms for one frame, the backends taken in turn."""
    times: list[list[float]] = [[] for _ in backends]
    for backend in backends:
        backend.submit(reference.frames[:1])
    for repeat in range(repeats):
        frame = reference.frames[repeat % len(reference.frames)][None]
        for backend, own in zip(backends, times, strict=True):
            start = time.perf_counter()
            backend.submit(frame)
            own.append(1e3 * (time.perf_counter() - start))
    return [median(own) for own in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--data", help="labeled data set: its val split is scored on the first backend"
    )
    parser.add_argument("--root", type=Path)
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    metadata = read_metadata(args.model)
    files = [args.model, *sorted(args.model.parent.glob(f"{args.model.stem}.*.onnx"))]
    reference = ReferenceOutputs.of(args.model, metadata)
    opened = [(path, name) for path in files for name in runnable_backends(path)]
    backends = [open_backend(path, backend=name, device="cpu") for path, name in opened]
    spent = timed(backends, reference, args.repeats)
    scores: dict[Path, float] = {}
    if args.data:
        dataset = open_dataset(args.data, args.root, split="val", space=metadata.label_space)
        for path in files:
            with Segmenter(path, backend=runnable_backends(path)[0], device="cpu") as segmenter:
                scores[path] = evaluate(partial(segmenter.labels, color="rgb"), dataset).scores.miou
    height, width = metadata.input_size_hw
    print(f"{args.model.name}, {width}x{height}, {usable_cores()} cores; ms for one frame")
    rows = []
    for (path, name), backend, ms in zip(opened, backends, spent, strict=True):
        found = compare(backend, reference)
        base = spent[opened.index((args.model, name))]
        miou = scores.get(path)
        row = {
            "file": path.name,
            "backend": name,
            "ms": round(ms, 3),
            "of_fp32": round(ms / base, 3),
        }
        row |= {"equal_labels": found.equal_labels, "logit_error": found.logit_error, "miou": miou}
        rows.append(row)
        scored = "" if miou is None else f"  mIoU {100 * miou:5.2f}"
        print(
            f"{path.name:<32} {name:<12} {ms:8.2f} ms {ms / base:5.2f}  equal {found.equal_labels:.4%}{scored}"
        )
    print(
        json.dumps(
            {
                "benchmark": "precision",
                "size": [width, height],
                "cores": usable_cores(),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
