"""Where runs lie and which is the newest: `runs/<src>-<tgt>-<backbone>-NNN/<stage>/`.

A run is a folder with a `config.json`; a finished stage holds `weights.safetensors`, and weights kept
on the way in `checkpoints/<iteration>.safetensors`; exports lie in `<run>/export/`. The commands
chain by these names alone.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.files import numbered_dir

logger = logging.getLogger(__name__)

RUNS = Path("runs")
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
CHECKPOINTS = "checkpoints"
STAGES = ("source", "adversarial", "distill")
MODEL_SUFFIXES = frozenset({".onnx", ".engine", ".plan"})


def newest_run(root: Path = RUNS) -> Path:
    """Return the run with a finished stage that changed last; log its path and each newer run.

    Raise `ModelError` if there is none.
    """
    runs = [config.parent for config in root.glob(f"*/{CONFIG}")]
    skipped: list[str] = []
    for run in sorted(runs, key=_last_change, reverse=True):
        if _finished(run):
            for line in skipped:
                logger.info("skipped %s", line)
            logger.info("using run %s (the newest)", run)
            return run
        skipped.append(f"{run}: no stage is finished; go on with `fada train --resume {run}`")
    found = "; ".join(skipped) or f"no run under {root}/"
    raise ModelError(f"{found}; make one with `fada train`, or name one")


def _finished(run: Path) -> list[Path]:
    return [w for s in STAGES if (w := run / s / WEIGHTS).is_file()]


def _last_change(run: Path) -> float:
    return max(p.stat().st_mtime for p in (run / CONFIG, *_finished(run)))


def newest_models(root: Path = RUNS) -> list[Path]:
    """Return the exported models under `root`, newest first."""
    models = [p for p in root.glob("*/export/*") if p.suffix in MODEL_SUFFIXES and p.name[0] != "."]
    return sorted(models, key=lambda p: p.stat().st_mtime, reverse=True)


def exported_model(path: Path) -> Path:
    """Return a run's newest export for its folder, and any other path as it is.

    An ONNX file comes before an engine, which may be of another machine.
    """
    exports = [p for p in (path / "export").glob("[!.]*") if p.suffix in MODEL_SUFFIXES]
    models = [p for p in exports if p.suffix == ".onnx"] or exports
    if path.is_dir() and not models:
        if not (path / CONFIG).is_file():
            raise ModelError(
                f"{path}: is no run and no exported file; a run is a folder under {RUNS}/"
            )
        raise ModelError(f"{path}: holds no export; type: fada export {path}")
    return max(models, key=lambda p: p.stat().st_mtime) if models else path


def final_weights(path: Path) -> Path:
    """Return the weights of a run's last finished stage; a stage's folder or a weights file name their own.

    Raise `ModelError` when there are none.
    """
    if path.is_file():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if finished := _finished(path):
        return finished[-1]
    what = "holds no finished stage" if path.is_dir() else "no such run"
    raise ModelError(f"{path}: {what}; a run is what `fada train` makes under {RUNS}/")


def new_run(src: str, tgt: str, backbone: str, out: Path | None) -> Path:
    """Create and return a run's folder: `out`, or the next `runs/<src>-<tgt>-<backbone>-NNN`.

    Raise `UsageError` when `out` is not empty.
    """
    if out is None:
        return numbered_dir(RUNS, f"{Path(src).stem}-{Path(tgt).stem}-{backbone}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"--out {out} is not empty; go on with it by --resume {out}, or name another"
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def checkpoint_path(stage: Path, iteration: int) -> Path:
    """Return where the weights kept on the way of a stage lie."""
    return stage / CHECKPOINTS / f"{iteration:06d}.safetensors"


def all_weights(run: Path) -> list[Path]:
    """Return every weights file of a run, or of a stage, in the order of training, a stage's last one last."""
    found = []
    for stage in (run, *(run / name for name in STAGES)):
        found += sorted((stage / CHECKPOINTS).glob("[!.]*.safetensors"))
        found += [w for w in (stage / WEIGHTS,) if w.is_file()]
    if not found:
        raise ModelError(f"{run}: holds no weights; a run is what `fada train` makes under {RUNS}/")
    return found
