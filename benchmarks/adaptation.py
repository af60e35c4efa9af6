"""Compare the adaptation methods: `python benchmarks/adaptation.py --seeds 1,2,3 --jobs 2`.

By default a town is rendered for each seed. With `--src` and `--tgt` (TOML files) the methods are
compared on that pair of data sets. Every row is trained with the recipe `small`; its last weights
are scored on the validation frames of the target, which never select a checkpoint. Finished rows
are not trained again. Prints a table and one JSON line.
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

from fada_deploy.common.tables import format_table
from fada_deploy.training.settings import make_config

SMALL = make_config(
    recipe="small", file=None, settings=[], options={"src": "gta5", "tgt": "cityscapes"}
)
BOTH = SMALL.source.iterations + SMALL.adversarial.iterations
METHODS = ("feature", "fada-hard", "fada", "adaptsegnet", "advent")
LONGER = [f"source.{key}={BOTH}" for key in ("max_iterations", "iterations")]


def set_options(*pairs: str) -> list[str]:
    """Return the `--set` options of KEY=VALUE pairs."""
    return [argument for pair in pairs for argument in ("--set", pair)]


# Name of a run → (the run it starts from, its stage, arguments of `fada train`).
RUNS: dict[str, tuple[str | None, str, list[str]]] = {
    "src": (None, "source", []),
    "fada": ("src", "adversarial", ["--method", "fada"]),
    "none": ("src", "adversarial", set_options("adversarial.adversarial_weight=0")),
    "longer": (None, "source", set_options(*LONGER)),
    **{m: ("src", "adversarial", ["--method", m]) for m in METHODS if m != "fada"},
    "fada-distill": ("fada", "distill", []),
    "feature-distill": ("feature", "distill", []),
    "longer-distill": ("longer", "distill", []),
}
ROWS = {
    f"source only, {SMALL.source.iterations} iterations": "src",
    f"source only, {BOTH} iterations": "longer",
    "source only + distillation": "longer-distill",
    "no adversary, batch statistics of the target": "none",
    "feature-only (two-way)": "feature",
    "feature-only + distillation": "feature-distill",
    "AdaptSegNet (single level)": "adaptsegnet",
    "ADVENT (single level)": "advent",
    "FADA hard": "fada-hard",
    "FADA soft": "fada",
    "FADA soft + distillation": "fada-distill",
}


def fada(*arguments: object, threads: int) -> None:
    """Run `fada` in a subprocess with `threads` threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "fada_deploy", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def run_seed(args: argparse.Namespace, seed: int, threads: int) -> None:
    """Train the unfinished runs of one seed; render its town first if no data sets were given."""
    common: list[object] = ["--src", args.src, "--tgt", args.tgt]
    if args.src is None:
        town = args.out / f"town{seed}"
        if not town.exists():
            scenes = ["--source-scenes", 400, "--target-scenes", 400, "--val-scenes", 100]
            fada("data", "render", "--out", town, *scenes, "--video-seconds", 6, "--seed", seed,
                 "--jobs", threads, threads=threads)  # fmt: skip
        common = ["--src", "gta5", "--tgt", "cityscapes"]
        common += ["--src-root", town / "gta5", "--tgt-root", town / "cityscapes"]
    for name in args.runs:
        start, stage, arguments = RUNS[name]
        run = args.out / f"seed{seed}" / name
        if not (run / stage / "scores.json").is_file():
            weights = [] if start is None else ["--start", args.out / f"seed{seed}" / start]
            recipe = ["--recipe", "small", *args.train, "--seed", seed, "--stages", stage]
            fada("train", *common, *recipe, *arguments, *weights, "--out", run, threads=threads)


def score(args: argparse.Namespace, seed: int, name: str) -> float | None:
    """Return the mIoU of a run in percent, None if it was not trained."""
    path = args.out / f"seed{seed}" / name / RUNS[name][1] / "scores.json"
    return 100 * float(json.loads(path.read_text("utf-8"))["miou"]) if path.is_file() else None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated seeds [%(default)s]")
    parser.add_argument(
        "--runs",
        default=",".join(RUNS),
        help="runs to train, in an order that satisfies their starts [all]",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="seeds to train in parallel; they divide the cores [%(default)s]",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/adaptation"), help="folder of the runs"
    )
    parser.add_argument("--src", help="TOML file of the source [a rendered town]")
    parser.add_argument("--tgt", help="TOML file of the target, with a labeled split `val`")
    parser.add_argument("train", nargs="*", help="more arguments for every `fada train`, after --")
    args = parser.parse_args()
    args.runs = args.runs.split(",")
    return args


def main() -> None:
    args = parse_arguments()
    seeds = [int(s) for s in args.seeds.split(",")]
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda seed: run_seed(args, seed, threads), seeds))
    miou = {row: [score(args, seed, name) for seed in seeds] for row, name in ROWS.items()}
    rows = []
    for row, values in miou.items():
        known = [v for v in values if v is not None]
        spread = statistics.stdev(known) if len(known) > 1 else 0.0
        mean = f"{statistics.fmean(known):.1f} ± {spread:.1f}" if known else ""
        rows.append([row, *("-" if v is None else f"{v:.1f}" for v in values), mean])
    print("target mIoU in percent")
    print(format_table(("", *(f"seed {seed}" for seed in seeds), "mean ± std"), rows))
    print(
        json.dumps({"benchmark": "adaptation", "seeds": seeds, "train": args.train, "miou": miou})
    )


if __name__ == "__main__":
    main()
