"""`fada import`: a checkpoint of the released FADA code → a run that eval, export and infer take."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import SIZE

if TYPE_CHECKING:
    from fada_deploy.training.config import RunConfig
    from fada_deploy.training.weights.released import ReleasedCheckpoint


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--src", help="What it was trained on [gta5 for 19 classes, synthia for 16].")
@click.option(
    "--tgt", default="cityscapes", show_default=True, help="What it was adapted to: proves exports."
)
@click.option("--tgt-root", type=click.Path(), help="Where the target lies.")
@click.option(
    "--label-space",
    help="cityscapes-19, -16, -13, or a .toml file [told by the number of classes].",
)
@click.option("--stage", help="source, adversarial or distill [told by what the file holds].")
@click.option("--size", type=SIZE, help="The network's input [1024x512; 2048x1024 when distilled].")
@click.option(
    "--init-norm", help="torchvision or caffe [torchvision for ResNets, caffe for VGG-16]."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder [runs/SRC-TGT-BACKBONE-NNN]."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    checkpoint: Path,
    src: str | None,
    tgt: str,
    tgt_root: str | None,
    label_space: str | None,
    stage: str | None,
    size: tuple[int, int] | None,
    init_norm: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Make a run of CHECKPOINT, a .pth file in the layout of the released FADA code.

    \b
    fada import g2c_tgt_self_distill_r101_model_iter018000.pth
    fada eval --data cityscapes --mst
    """
    from fada_deploy.common.errors import MissingExtraError, UsageError
    from fada_deploy.common.files import sha256
    from fada_deploy.common.label_space import load_label_space
    from fada_deploy.common.runs import WEIGHTS, new_run
    from fada_deploy.data import DATASETS

    try:
        from fada_deploy import __version__
        from fada_deploy.training.run import save_config
        from fada_deploy.training.weights.checkpoints import save_weights
        from fada_deploy.training.weights.released import read_released
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    if not checkpoint.is_file():
        what = "is a folder" if checkpoint.is_dir() else "no such file"
        raise UsageError(f"{checkpoint}: {what}; give a .pth file of the released FADA code")
    if tgt not in DATASETS and not Path(tgt).exists():
        raise UsageError(f"no target {tgt!r}: it is a data set, a .toml file, a video or a folder")
    space = None if label_space is None else load_label_space(label_space)
    found = read_released(checkpoint, space=space, stage=stage, size_hw=size, init_norm=init_norm)
    spec = found.model.spec
    config = _settings(found, src=src, tgt=tgt, tgt_root=tgt_root, label_space=label_space)
    run = new_run(config.src, config.tgt, spec.backbone, out)
    origin = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
    about = {"version": __version__, "stage": found.stage, "iteration": found.iteration}
    provenance = {**about, "config": config.to_dict(), "imported": origin}
    save_weights(run / found.stage / WEIGHTS, found.model.state_dict(), spec, provenance)
    save_config(config, run)
    norm = "BatchNorm, eps 1e-5" if spec.norm == "batch" else "frozen, without eps"
    log(
        f"{spec.backbone}, {spec.space.num_classes} classes, input {spec.size_hw[1]}x{spec.size_hw[0]}"
        + ("" if spec.backbone == "vgg16" else f", normalization {norm}")
        + f", input as {found.init_norm} weights take it (--init-norm)"
    )
    if stage is None:
        log(f"taken for the {found.stage} stage, since {found.reason}; --stage says otherwise")
    log(f"done: {run}")
    name = shlex.quote(str(run))
    log(f"next: fada eval {name} --data {shlex.quote(tgt)}")
    log(f"or:   fada export {name}, with --frames PICTURES where {tgt} is not at hand")
    if as_json:
        emit_json(
            {"run": str(run), "stage": found.stage, "model": spec.to_dict(), "imported": origin}
        )


def _settings(
    found: ReleasedCheckpoint, *, src: str | None, tgt: str, tgt_root: str | None, label_space: str | None
) -> RunConfig:
    """Return the settings of a run that would have ended in this checkpoint."""
    from fada_deploy.training.settings import make_config

    spec = found.model.spec
    options = {
        "src": src or ("synthia" if spec.space.num_classes == 16 else "gta5"),
        "tgt": tgt,
        "tgt_root": tgt_root,
        "label_space": label_space or spec.space.name,
        "backbone": spec.backbone,
        "stages": (found.stage,),
        "method": "source" if found.stage == "source" else "fada",
        "distill.size" if found.stage == "distill" else "size": spec.size_hw,
    }
    return make_config(preset="paper", file=None, settings=[], options=options)
