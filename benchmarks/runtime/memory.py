"""Part `memory`: resident memory, threads and file descriptors over many frames."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clip import LoopedSource
from processes import run_job

from fada_deploy.common.system import memory_mib, throughput_parallelism
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.writers.save import SaveOptions, save_results

SAMPLE_EVERY = 250
# Growth is measured from this frame on.
FIRST_FRAME = 1000
# Frames after the last sample, because the reader frees its memory after the last frame.
_EXTRA_FRAMES = 50


def job(options: dict[str, Any]) -> dict[str, Any]:
    """Segment `frames` frames; return samples of frame, MiB, threads and descriptors."""
    samples: list[tuple[int, float, int, int]] = []
    source = LoopedSource(Path(options["clip"]), options["frames"] + _EXTRA_FRAMES)
    start = time.perf_counter()
    with (
        Segmenter(
            options["model"], backend=options["backend"], parallel=throughput_parallelism()
        ) as segmenter,
        TemporaryDirectory() as folder,
    ):
        for item in save_results(segmenter, [source], SaveOptions(Path(folder))):
            if isinstance(item, Result) and (item.index + 1) % SAMPLE_EVERY == 0:
                samples.append((item.index + 1, *_sample()))
                frame, mib = samples[-1][:2]
                print(f"  frame {frame}: {mib:.1f} MiB", file=sys.stderr, flush=True)
        backend = segmenter.backend.name
    first = next((sample for sample in samples if sample[0] >= FIRST_FRAME), samples[0])
    return {
        "frames": options["frames"],
        "seconds": time.perf_counter() - start,
        "backend": backend,
        "samples": samples,
        "from_frame": first[0],
        "growth": samples[-1][1] / first[1] - 1,
        "peak_mib": memory_mib(peak=True),
    }


def _sample() -> tuple[float, int, int]:
    """Return the resident MiB, threads and open descriptors of this process."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    threads = len(list(Path("/proc/self/task").iterdir()))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2), threads, descriptors


def run(common: dict[str, Any]) -> dict[str, Any]:
    """Measure the first model over many frames."""
    result = run_job("memory", common)
    first = next(sample for sample in result["samples"] if sample[0] == result["from_frame"])
    last = result["samples"][-1]
    print(
        f"\n{result['frames']} frames in {result['seconds']:.0f} s: {first[1]:.1f} MiB at frame "
        f"{first[0]}, {last[1]:.1f} MiB at frame {last[0]} ({result['growth']:+.2%}); "
        f"threads {first[2]}→{last[2]}, descriptors {first[3]}→{last[3]}"
    )
    return result
