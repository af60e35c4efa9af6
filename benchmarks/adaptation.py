"""The methods side by side on rendered towns: `python benchmarks/adaptation.py --seeds 1,2,3 --jobs 2`.

For each seed a town of its own is rendered and every row is trained with that seed by the `small`
preset; scores are of the last weights on the target's validation frames. Rows that are already
there are not trained again. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fada_deploy.training.settings import make_config

SMALL = make_config(preset="small", file=None, settings=[], options={"src": "gta5", "tgt": "cityscapes"})
BEFORE = SMALL.source.iterations + SMALL.adversarial.iterations
TOTAL = BEFORE + SMALL.distill.iterations
ADAPT = ["--stages", "adversarial,distill"]


def source_only(iterations: int) -> list[str]:
    return [
        "--stages",
        "source",
        "--set",
        f"source.max_iterations={iterations}",
        "--set",
        f"source.iterations={iterations}",
    ]


# Run → (the run it starts from, arguments). Each run's stages are rows of the table.
STANDING = [f"adversarial.{setting}" for setting in ("lr=0", "adversarial_weight=0", "iterations=40")]
RUNS: dict[str, tuple[str | None, list[str]]] = {
    "src": (None, ["--stages", "source"]),
    "soft": ("src", ADAPT),
    "only_total": (None, source_only(TOTAL)),
    "hard": ("src", [*ADAPT, "--method", "fada-hard"]),
    "twoway": ("src", [*ADAPT, "--method", "feature"]),
    "only": (None, source_only(BEFORE)),
    "only_distill": ("only", ["--stages", "distill"]),
    "bn": ("only", ["--stages", "adversarial", *(word for s in STANDING for word in ("--set", s))]),
}
ROWS = {
    f"source only, {BEFORE} iterations": ("only", "source"),
    f"source only, {TOTAL} iterations": ("only_total", "source"),
    "source only + distillation": ("only_distill", "distill"),
    "source only, target's batch statistics": ("bn", "adversarial"),
    "feature-only (two-way)": ("twoway", "adversarial"),
    "feature-only + distillation": ("twoway", "distill"),
    "FADA hard": ("hard", "adversarial"),
    "FADA hard + distillation": ("hard", "distill"),
    "FADA soft": ("soft", "adversarial"),
    "FADA soft + distillation": ("soft", "distill"),
}


def fada(*arguments: object, threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "fada_deploy", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def run_seed(out: Path, seed: int, threads: int) -> None:
    """Render a seed's town and train what is not there yet."""
    town, runs = out / f"town{seed}", out / f"runs_town{seed}"
    if not town.exists():
        fada("data", "render", "--out", town, "--source", 400, "--target", 400, "--val", 100, "--clip", 6,
             "--seed", seed, "--jobs", threads, threads=threads)  # fmt: skip
    roots = ["--src-root", town / "gta5", "--tgt-root", town / "cityscapes"]
    for name, (start, arguments) in RUNS.items():
        stage = arguments[1].split(",")[-1]
        if (runs / name / stage / "scores.json").is_file():
            continue
        begin = [] if start is None else ["--start", runs / start]
        common = ["--src", "gta5", "--tgt", "cityscapes", *roots, "--preset", "small", "--seed", seed]
        fada("train", *common, *begin, *arguments, "--out", runs / name, threads=threads)


def score(out: Path, seed: int, row: tuple[str, str]) -> float:
    run, stage = row
    scores = json.loads((out / f"runs_town{seed}" / run / stage / "scores.json").read_text("utf-8"))
    return 100 * float(scores["miou"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--jobs", type=int, default=1, help="Seeds at once; the cores are shared among them.")
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"))
    args = parser.parse_args()
    seeds = [int(s) for s in args.seeds.split(",")]
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda seed: run_seed(args.out, seed, threads), seeds))
    size = f"{SMALL.size[1]}x{SMALL.size[0]}"
    print(f"target mIoU %, input {size}\n{'':42}" + "".join(f"seed {s:<4}" for s in seeds) + "mean ± s")
    table = {name: [score(args.out, seed, row) for seed in seeds] for name, row in ROWS.items()}
    for name, values in table.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"{name:42}" + "".join(f"{v:<9.1f}" for v in values) + f"{statistics.fmean(values):.1f} ± {spread:.1f}"
        )
    print(json.dumps({"benchmark": "adaptation", "input": size, "seeds": seeds, "miou": table}))


if __name__ == "__main__":
    main()
