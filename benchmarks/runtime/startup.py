"""Part `startup`: seconds from the start of `fada infer` until its first frame is written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from processes import environment

from fada_deploy.common.tables import format_table

SCRIPT = Path(__file__).with_name("startup_script.py")
STEPS = (
    "Python started",
    "command line imported",
    "runtime imported",
    "sources opened",
    "backend imported",
    "model opened",
    "first frame written",
)
REPEATS = 5


def _start(
    common: dict[str, Any], out: Path, *, complete: bool = False, **variables: str
) -> dict[str, float]:
    """Run `fada infer`; return the seconds until each step.

    The run stops after the first frame unless it is `complete`.
    """
    arguments = ["infer", common["clip"], "--model", common["model"], "--out", str(out)]
    arguments += ["--backend", common["backend"]]
    until = "end" if complete else "first-frame"
    start = time.monotonic()
    # -P: the folder of the script must not be on the import path.
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(start), until, *arguments],
        capture_output=True,
        text=True,
        env=environment(**variables),
    )
    if not done.stdout:
        raise SystemExit(f"fada infer wrote no frame:\n{done.stderr[-2000:]}")
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[0])
    return marks


def run(common: dict[str, Any]) -> dict[str, Any]:
    """Measure the first start with empty caches, and starts after a complete run."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        empty = {"XDG_CACHE_HOME": str(root / "cache"), "NUMBA_CACHE_DIR": str(root / "numba")}
        runs = {"empty_caches": [_start(common, root / "cold", complete=False, **empty)]}
        _start(common, root / "complete", complete=True)
        runs["after_a_run"] = [_start(common, root / f"warm{i}") for i in range(REPEATS)]
    result: dict[str, Any] = {}
    for name, marks in runs.items():
        result[name] = {step: median(each[step] for each in marks) for step in STEPS}
        result[name]["all"] = marks
    cells = [[step, *(f"{result[name][step]:.2f}" for name in runs)] for step in STEPS]
    print("\nseconds from the start of `fada infer`")
    print(format_table(("step", *(name.replace("_", " ") for name in runs)), cells))
    return result
