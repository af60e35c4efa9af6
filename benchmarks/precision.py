"""Speed and accuracy of precisions on this CPU: `python benchmarks/precision.py model.onnx`.

MODEL is an fp32 export; the files that `fada export --precision` wrote next to it are measured too.
Every file runs on every backend that supports it, alternating on the same frames (those of the
reference outputs) and with the same number of threads. Labels are compared with those of the
trained network, and with `--data` every file is scored on a labeled data set. Prints a table and
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median

from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.common.system import usable_cores
from fada_deploy.common.tables import format_table
from fada_deploy.data import open_dataset
from fada_deploy.evaluation import evaluate
from fada_deploy.runtime.backend_selection import open_backend, runnable_backends
from fada_deploy.runtime.backends import Backend
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs, compare_with_reference
from fada_deploy.runtime.segmenter import Segmenter


def median_ms(backends: list[Backend], reference: ReferenceOutputs, repeats: int) -> list[float]:
    """Return the median milliseconds per frame of each backend; the backends alternate."""
    times: list[list[float]] = [[] for _ in backends]
    for backend in backends:
        backend.submit(reference.frames[:1])
    for repeat in range(repeats):
        frame = reference.frames[repeat % len(reference.frames)][None]
        for backend, backend_times in zip(backends, times, strict=True):
            start = time.perf_counter()
            backend.submit(frame)
            backend_times.append(1e3 * (time.perf_counter() - start))
    return [median(backend_times) for backend_times in times]


def score(
    files: list[Path], metadata: ModelMetadata, data: str, data_root: Path | None
) -> dict[Path, float]:
    """Return the mIoU of each file on its first backend, on the split `val`."""
    dataset = open_dataset(data, data_root, split="val", space=metadata.label_space)
    scores = {}
    for path in files:
        with Segmenter(path, backend=runnable_backends(path)[0], device="cpu") as segmenter:
            predict = partial(segmenter.labels, color="rgb")
            scores[path] = evaluate(predict, dataset).scores.miou
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="fp32 ONNX file")
    parser.add_argument("--data", help="labeled data set (name or TOML file) to score on")
    parser.add_argument("--data-root", type=Path, help="folder of the data set")
    parser.add_argument("--repeats", type=int, default=40, help="frames per backend [%(default)s]")
    args = parser.parse_args()
    metadata = read_metadata(args.model)
    files = [args.model, *sorted(args.model.parent.glob(f"{args.model.stem}.*.onnx"))]
    reference = ReferenceOutputs.for_model(args.model, metadata)
    cases = [(path, name) for path in files for name in runnable_backends(path)]
    backends = [open_backend(path, backend=name, device="cpu") for path, name in cases]
    times = median_ms(backends, reference, args.repeats)
    scores = score(files, metadata, args.data, args.data_root) if args.data else {}
    rows, table = [], []
    for (path, name), backend, ms in zip(cases, backends, times, strict=True):
        parity = compare_with_reference(backend, reference)
        ratio = ms / times[cases.index((args.model, name))]
        miou = scores.get(path)
        rows.append(
            {
                "file": path.name,
                "backend": name,
                "ms": round(ms, 3),
                "of_fp32": round(ratio, 3),
                "equal_labels": parity.equal_labels,
                "logit_error": parity.logit_error,
                "miou": miou,
            }
        )
        cells = (f"{ms:.2f}", f"{ratio:.2f}", f"{parity.equal_labels:.4%}")
        table.append([path.name, name, *cells, "" if miou is None else f"{100 * miou:.2f}"])
    height, width = metadata.input_size_hw
    print(f"{args.model.name}, {width}x{height}, {usable_cores()} cores, batch 1")
    header = ("file", "backend", "ms", "vs. fp32", "equal labels", "mIoU %")
    print(format_table(header, table, align="llrrrr"))
    document = {
        "benchmark": "precision",
        "size": [width, height],
        "cores": usable_cores(),
        "rows": rows,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
