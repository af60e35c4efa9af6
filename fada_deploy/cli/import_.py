"""`fada import`: convert a checkpoint of the released FADA code into a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import JSON_OPTION, SIZE, TGT_ROOT_OPTION
from fada_deploy.common.runs import PAPER_STAGES

if TYPE_CHECKING:
    from fada_deploy.training.config import RunConfig
    from fada_deploy.training.weights.released import ReleasedCheckpoint


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--src",
    metavar="NAME|TOML",
    help="Data set it was trained on. [default: gta5; synthia for a network of 16 classes]",
)
@click.option(
    "--tgt",
    metavar="NAME|TOML|PATH",
    default="cityscapes",
    show_default=True,
    help="Target it was adapted to; exports are verified on its frames.",
)
@TGT_ROOT_OPTION
@click.option(
    "--label-space",
    metavar="NAME|TOML",
    help="cityscapes-19, cityscapes-16, cityscapes-13, driving-11 or a .toml file. "
    "[default: by number of classes]",
)
@click.option(
    "--stage",
    type=click.Choice(PAPER_STAGES),
    help="Stage that produced it. [default: detected from the file]",
)
@click.option(
    "--size",
    type=SIZE,
    help="Input size of the network. [default: 1024x512; 2048x1024 for the stage distill]",
)
@click.option(
    "--init-norm",
    metavar="NAME",
    help="Input normalization: torchvision or caffe. [default: torchvision for ResNets, "
    "caffe for VGG-16]",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the new run. [default: runs/SRC-TGT-BACKBONE-NNN]",
)
@JSON_OPTION
def command(
    checkpoint: Path,
    stage: str | None,
    size: tuple[int, int] | None,
    init_norm: str | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert CHECKPOINT, a .pth file of the released FADA code, into a run.

    The run can then be evaluated, exported and used for inference like any other.

    \b
    fada import g2c_tgt_self_distill_r101_model_iter018000.pth
    fada eval --data cityscapes --mst
    """
    from fada_deploy.common.errors import MissingExtraError
    from fada_deploy.common.label_space import load_label_space

    try:
        from fada_deploy.training.weights.released import read_released
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    tgt, label_space = options["tgt"], options["label_space"]
    _check_paths(checkpoint, tgt)
    space = None if label_space is None else load_label_space(label_space)
    released = read_released(
        checkpoint, space=space, stage=stage, size_hw=size, init_norm=init_norm
    )
    run, document = _write_run(checkpoint, released, _make_config(released, options), out)
    log(_describe(released))
    if stage is None:
        log(
            f"the stage is assumed to be {released.stage}, because {released.reason}; "
            "use --stage to change it"
        )
    log(f"wrote run {run}")
    name = shlex.quote(str(run))
    log(f"next: fada eval {name} --data {shlex.quote(tgt)}")
    log(f"or:   fada export {name} (if {tgt} is not on this machine, add --calibration IMAGES)")
    if as_json:
        emit_json(document)


def _check_paths(checkpoint: Path, tgt: str) -> None:
    from fada_deploy.common.errors import ModelError
    from fada_deploy.data import DATASETS
    from fada_deploy.training.data.datasets import missing_target

    if not checkpoint.is_file():
        problem = "is a folder" if checkpoint.is_dir() else "no such file"
        raise ModelError(f"{checkpoint}: {problem}; use a .pth file of the released FADA code")
    if tgt not in DATASETS and not Path(tgt).exists():
        raise missing_target(tgt)


def _make_config(released: ReleasedCheckpoint, options: dict[str, Any]) -> RunConfig:
    """Return the settings of a run that would have produced this checkpoint."""
    from fada_deploy.training.settings import make_config

    spec = released.model.spec
    settings = {
        "src": options["src"] or ("synthia" if spec.space.num_classes == 16 else "gta5"),
        "tgt": options["tgt"],
        "tgt_root": options["tgt_root"],
        "label_space": options["label_space"] or spec.space.name,
        "backbone": spec.backbone,
        "stages": (released.stage,),
        "method": "source" if released.stage == "source" else "fada",
        "distill.size" if released.stage == "distill" else "size": spec.size_hw,
    }
    return make_config(recipe="paper", file=None, settings=[], options=settings)


def _write_run(
    checkpoint: Path, released: ReleasedCheckpoint, config: RunConfig, out: Path | None
) -> tuple[Path, dict[str, Any]]:
    """Write weights and settings of the run; return its folder and the JSON document."""
    from fada_deploy._version import __version__
    from fada_deploy.common.files import sha256
    from fada_deploy.common.runs import WEIGHTS, new_run
    from fada_deploy.training.run_files import save_config
    from fada_deploy.training.weights.checkpoints import save_weights

    spec, stage = released.model.spec, released.stage
    run = new_run(config.src, config.tgt, spec.backbone, out)
    imported = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
    provenance = {
        "version": __version__,
        "stage": stage,
        "iteration": released.iteration,
        "config": config.to_dict(),
        "imported": imported,
    }
    save_weights(run / stage / WEIGHTS, released.model.state_dict(), spec, provenance)
    save_config(config, run)
    document = {"run": str(run), "stage": stage, "model": spec.to_dict(), "imported": imported}
    return run, document


def _describe(released: ReleasedCheckpoint) -> str:
    """Return one line about the imported network."""
    spec = released.model.spec
    height, width = spec.size_hw
    norm = "trainable batch normalization" if spec.norm == "batch" else "frozen normalization"
    parts = [f"{spec.backbone} with {spec.space.num_classes} classes", f"input {width}x{height}"]
    if spec.backbone != "vgg16":
        parts.append(norm)
    parts.append(f"input normalization {released.init_norm}")
    return ", ".join(parts)
