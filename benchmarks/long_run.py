"""Memory, threads and descriptors over 1,000 iterations of the small preset: `python benchmarks/long_run.py`.

Trains the source stage (600) and the adversarial stage (400) on a small rendered town in a process of its
own, and looks at it every second. Each stage is compared from its second tenth to its last, so that what a
stage sets up once does not count as growth. Prints a table and one JSON line.
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

from fada_deploy.synth.dataset import write_source, write_target


def look(pid: int) -> tuple[float, int, int]:
    """Return a process's resident MiB, threads and open descriptors."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    )
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), descriptors


def stage_of(run: Path) -> str:
    return (
        "adversarial"
        if (run / "adversarial").is_dir()
        else "source"
        if (run / "source").is_dir()
        else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=60)
    args = parser.parse_args()
    seen: dict[str, list[tuple[float, int, int]]] = {"source": [], "adversarial": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_source(root / "gta5", args.frames, size_hw=(192, 320))
        for split, count in (("train", args.frames), ("val", 10)):
            write_target(root / "cityscapes", split, count, size_hw=(192, 320))
        run = root / "run"
        command = [
            sys.executable, "-m", "fada_deploy", "train", "--preset", "small", "--stages", "source,adversarial",
            "--src", "gta5", "--src-root", root / "gta5", "--tgt", "cityscapes", "--tgt-root", root / "cityscapes",
            "--out", run,
        ]  # fmt: skip
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        while process.poll() is None:
            try:
                if stage := stage_of(run):
                    seen[stage].append(look(process.pid))
            except OSError:
                break
            time.sleep(1)
        if process.wait():
            raise SystemExit("the training failed")
    rows = {}
    print(f"{'stage':<12} {'MiB':>15} {'growth':>7} {'threads':>9} {'descriptors':>12}")
    for stage, samples in seen.items():
        tenth = max(1, len(samples) // 10)
        # Its last seconds are the score and what comes after it.
        ends = samples[tenth : 2 * tenth], samples[-2 * tenth : -tenth]
        (m0, t0, d0), (m1, t1, d1) = (
            [median(column) for column in zip(*part, strict=True)] for part in ends
        )
        rows[stage] = {
            "mib": [m0, m1],
            "threads": [t0, t1],
            "descriptors": [d0, d1],
            "samples": len(samples),
        }
        growth = f"{100 * (m1 / m0 - 1):+.1f} %"
        print(
            f"{stage:<12} {m0:7.0f}→{m1:7.0f} {growth:>7} {t0:4.0f}→{t1:<4.0f} {d0:6.0f}→{d1:<5.0f}"
        )
    print(json.dumps({"benchmark": "long_run", "stages": rows}))


if __name__ == "__main__":
    main()
