"""Throughput of `fada infer --ray`: N workers of one core against one such worker.

    python benchmarks/cluster.py                       # two workers, the sample video
    python benchmarks/cluster.py --workers 4 --video drive.mp4 --copies 16 --json result.json

The jobs run one after the other, in alternating order, each on a local cluster. The time of a job
is that from its first result to its last one; the start of Ray is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import fada_deploy
from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.output_folder import OutputFolder
from fada_deploy.cluster.pool import WorkerPool
from fada_deploy.common.runs import BUILTIN, exported_model
from fada_deploy.common.system import memory_mib
from fada_deploy.runtime.distributed import job
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.save import SaveOptions

SAMPLE = Path(fada_deploy.__file__).parent / "samples/street.mp4"


class TimedPool(WorkerPool):
    """Measures the time from the first result to the last one."""

    seconds = 0.0

    def run(self, *arguments: Any, **options: Any) -> Generator[tuple[Any, Any], None, None]:
        start: float | None = None
        for item in super().run(*arguments, **options):
            # The first result is the plan of a video, which takes milliseconds.
            start = start or time.perf_counter()
            yield item
        TimedPool.seconds = time.perf_counter() - (start or 0.0)


def measure(videos: list[Path], workers: int, out: Path, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Run one job; return its speed."""
    shutil.rmtree(out, ignore_errors=True)
    summary = job.run_job(
        job.ModelOptions(path=exported_model(Path(BUILTIN)), backend="onnxruntime"),
        open_sources(videos),
        SaveOptions(out, kinds),
        OutputFolder(out),
        ClusterOptions(workers=workers, cpus=1),
        chunk_frames=100,
    )
    seconds = TimedPool.seconds
    return {
        "workers": workers,
        "frames": summary.frames,
        "seconds": round(seconds, 2),
        "fps": round(summary.frames / seconds, 2),
        "with_start_s": round(summary.seconds, 2),
        "ms_per_frame": {k: round(v, 2) for k, v in summary.ms_per_frame.items()},
        "driver_peak_mib": memory_mib(peak=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, default=SAMPLE)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", default="overlay,json")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    job.WorkerPool = TimedPool  # type: ignore[misc]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        videos = [folder / f"{i:03d}{arguments.video.suffix}" for i in range(arguments.copies)]
        for video in videos:
            shutil.copy(arguments.video, video)
        for _ in range(arguments.rounds):
            for workers in (1, arguments.workers):
                result = measure(videos, workers, folder / "out", tuple(arguments.save.split(",")))
                print(json.dumps(result), flush=True)
                results.append(result)
    one, many = (
        statistics.median(r["fps"] for r in results if r["workers"] == n)
        for n in (1, arguments.workers)
    )
    print(f"{arguments.workers} workers: {many / one:.2f} times the throughput of one")
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": results, "ratio": many / one}, indent=2))


if __name__ == "__main__":
    main()
