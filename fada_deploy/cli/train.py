"""`fada train`: train on the labeled source, align with the target, self-distill."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fada_deploy.cli.console import library_output_hidden
from fada_deploy.cli.options import (
    DEVICE_OPTION,
    EGO_MASK_OPTION,
    JSON_OPTION,
    RUN_OPTION,
    SIZE,
    TGT_ROOT_OPTION,
    FiniteFloat,
    cache_options,
    cluster_options,
    ray_options,
)
from fada_deploy.cli.run_config import make_run_config
from fada_deploy.cli.training_output import print_result, resumable, write_run_report

if TYPE_CHECKING:
    from fada_deploy.training.config import RunConfig

# Repeated here so that `--help` does not import torch; a test compares them with the library.
_BACKBONES = (
    *("resnet101", "resnet50", "resnet18", "vgg16"),
    *("ddrnet23-slim", "pidnet-s", "efficientnet-lite0", "segformer-b0"),
)


@click.command("train")
@click.option(
    "--src",
    metavar="NAME|TOML",
    multiple=True,
    help="Labeled source: gta5, synthia, cityscapes, rendered, or the path of a .toml file; may be "
    "repeated. rendered needs no files: its scenes are rendered on first use. --recipe deploy adds "
    "it to a single --src.",
)
@click.option(
    "--src-weight",
    type=FiniteFloat(0, min_open=True),
    metavar="WEIGHT",
    multiple=True,
    help="Relative weight of each --src in a batch, in the same order. [default: equal weights]",
)
@click.option(
    "--no-rendered",
    is_flag=True,
    help="With --recipe deploy: do not add the source rendered to --src.",
)
@click.option(
    "--rendered-scenes",
    type=click.IntRange(1),
    metavar="N",
    help="Number of scenes of the source rendered. [default: 800]",
)
@click.option(
    "--tgt",
    metavar="NAME|TOML|PATH",
    help="Unlabeled target: cityscapes, crosscity-rio, -rome, -tokyo or -taipei, gta5, synthia, a "
    ".toml file, a video, or a folder of videos or images.",
)
@click.option(
    "--src-root",
    type=click.Path(),
    multiple=True,
    help="Folder of each --src that is a data set such as gta5, in the same order. [default: "
    "$FADA_DATASETS/NAME, or datasets/NAME if the variable is not set]",
)
@TGT_ROOT_OPTION
@EGO_MASK_OPTION
@click.option(
    "--label-space",
    metavar="NAME|TOML",
    help="Classes: cityscapes-19, cityscapes-16, cityscapes-13, driving-11, or a .toml file. "
    "[default: cityscapes-19]",
)
@click.option(
    "--allow-ignored",
    type=FiniteFloat(0, 1),
    metavar="FRACTION",
    help="Largest fraction of ignored pixels in the labels of a source; more is usually a wrong "
    "encoding. [default: 0.5]",
)
@click.option(
    "--backbone",
    metavar="NAME",
    help=f"Network: {', '.join(_BACKBONES)}. "
    "[default: resnet101; with --recipe deploy: efficientnet-lite0; with --recipe small: "
    "ddrnet23-slim]",
)
@click.option(
    "--recipe",
    metavar="NAME",
    help="deploy: for real footage, on two CPU cores or a GPU; needs no --src. paper: published "
    "settings, for a GPU. small: from random weights, to try things out. [default: deploy for a "
    "real-time --backbone, else paper]",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="TOML file with settings; other options override it.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting, for example adversarial.lr=1e-4; may be repeated. All keys are "
    "in docs/schemas/run-config.schema.json and in the config.json of a run.",
)
@click.option(
    "--method",
    metavar="NAME",
    help="Alignment method: fada, fada-hard (one-hot encodings), feature (binary domain classifier "
    "on features), adaptsegnet, advent (both also with -multi, for two levels), minent, clan, "
    "fcn-wild, siban, adaptpatch, cda, cycada, or source (no adaptation). [default: fada]",
)
@click.option(
    "--stages",
    metavar="STAGE,…",
    help="Stages to train, comma-separated: source, adversarial, selftrain (mean teacher on the "
    "target), distill. [default: source,adversarial,distill; with --recipe "
    "deploy: source,selftrain; with --method source: source]",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    metavar="N",
    help="Images per iteration; per domain in the stages adversarial and selftrain. [default: 8, "
    "adversarial 4, selftrain 2; with --recipe deploy: 6; with --recipe small: 4]",
)
@click.option(
    "--size",
    type=SIZE,
    help="Input size of all stages; source frames are resized to it. [default: 1024x512, distill "
    "2048x1024 with crops of 1024x512, source frames 1280x720; with --recipe deploy: 320x240; "
    "with --recipe small: 320x192]",
)
@click.option(
    "--augment",
    metavar="NAME",
    help="Augmentation in every stage: none, light, or strong (zoom, color, blur, noise, JPEG). "
    "[default: none; with --recipe deploy: strong]",
)
@click.option(
    "--style",
    metavar="NAME",
    help="Give source frames the style of target frames: none, statistics (half of the frames get "
    "mean and deviation of the colors), fourier (half get the amplitude of low frequencies) or "
    "cyclegan (a network that is trained first translates all frames). [default: none; with "
    "--method cycada: cyclegan]",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    metavar="N",
    help="Seed of weights, data order and augmentation. [default: 1]",
)
@click.option(
    "--amp",
    metavar="MODE",
    help="Mixed precision: off, bf16, or auto (bf16 if the device computes it in hardware). "
    "[default: off; with --recipe deploy or small: auto]",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    metavar="N",
    help="Number of gradient accumulation steps per batch; more steps need less memory. "
    "[default: 1]",
)
@click.option("--compile", is_flag=True, default=None, help="Use torch.compile.")
@click.option(
    "--cuda-graphs",
    is_flag=True,
    default=None,
    help="Use torch.compile, and launch all kernels of a network on a GPU with a single call, as "
    "CUDA graphs. Helps where the GPU waits for its host: small networks and small batches.",
)
@cache_options
@click.option(
    "--tensorboard", is_flag=True, help="Also write scalars and example images to RUN/tensorboard."
)
@DEVICE_OPTION
@click.option(
    "--init",
    metavar="FILE|NAME",
    help="Initial backbone weights: a file with ImageNet weights, imagenet (for efficientnet-lite0 "
    "from an installed Python package; for resnet101, resnet50, resnet18 and vgg16 torchvision's "
    "file, downloaded on first use), or none (random). [default: imagenet; with --recipe small: "
    "none]",
)
@click.option(
    "--init-norm",
    metavar="NAME",
    help="Input normalization of the --init weights: torchvision, caffe or "
    "efficientnet-lite. "
    "[default: detected from the file]",
)
@click.option(
    "--start",
    metavar="PATH",
    help="Run or weights file to initialize from; earlier stages are skipped. Needs --stages "
    "without source.",
)
@RUN_OPTION
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Continue an interrupted run exactly where it stopped. If data sets with a folder of "
    "their own (gta5, cityscapes, …) were moved, add --src-root and --tgt-root.",
)
@ray_options
@JSON_OPTION
def command(
    config_file: Path | None,
    settings: tuple[str, ...],
    device: str,
    out: Path | None,
    resume: Path | None,
    tensorboard: bool,
    cache: float,
    cache_folder: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Adapt a segmentation network from a labeled source to an unlabeled target.

    \b
    fada train --src gta5 --tgt cityscapes
    fada train --recipe deploy --tgt drive.mp4
    fada train --recipe deploy --src mine.toml --tgt drives/
    fada train --resume runs/gta5-cityscapes-resnet101-001
    torchrun --nproc-per-node 4 -m fada_deploy train --src gta5 --tgt cityscapes

    With --ray, a cluster predicts the whole target for the pseudo-labels of the stage distill and
    of self-training in rounds; everything else runs in this process.

    Ctrl-C saves the state and prints the command that resumes the run. Messages go to stderr;
    --json prints the result on stdout.
    """
    from fada_deploy.common.errors import MissingExtraError
    from fada_deploy.data.cache import open_cache

    try:
        from fada_deploy.training import distributed
        from fada_deploy.training.data_paths import with_roots
        from fada_deploy.training.device import choose_device
        from fada_deploy.training.run import train
        from fada_deploy.training.run_files import load_config
    except ImportError as error:
        raise MissingExtraError(str(error.name), "train") from None

    cluster = cluster_options(options)
    options = {name: value for name, value in options.items() if not name.startswith("ray")}
    torch_device = choose_device(distributed.local_device(device))
    distributed.initialize(torch_device)
    is_main_process = distributed.is_main_process()
    try:
        if resume is None:
            config = make_run_config(config_file, settings, options)
            frames = open_cache(cache, cache_folder)
            continued = out if out is not None and _is_continued(out, config) else None
            run = continued or _create_run(config, out)
        else:
            # The data may have been moved; the files must be the same.
            roots = options.pop("src_root"), options.pop("tgt_root")
            options |= {"config": config_file, "set": settings, "out": out}
            _refuse_settings(options)
            config, run = with_roots(load_config(resume), *roots), resume
            frames = open_cache(cache, cache_folder)
        hidden = library_output_hidden() if cluster else nullcontext()
        with resumable(run, torch_device), hidden:
            result = train(
                config, run,
                device=torch_device, tensorboard=tensorboard, cluster=cluster, cache=frames,
            )  # fmt: skip
    finally:
        distributed.shut_down()
    if not is_main_process:
        return 0
    write_run_report(result, torch_device)
    return print_result(result, as_json=as_json)


def _create_run(config: RunConfig, out: Path | None) -> Path:
    """Create the folder of the run in the main process and return it in every process."""
    from fada_deploy.common.runs import new_run
    from fada_deploy.training import distributed

    run = None
    if distributed.is_main_process():
        run = new_run(config.source_name, config.tgt, config.backbone, out)
    created: Path = distributed.all_gather(run)[0]
    return created


def _is_continued(out: Path, config: RunConfig) -> bool:
    """Return whether torchrun started this process again, to continue the run in `out`.

    torchrun repeats the whole command after a process has failed. The folder may also be that of
    another run, which the first attempt has refused.
    """
    from fada_deploy.common.runs import CONFIG
    from fada_deploy.training.run_files import load_config

    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") in ("", "0"):
        return False
    return (out / CONFIG).is_file() and load_config(out) == config


def _refuse_settings(options: dict[str, Any]) -> None:
    """Raise `UsageError` if there are options beside --resume that set something."""
    from fada_deploy.common.errors import UsageError

    # Not `v in (None, (), False)`, which contains 0.
    given = (n for n, v in options.items() if v is not None and v is not False and v != ())
    extra = [f"--{name.replace('_', '-')}" for name in given]
    if extra:
        raise UsageError(
            f"--resume continues a run with its own settings; leave out {', '.join(extra)}"
        )
