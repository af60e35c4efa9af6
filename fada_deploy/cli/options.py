"""Option types and the command group shared by the commands."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fada_deploy.cli.console import log, warn_about_unused
from fada_deploy.common.errors import UsageError
from fada_deploy.common.runs import resolve_builtin
from fada_deploy.common.sizes import parse_size

if TYPE_CHECKING:
    from fada_deploy.cluster.connection import ClusterOptions

    _SizeBase = click.ParamType[tuple[int, int]]
else:
    _SizeBase = click.ParamType


class SizeType(_SizeBase):
    """An image size: WIDTHxHEIGHT on the command line, (height, width) in the code."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_size(value)
        except ValueError:
            self.fail(f"size must be WIDTHxHEIGHT, for example 1024x512, got {value!r}", param, ctx)


SIZE = SizeType()


class FiniteFloat(click.FloatRange):
    """A number in a range. Python's float, and with it click, also accepts "nan" and "inf"."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"expected a finite number, got {value}", param, ctx)
        return number


# Options that have the same meaning in every command.
JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
)
DEVICE_OPTION = click.option(
    "--device",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Device: auto, cpu, cuda or cuda:N.",
)


_RAY_ADDRESS = re.compile(r"(ray://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):\d+")


def _ray_address(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    """Return the address of --ray; refuse what follows the option by mistake, such as a source."""
    if value is None or value in ("local", "auto") or _RAY_ADDRESS.fullmatch(value):
        return value
    raise UsageError(
        f"--ray {value}: not the address of a Ray cluster, which is HOST:PORT, ray://HOST:PORT or "
        "auto; to start a cluster on this machine, put --ray at the end of the command"
    )


_RAY_OPTIONS = (
    click.option(
        "--ray",
        metavar="[ADDRESS]",
        is_flag=False,
        flag_value="local",
        is_eager=True,
        callback=_ray_address,
        help="Run on a Ray cluster: HOST:PORT, ray://HOST:PORT, auto (the cluster of this "
        "machine), or without an address a new one on this machine.",
    ),
    click.option(
        "--ray-workers",
        type=click.IntRange(1),
        metavar="N",
        help="With --ray: number of workers. [default: as many as the cluster has room for]",
    ),
    click.option(
        "--ray-cpus",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        help="With --ray: CPU cores of each worker.",
    ),
    click.option(
        "--ray-gpus",
        type=FiniteFloat(0),
        metavar="N",
        default=0.0,
        show_default=True,
        help="With --ray: GPUs of each worker; 0.5 lets two workers share one.",
    ),
)


_CACHE_OPTIONS = (
    click.option(
        "--cache",
        type=FiniteFloat(0),
        default=0.0,
        metavar="GIB",
        help="Keep up to GIB GiB of decoded frames in the memory of each process. Use it if "
        "training waits for frames; the report shows how long it waited.",
    ),
    click.option(
        "--cache-folder",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="Keep the frames of --cache in this folder instead, for all processes and later runs. "
        "Choose a fast disk.",
    ),
)


def named_options() -> frozenset[str]:
    """Return the parameters of the options that the user wrote on the command line."""
    context = click.get_current_context()
    return frozenset(
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    )


def ray_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that let a command run on a Ray cluster."""
    return _add_options(command, _RAY_OPTIONS)


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that keep decoded frames."""
    return _add_options(command, _CACHE_OPTIONS)


def _add_options(
    command: Callable[..., Any], options: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def cluster_options(values: Mapping[str, Any]) -> ClusterOptions | None:
    """Return the cluster that the options of `ray_options` name, None without --ray."""
    if (address := values["ray"]) is None:
        unused = dict.fromkeys(("ray_workers", "ray_cpus", "ray_gpus"), "it needs --ray")
        warn_about_unused(unused, named_options())
        return None
    from fada_deploy.cluster.connection import ClusterOptions

    return ClusterOptions(
        address=address,
        workers=values["ray_workers"],
        cpus=values["ray_cpus"],
        gpus=values["ray_gpus"],
    )


DATA_ROOT_OPTION = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    help="Folder of the data set. [default: $FADA_DATASETS/NAME, or datasets/NAME if the variable "
    "is not set]",
)
MIN_EQUAL_LABELS_OPTION = click.option(
    "--min-equal-labels",
    type=FiniteFloat(0, 100),
    metavar="PERCENT",
    help="Minimum percentage of pixels with the same label as the network. [default: 99.99 for "
    "fp32, 99.7 for fp16, 98 for bf16, 93 for int8]",
)
MAX_LOGIT_ERROR_OPTION = click.option(
    "--max-logit-error",
    type=FiniteFloat(0),
    metavar="FRACTION",
    help="Largest allowed logit error, relative to the largest logit. [default: 0.0001 for fp32, "
    "0.02 for fp16, 0.1 for bf16, 0.5 for int8]",
)
TGT_ROOT_OPTION = click.option(
    "--tgt-root",
    type=click.Path(),
    help="Folder of the target data set. [default: $FADA_DATASETS/NAME, or datasets/NAME if the "
    "variable is not set]",
)
EGO_MASK_OPTION = click.option(
    "--ego-mask",
    type=click.Path(),
    help="Mask image of the size of a frame. Pixels that are not black belong to the ego vehicle "
    "and are ignored. Only for a target of videos or images.",
)
RUN_OPTION = click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the run. [default: runs/SRC-TGT-BACKBONE-NNN]",
)
# For commands with a positional MODEL, so that `--model` works in every command.
MODEL_OPTION = click.option(
    "--model", "model_option", type=click.Path(path_type=Path), help="Same as MODEL."
)


def model_path(argument: Path | None, option: Path | None) -> Path | None:
    """Return the model named by the argument MODEL or by `--model`; raise if both name one.

    The name `builtin` becomes the path of the built-in model.
    """
    if argument is not None and option is not None:
        raise UsageError(f"two models were named, {argument} and {option}; name one")
    path = option if argument is None else argument
    return None if path is None else resolve_builtin(path)


class CommandGroup(click.Group):
    """A group of commands that suggests the closest command for an unknown name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            raise click.UsageError(unknown_command(name, self.list_commands(ctx)), ctx)
        found, command, rest = super().resolve_command(ctx, args)
        if command is not None and not ctx.resilient_parsing:
            _warn_about_repeated_options(click.Context(command, ctx, found), rest)
        return found, command, rest


def _warn_about_repeated_options(context: click.Context, args: Sequence[str]) -> None:
    """Print a warning if an option with one value is repeated, because the last one is taken."""
    try:
        _, _, given = context.command.make_parser(context).parse_args(list(args))
    except click.UsageError:
        return  # reported when the command parses its arguments
    for option, number in Counter(given).items():
        if not isinstance(option, click.Option) or option.multiple or option.is_flag:
            continue
        if number > 1:
            name = max(option.opts, key=len)
            log(f"warning: {name} is given {number} times, but takes one value; the last is used")


def unknown_command(name: str, commands: Sequence[str]) -> str:
    """Return the message for an unknown command, with the closest known one if there is one."""
    close = get_close_matches(name, commands, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(commands)}"
    return f"no command {name!r}; {hint}"
