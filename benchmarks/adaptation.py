"""The methods side by side: `python benchmarks/adaptation.py --seeds 1,2,3 --jobs 2`.

Without `--src` a town of its own is rendered for each seed; with `--src` and `--tgt` (TOML files) the
methods are compared on that pair. Every row is trained with its seed by the `small` preset and
scored with its last weights on the target's validation frames, never chosen by them. Rows that are
already there are not trained again. Prints a table and one JSON line.
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

SMALL = make_config(
    preset="small", file=None, settings=[], options={"src": "gta5", "tgt": "cityscapes"}
)
BOTH = SMALL.source.iterations + SMALL.adversarial.iterations
METHODS = ("feature", "fada-hard", "fada", "adaptsegnet", "advent")
LONGER = [f"source.{key}={BOTH}" for key in ("max_iterations", "iterations")]


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


# Run → (the run it starts from, its stage, arguments).
RUNS: dict[str, tuple[str | None, str, list[str]]] = {
    "src": (None, "source", []),
    "fada": ("src", "adversarial", ["--method", "fada"]),
    "none": ("src", "adversarial", settings("adversarial.adversarial_weight=0")),
    "longer": (None, "source", settings(*LONGER)),
    **{m: ("src", "adversarial", ["--method", m]) for m in METHODS if m != "fada"},
    "fada-distill": ("fada", "distill", []),
    "feature-distill": ("feature", "distill", []),
    "longer-distill": ("longer", "distill", []),
}
ROWS = {
    f"source only, {SMALL.source.iterations} iterations": "src",
    f"source only, {BOTH} iterations": "longer",
    "source only + distillation": "longer-distill",
    "no adversary, target's batch statistics": "none",
    "feature-only (two-way)": "feature",
    "feature-only + distillation": "feature-distill",
    "AdaptSegNet (single level)": "adaptsegnet",
    "ADVENT (single level)": "advent",
    "FADA hard": "fada-hard",
    "FADA soft": "fada",
    "FADA soft + distillation": "fada-distill",
}


def fada(*arguments: object, threads: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "fada_deploy", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def run_seed(args: argparse.Namespace, seed: int, threads: int) -> None:
    """Train what is not there yet of one seed; render its town first where there is no pair."""
    common: list[object] = ["--src", args.src, "--tgt", args.tgt]
    if args.src is None:
        town = args.out / f"town{seed}"
        if not town.exists():
            fada("data", "render", "--out", town, "--source", 400, "--target", 400, "--val", 100, "--clip", 6,
                 "--seed", seed, "--jobs", threads, threads=threads)  # fmt: skip
        common = ["--src", "gta5", "--tgt", "cityscapes"]
        common += ["--src-root", town / "gta5", "--tgt-root", town / "cityscapes"]
    for name in args.runs:
        start, stage, arguments = RUNS[name]
        run = args.out / f"seed{seed}" / name
        if not (run / stage / "scores.json").is_file():
            begin = [] if start is None else ["--start", args.out / f"seed{seed}" / start]
            common_all = [
                *common,
                "--preset",
                "small",
                *args.train,
                "--seed",
                seed,
                "--stages",
                stage,
            ]
            fada("train", *common_all, *arguments, *begin, "--out", run, threads=threads)


def score(args: argparse.Namespace, seed: int, name: str) -> float | None:
    path = args.out / f"seed{seed}" / name / RUNS[name][1] / "scores.json"
    return 100 * float(json.loads(path.read_text("utf-8"))["miou"]) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument(
        "--runs", default=",".join(RUNS), help="Which runs to train, those they start from first."
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="Seeds at once; the cores are shared among them."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--src", help="A TOML file [a rendered town].")
    parser.add_argument("--tgt", help="A TOML file with a labeled split `val`.")
    parser.add_argument("train", nargs="*", help="More arguments for every `fada train`, after --.")
    args = parser.parse_args()
    args.runs = args.runs.split(",")
    seeds = [int(s) for s in args.seeds.split(",")]
    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda seed: run_seed(args, seed, threads), seeds))
    print(f"target mIoU %\n{'':42}" + "".join(f"seed {s:<4}" for s in seeds) + "mean ± s")
    table = {row: [score(args, seed, name) for seed in seeds] for row, name in ROWS.items()}
    for row, values in table.items():
        there = [v for v in values if v is not None]
        cells = "".join(f"{'-' if v is None else f'{v:.1f}':<9}" for v in values)
        spread = statistics.stdev(there) if len(there) > 1 else 0.0
        print(
            f"{row:42}{cells}" + (f"{statistics.fmean(there):.1f} ± {spread:.1f}" if there else "")
        )
    print(
        json.dumps({"benchmark": "adaptation", "seeds": seeds, "train": args.train, "miou": table})
    )


if __name__ == "__main__":
    main()
