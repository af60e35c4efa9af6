"""`fada train`: source → fine-grained adversarial → self-distillation."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from fada_deploy.cli.console import emit_json, log
from fada_deploy.cli.options import SIZE


@click.command("train")
@click.option(
    "--src", help="Labeled source: gta5, synthia, cityscapes, or the path of a .toml file."
)
@click.option(
    "--tgt", help="Unlabeled target: a data set, a .toml file, a video, or a folder of either."
)
@click.option(
    "--src-root",
    type=click.Path(),
    help="Where the source lies [$FADA_DATASETS/NAME or datasets/NAME].",
)
@click.option("--tgt-root", type=click.Path(), help="Where the target lies.")
@click.option(
    "--ego-mask", type=click.Path(), help="Picture, not black where recordings show the car itself."
)
@click.option("--label-space", help="cityscapes-19, -16, -13, or a .toml file [cityscapes-19].")
@click.option("--backbone", help="A network by name; an unknown one lists them [resnet101].")
@click.option("--preset", help="paper (the published numbers) or small (two CPU cores) [paper].")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="Settings from a TOML file."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="One setting, e.g. adversarial.lr=1e-4.",
)
@click.option("--method", help="source, feature, fada-hard, fada, adaptsegnet or advent [fada].")
@click.option("--stages", help="Comma-separated: source,adversarial,distill.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    help="Images a step; of each domain in the adversarial stage.",
)
@click.option(
    "--size", type=SIZE, help="The network's input; also what source frames are resized to."
)
@click.option("--seed", type=int)
@click.option(
    "--amp",
    help="bf16, off, or auto: bfloat16 where the device multiplies it [off; auto when small].",
)
@click.option(
    "--accumulate", type=click.IntRange(1), help="Take a batch in so many parts, for less memory."
)
@click.option("--compile", is_flag=True, default=None, help="Have torch compile the networks.")
@click.option(
    "--tensorboard", is_flag=True, help="Write scalars and pictures to RUN/tensorboard as well."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--init", help="File of ImageNet weights, imagenet (an installed package's), or none [none]."
)
@click.option(
    "--init-norm", help="Input normalization of --init: torchvision or caffe [told by the file]."
)
@click.option("--start", help="Run or weights that stand in for the stages that are left out.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder [runs/SRC-TGT-BACKBONE-NNN]."
)
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run, exactly.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(
    config_file: Path | None,
    settings: tuple[str, ...],
    device: str,
    out: Path | None,
    resume: Path | None,
    tensorboard: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Adapt a segmenter from labeled source to unlabeled target data.

    \b
    fada train --src gta5 --tgt cityscapes
    fada train --src gta5 --tgt drives/ --preset small
    fada train --resume runs/gta5-cityscapes-resnet101-001
    torchrun --nproc-per-node 4 -m fada_deploy train --src gta5 --tgt cityscapes
    """
    from fada_deploy.common.errors import DeviceError, MissingExtraError, UsageError
    from fada_deploy.common.runs import new_run

    try:
        import torch

        from fada_deploy.training import distributed
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.run import load_config, train
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    where = choose_device(distributed.local_device(device))
    distributed.join(where)
    main_process = distributed.is_main()
    if resume is not None:
        options |= {"config": config_file, "set": settings, "out": out}
        given = [
            name.replace("_", "-") for name, value in options.items() if value not in (None, ())
        ]
        if given:
            raise UsageError(
                f"--resume goes on with a run as it was; leave out --{', --'.join(given)}"
            )
        config, run = load_config(resume), resume
    else:
        config = _config(config_file, settings, options)
        # One process makes the folder, all use it.
        made = (
            new_run(config.src, config.tgt, config.backbone, out) if distributed.is_main() else None
        )
        run = distributed.gather(made)[0]
    say = log if distributed.is_main() else lambda line: None
    try:
        outcome = train(config, run, device=where, say=say, tensorboard=tensorboard)
    except torch.OutOfMemoryError:
        raise DeviceError(
            f"{where} has too little memory for this run; begin again with a smaller --batch or --size"
        ) from None
    finally:
        distributed.leave()
    if not main_process:
        return 0
    _write_report(outcome, where)
    return _report(outcome, as_json=as_json)


def _config(config_file: Path | None, settings: tuple[str, ...], options: dict[str, Any]) -> Any:
    from fada_deploy.training.config import STAGES
    from fada_deploy.training.settings import make_config

    batch, size, accumulate = (options.pop(name) for name in ("batch", "size", "accumulate"))
    if options["stages"] is not None:
        options["stages"] = tuple(s.strip() for s in options["stages"].split(","))
    if batch is not None:
        options |= {f"{stage}.batch": batch for stage in STAGES}
    if accumulate is not None:
        options |= {f"{stage}.accumulate": accumulate for stage in STAGES}
    if size is not None:
        options |= {"size": size, "src_size": size, "distill.size": size, "distill.crop": size}
    preset = options.pop("preset")
    return make_config(preset=preset, file=config_file, settings=settings, options=options)


def _write_report(outcome: Any, device: Any) -> None:
    from importlib.util import find_spec

    from fada_deploy.training.reporting.report import REPORT, write_report

    if find_spec("matplotlib") is None:
        log("for a page about the run: pip install 'fada_deploy[plot]', then fada report")
        return
    path = outcome.run / REPORT
    write_report([outcome.run], path, frames=outcome.frames, device=device)
    log(f"report: {path}")


def _report(outcome: Any, *, as_json: bool) -> int:
    if as_json:
        emit_json(
            {
                "run": str(outcome.run),
                "scores": outcome.scores,
                "bad_files": list(outcome.bad_files),
            }
        )
    for line in outcome.bad_files:
        log(f"left out: {line}")
    log(f"done: {outcome.run}")
    log(f"next: fada export {shlex.quote(str(outcome.run))}")
    return 1 if outcome.bad_files else 0
