"""Memory, threads and file descriptors over 1,000 training iterations: `benchmarks/long_run.py`.

Trains the source stage (600 iterations) and the adversarial stage (400) of the recipe `small` on a
small rendered town in a process of its own, and samples that process every second. The second tenth
of each stage is compared with its last but one, so that neither the setup of a stage nor its final
scoring counts as growth. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from fada_deploy.common.tables import format_table
from fada_deploy.synth.dataset import write_source, write_target

STAGES = ("source", "adversarial")
# Resident MiB, threads, open descriptors.
Sample = tuple[float, int, int]


def sample_process(pid: int) -> Sample:
    """Return the resident MiB, threads and open descriptors of a process."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    )
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), descriptors


def current_stage(run: Path) -> str | None:
    """Return the stage that a run is in, None before the first."""
    return next((stage for stage in reversed(STAGES) if (run / stage).is_dir()), None)


def train(folder: Path, frames: int) -> dict[str, list[Sample]]:
    """Train on `frames` rendered scenes per domain; return the samples of each stage."""
    write_source(folder / "gta5", frames, size_hw=(192, 320))
    for split, count in (("train", frames), ("val", 10)):
        write_target(folder / "cityscapes", split, count, size_hw=(192, 320))
    run = folder / "run"
    command = [
        sys.executable, "-m", "fada_deploy", "train",
        "--recipe", "small", "--stages", ",".join(STAGES),
        "--src", "gta5", "--src-root", folder / "gta5",
        "--tgt", "cityscapes", "--tgt-root", folder / "cityscapes", "--out", run,
    ]  # fmt: skip
    samples: dict[str, list[Sample]] = {stage: [] for stage in STAGES}
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            if stage := current_stage(run):
                samples[stage].append(sample_process(process.pid))
        except OSError:
            break
        time.sleep(1)
    if process.wait():
        raise SystemExit(f"training failed with exit code {process.returncode}")
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=60, help="scenes per domain [%(default)s]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = train(Path(folder), args.frames)
    stages, rows = {}, []
    for stage, values in samples.items():
        tenth = max(1, len(values) // 10)
        (m0, t0, d0), (m1, t1, d1) = (
            [median(column) for column in zip(*part, strict=True)]
            for part in (values[tenth : 2 * tenth], values[-2 * tenth : -tenth])
        )
        stages[stage] = {
            "mib": [m0, m1],
            "threads": [t0, t1],
            "descriptors": [d0, d1],
            "samples": len(values),
        }
        growth = f"{100 * (m1 / m0 - 1):+.1f} %"
        pairs = (f"{m0:.0f}→{m1:.0f}", growth, f"{t0:.0f}→{t1:.0f}", f"{d0:.0f}→{d1:.0f}")
        rows.append([stage, *pairs])
    print(format_table(("stage", "MiB", "growth", "threads", "descriptors"), rows))
    print(json.dumps({"benchmark": "long_run", "stages": stages}))


if __name__ == "__main__":
    main()
