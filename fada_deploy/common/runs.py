"""The layout of runs, `runs/<src>-<tgt>-<backbone>-NNN/<stage>/`, and which run is the newest.

A run is a folder with a `config.json`. A finished stage contains `weights.safetensors`, and weights
saved during the stage are `checkpoints/<iteration>.safetensors`. Exports are in `<run>/export/`.
Commands without arguments use these names to continue from the previous command.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.files import numbered_dir
from fada_deploy.common.selection import (
    SELECTION,
    SelectionDocument,
    describe_choice,
    read_selection,
)

logger = logging.getLogger(__name__)

RUNS = Path("runs")
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
# In the folder of a stage: its metrics, and its scores on the target's validation frames.
METRICS, SCORES = "metrics.jsonl", "scores.json"
# What identifies the data of a run.
FINGERPRINTS = "data.json"
CHECKPOINTS = "checkpoints"
EXPORTS = "export"
# The name of reference outputs begins with that of their ONNX file, without its suffix.
REFERENCE_SUFFIX = ".reference.npz"
# Frames of the target's videos.
TARGET_FRAMES = "target_frames"
# The document of `fada compare`, in the folder of its runs.
COMPARISON = "comparison.json"
# In the output folder of `fada infer`: the inputs that are finished.
FINISHED = "finished.json"
# In that of a job on a cluster: its inputs, finished parts and outputs.
MANIFEST = "manifest.jsonl"
STAGES = ("source", "adversarial", "selftrain", "distill")
# The stages of the paper and of its released code.
PAPER_STAGES = ("source", "adversarial", "distill")
# The name of the model that is part of the package, and its file.
BUILTIN = Path("builtin")
BUILTIN_FILE = Path(__file__).parents[1] / "models" / "driving-11.onnx"
MODEL_SUFFIXES = frozenset({".onnx", ".engine", ".plan"})
# In the names of converted files, for example model.fp16.onnx and model.int8-cpu.onnx.
_CONVERTED = re.compile(r"\.(fp16|bf16|int8)[-.]")


def newest_run(root: Path = RUNS) -> Path:
    """Return the run whose last finished stage is the newest, and log its path.

    Newer runs without a finished stage are logged as skipped. Raise `ModelError` if there is none.
    """
    runs = [config.parent for config in root.glob(f"*/{CONFIG}")]
    skipped: list[str] = []
    for run in sorted(runs, key=_last_change, reverse=True):
        if _finished(run):
            for line in skipped:
                logger.info("skipped %s", line)
            logger.info("using run %s (the newest)", run)
            return run
        skipped.append(
            f"{run}: no stage is finished; continue it with "
            f"`fada train --resume {shlex.quote(str(run))}`"
        )
    problem = "; ".join(skipped) or f"no run in {root}/"
    raise ModelError(f"{problem}; train one with `fada train`, or name another run")


def contains_results(folder: Path) -> bool:
    """Return whether a folder is a run, or an output folder of `fada infer` or `fada compare`.

    An output folder of `fada infer` on live sources can be recognized by its name only.
    """
    if any((folder / name).is_file() for name in (FINISHED, MANIFEST, COMPARISON)):
        return True
    if folder.parent.name == RUNS.name and folder.name.startswith("infer-"):
        return True
    is_run = any((folder / name).is_dir() for name in (*STAGES, TARGET_FRAMES))
    return is_run and (folder / CONFIG).is_file()


def _finished(run: Path) -> list[Path]:
    return [w for s in STAGES if (w := run / s / WEIGHTS).is_file()]


def _last_change(run: Path) -> float:
    return max(p.stat().st_mtime for p in (run / CONFIG, *_finished(run)))


def newest_models(root: Path = RUNS) -> list[Path]:
    """Return the exported models under `root`, the run with the newest export first.

    Within a run, fp32 files come before those of other precisions, and newer files before older.
    """
    folders = [models for folder in root.glob("*/export") if (models := _exports(folder))]
    folders.sort(key=lambda models: max(p.stat().st_mtime for p in models), reverse=True)
    return [path for models in folders for path in models]


def _exports(folder: Path) -> list[Path]:
    """Return the exported models of a folder: fp32 files first, then by time, newest first."""
    models = [p for p in folder.glob("[!.]*") if p.suffix in MODEL_SUFFIXES]
    return sorted(models, key=lambda p: (bool(_CONVERTED.search(p.name)), -p.stat().st_mtime))


def resolve_builtin(path: Path) -> Path:
    """Return the file of the built-in model for the name `builtin`, and otherwise `path`.

    A file or folder of that name has priority.
    """
    return BUILTIN_FILE if path == BUILTIN and not path.exists() else path


def exported_model(path: Path) -> Path:
    """Return the newest export of a run if `path` is a run's folder, and otherwise `path`.

    The name `builtin` stands for the built-in model, unless there is such a file or folder. ONNX
    files are preferred to engines, which may have been built on another machine, and fp32 files to
    those of other precisions. Raise `ModelError` if the folder contains no export.
    """
    if (path := resolve_builtin(path)) == BUILTIN_FILE:
        return path
    exports = _exports(path / EXPORTS)
    models = [p for p in exports if p.suffix == ".onnx"] or exports
    if path.is_dir() and not models:
        if (path / WEIGHTS).is_file():
            raise ModelError(
                f"{path} is a stage of a run; export it first: fada export {shlex.quote(str(path))}"
            )
        if not (path / CONFIG).is_file():
            raise ModelError(
                f"{path}: neither a run nor an exported model; runs are folders in {RUNS}/"
            )
        raise ModelError(f"{path} contains no export; run: fada export {shlex.quote(str(path))}")
    return models[0] if models else path


def final_weights(path: Path) -> Path:
    """Return the weights of a run that its `selection.json` names, and log which.

    Without that file, or if it does not describe every finished stage, return the weights of the
    last finished stage, and warn if stages are missing. `path` may also be the folder of a stage, a
    weights file, or the name `builtin`. Raise `ModelError` if there are no weights.
    """
    path = resolve_builtin(path)
    if path.is_file():
        return path
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    selection, problem = _selection(path)
    if selection is not None:
        logger.info("%s: %s", path, describe_choice(selection))
        return path / selection.chosen_candidate.weights
    if problem:
        logger.warning("%s", problem)
    if finished := _finished(path):
        if unfinished_stages(path):
            logger.warning(
                "the run is not finished; using its stage %s; continue it with "
                "`fada train --resume %s`",
                finished[-1].parent.name,
                shlex.quote(str(path)),
            )
        return finished[-1]
    if unfinished_stages(path):
        raise ModelError(
            f"{path}: contains no finished stage; continue it with `fada train --resume "
            f"{shlex.quote(str(path))}`"
        )
    problem = "contains no finished stage" if path.is_dir() else "no such run"
    raise ModelError(f"{path}: {problem}; `fada train` creates runs in {RUNS}/")


def unfinished_stages(run: Path) -> list[str]:
    """Return the stages in a run's settings that are not finished; empty if they are unknown."""
    try:
        stages = json.loads((run / CONFIG).read_text("utf-8"))["stages"]
        return [str(stage) for stage in stages if not (run / str(stage) / WEIGHTS).is_file()]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _selection(run: Path) -> tuple[SelectionDocument | None, str]:
    """Return the `selection.json` of a run if it can be used, and otherwise why it cannot.

    It must describe every finished stage. The reason is empty if there is no such file.
    """
    try:
        selection = read_selection(run)
    except ModelError as error:
        return None, str(error)
    if selection is None:
        return None, ""
    finished = [weights.relative_to(run).as_posix() for weights in _finished(run)]
    described = {each.weights for each in selection.candidates}
    weights = run / selection.chosen_candidate.weights
    if described.issuperset(finished) and weights.is_file():
        return selection, ""
    return None, (
        f"{run / SELECTION} does not describe the finished stages of the run, so the last one is "
        f"used; `fada train --resume {shlex.quote(str(run))}` writes it again"
    )


def newer_stage(model: Path, provenance: Mapping[str, Any]) -> str | None:
    """Return the stage of the run of an export that replaces the stage of the export.

    This is the chosen stage (or checkpoint) of `selection.json` if it is another one, and without
    that file the last finished stage if it is a later one. `provenance` is that of the export's
    metadata. Return None for an up-to-date export, and for a model outside `<run>/export/`.
    """
    stage, model = provenance.get("stage"), model.absolute()
    if model.parent.name != "export" or stage not in STAGES:
        return None
    run = model.parent.parent
    selection, _ = _selection(run)
    if selection is not None:
        chosen = selection.chosen_candidate
        iteration = provenance.get("iteration")
        is_same = iteration is None or iteration == chosen.iteration
        return None if is_same and stage == chosen.stage else chosen.name
    finished = _finished(run)
    last = finished[-1].parent.name if finished else stage
    return last if STAGES.index(last) > STAGES.index(stage) else None


def warn_if_outdated(model: Path, provenance: Mapping[str, Any]) -> None:
    """Warn if an export is not of the stage that `fada export` now takes from its run."""
    if (last := newer_stage(model, provenance)) is not None:
        logger.warning(
            "%s is an export of the stage %s; the run now has %s; run `fada export %s`",
            model,
            provenance["stage"],
            last,
            shlex.quote(str((model if model.parent.name else model.absolute()).parent.parent)),
        )


def not_a_run(path: Path) -> str:
    """Return the message about a path that is not the folder of a run, with a remedy."""
    if not path.exists():
        return f"{path}: no such folder; `fada train` creates runs in {RUNS}/"
    if (path.parent / CONFIG).is_file() and path.name in STAGES:
        return f"{path} is a stage; use {path.parent}"
    return f"{path} is not a run, there is no {CONFIG}; use a folder created by `fada train`"


def new_run(src: str, tgt: str, backbone: str, out: Path | None) -> Path:
    """Create and return the folder of a new run: `out`, or the next `<src>-<tgt>-<backbone>-NNN`.

    Raise `UsageError` if `out` is a file or not empty.
    """
    if out is None:
        return numbered_dir(RUNS, f"{Path(src).stem}-{Path(tgt).stem}-{backbone}")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder for the run")
    if (out / CONFIG).is_file():
        raise UsageError(
            f"{out} contains a run; name another folder, or continue that run with "
            f"`fada train --resume {shlex.quote(str(out))}`"
        )
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and not a run; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def checkpoint_path(stage: Path, iteration: int) -> Path:
    """Return the path of the weights saved at an iteration of a stage."""
    return stage / CHECKPOINTS / f"{iteration:06d}.safetensors"


def all_weights(run: Path) -> list[Path]:
    """Return all weights files of a run or a stage in training order.

    The final weights of a stage follow its checkpoints. Raise `ModelError` if there are none, and
    `UsageError` for a file.
    """
    if run.is_file():
        raise UsageError(f"{run} is a file; --all needs a run or a stage")
    if not run.exists():
        raise ModelError(not_a_run(run))
    weights = []
    for stage in (run, *(run / name for name in STAGES)):
        weights += sorted((stage / CHECKPOINTS).glob("[!.]*.safetensors"))
        weights += [w for w in (stage / WEIGHTS,) if w.is_file()]
    if not weights:
        raise ModelError(f"{run} contains no weights; `fada train` creates runs in {RUNS}/")
    return weights
