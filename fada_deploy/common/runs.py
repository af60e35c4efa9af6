"""Where runs lie and which is the newest: `runs/<src>-<tgt>-<backbone>-NNN/<stage>/`.

A run is a folder with a `config.json`; a finished stage holds `weights.safetensors`; exports lie in
`<run>/export/`. The commands chain by these names alone.
"""

from __future__ import annotations

from pathlib import Path

from fada_deploy.common.errors import ModelError

RUNS = Path("runs")
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
STAGES = ("source", "adversarial", "distill")
MODEL_SUFFIXES = frozenset({".onnx"})


def newest_runs(root: Path = RUNS) -> list[Path]:
    """Return the runs with at least one finished stage, newest first."""
    finished: dict[Path, float] = {}
    for weights in root.glob(f"*/*/{WEIGHTS}"):
        run = weights.parent.parent
        if (run / CONFIG).is_file():
            finished[run] = max(finished.get(run, 0.0), weights.stat().st_mtime)
    return sorted(finished, key=lambda run: finished[run], reverse=True)


def newest_models(root: Path = RUNS) -> list[Path]:
    """Return the exported models under `root`, newest first."""
    models = [p for p in root.glob("*/export/*") if p.suffix in MODEL_SUFFIXES and p.name[0] != "."]
    return sorted(models, key=lambda p: p.stat().st_mtime, reverse=True)


def final_weights(path: Path) -> Path:
    """Return the weights of a run's last finished stage; a stage's folder or a weights file name their own.

    Raise `ModelError` when there are none.
    """
    if path.is_file():
        return path
    candidates = [path / WEIGHTS, *(path / stage / WEIGHTS for stage in reversed(STAGES))]
    for weights in candidates:
        if weights.is_file():
            return weights
    what = "holds no finished stage" if path.is_dir() else "no such run"
    raise ModelError(f"{path}: {what}; a run is what `fada train` makes under {RUNS}/")
