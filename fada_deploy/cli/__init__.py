"""The `fada` command line: one module per command, imported only when that command runs.

Exit codes of every command: 0 done, 1 failed or partly failed, 2 usage, 3 a tolerance was exceeded,
70 unexpected error, 130 interrupted. An error is printed as one line on stderr.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from fada_deploy.cli.options import CommandGroup
from fada_deploy.cli.typed_paths import remember_arguments, with_typed_paths
from fada_deploy.common.files import NO_SPACE
from fada_deploy.common.signals import stop_handler, stop_signals

# Command → (module, its line in `fada --help`); the help must not import the modules.
COMMANDS = {
    "demo": ("demo", "Adapt the built-in model to a sample video: adapt, export, infer."),
    "data": ("data", "Check a data set, or render one."),
    "train": ("train", "Adapt a network from labeled source data to unlabeled target data."),
    "adapt": ("adapt", "Adapt a trained network to a new target."),
    "compare": ("compare", "Train several methods with the same budget and compare them."),
    "eval": ("eval", "Compute the IoU of a model or a run on labeled frames."),
    "ccd": ("ccd", "Measure how close features are to the centers of their classes."),
    "import": ("import_", "Convert a checkpoint of the released FADA code into a run."),
    "report": ("report", "Write a report about a run, or compare runs."),
    "export": ("export", "Export a run to verified ONNX files and TensorRT engines."),
    "verify": ("verify", "Verify an exported model on this machine."),
    "inspect": ("inspect", "Show the metadata of a model, an engine or a run."),
    "bench": ("bench", "Measure the speed of models on this machine."),
    "doctor": ("doctor", "Check what works on this machine, and how to install the rest."),
    "infer": ("infer", "Segment videos, images and streams; save overlays and masks."),
    "version": ("version", "Print the versions of fada and of the packages it uses."),
    "help": ("help_", "Show the help of a command."),
}


class _LazyGroup(CommandGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"fada_deploy.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click.Group would import every command to see whether it is hidden.
        commands = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from fada_deploy.cli.version import version_text

        click.echo(version_text())
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog='Shell completion: add `eval "$(_FADA_COMPLETE=bash_source fada)"` to ~/.bashrc (for '
    "zsh: zsh_source and ~/.zshrc).",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of fada and of the packages it uses, and exit.",
)
def cli() -> None:
    """Adapt a driving-scene segmentation network to your own video, export it, and run it.

    \b
    fada adapt builtin --tgt drive.mp4
    fada export
    fada infer drive.mp4

    Each command uses the newest output of the previous one and prints its path. Exit codes: 0 done,
    1 failed or partly failed, 2 usage, 3 a tolerance was exceeded, 70 unexpected error,
    130 interrupted.
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line; print every expected error as one line and exit with its code."""
    from fada_deploy.cli import console
    from fada_deploy.common.errors import FadaError

    console.install()
    if threading.current_thread() is threading.main_thread():
        # SIGTERM, and SIGHUP of a terminal that is closed, act as Ctrl-C does: commands save their
        # state and remove temporary files.
        for number in stop_signals():
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop_handler(signal.default_int_handler))
    remember_arguments(sys.argv[1:] if args is None else args)
    try:
        status = cli.main(args, prog_name="fada", standalone_mode=False)
        # Errors of the last bytes are raised here, and not when the interpreter exits.
        _flush_output()
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        # click raises Abort for both.
        if isinstance(error.__cause__, EOFError):
            _exit_unexpected(error.__cause__)
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        _show_click_error(error)
        sys.exit(error.exit_code)
    except FadaError as error:
        click.echo(f"error: {with_typed_paths(str(error))}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output has exited, as in `fada … | head`.
        _discard_output()
        sys.exit(1)
    except OSError as error:
        # For example a full disk, or a folder without write permission.
        name = f"{error.filename}: " if error.filename is not None else ""
        remedy = "; free some space, or choose another disk" if error.errno in NO_SPACE else ""
        click.echo(f"error: {name}{error.strerror or error}{remedy}", err=True)
        _discard_output()
        sys.exit(1)
    except Exception as error:
        _exit_unexpected(error)
    sys.exit(status if isinstance(status, int) else 0)


def _flush_output() -> None:
    # There is no stdout if the process was started without one.
    if sys.stdout is not None:
        sys.stdout.flush()


def _discard_output() -> None:
    """Write what stdout still holds, or discard it, so that it does not fail again at the exit."""
    try:
        _flush_output()
        return
    except OSError:
        pass
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_unexpected(error: BaseException) -> NoReturn:
    """Print one line about an exception that no command expects, and exit."""
    from fada_deploy.cli.unexpected import report

    line, code = report(error)
    click.echo(f"error: {line}", err=True)
    sys.exit(code)


# How click reports "--seed -1" and its ranges, such as "x>=0" and "0<x<=1".
_OUT_OF_RANGE = re.compile(
    r"Invalid value for (?P<names>'.*'): (?P<value>\S+) is not in the range (?P<range>\S+)"
)
_LIMITS = {">=": "at least", ">": "greater than", "<=": "at most", "<": "less than"}


def _limits(range_: str) -> list[tuple[str, str]]:
    """Return (sign, limit) of the limits in a range of click, the lower one first."""
    match = re.fullmatch(r"(?:([^<x]+)(<=?))?x(?:([<>]=?)(.+))?", range_)
    assert match is not None
    low, low_sign, sign, limit = match.groups()
    limits = [(low_sign.replace("<", ">"), low)] if low else []
    return [*limits, (sign, limit)] if limit else limits


def _show_click_error(error: click.ClickException) -> None:
    """Print an error of click as one line; a command group without arguments prints its help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, click.NoSuchOption):
        message = f"no option {error.option_name!r}"
        if error.possibilities:
            message += f"; did you mean {sorted(error.possibilities)[0]!r}?"
    if outside := _OUT_OF_RANGE.fullmatch(message):
        limits = [f"{_LIMITS[sign]} {limit}" for sign, limit in _limits(outside["range"])]
        name = outside["names"].split("'")[-2]
        message = f"{name} must be {' and '.join(limits)}, got {outside['value']}"
    message = message[:1].lower() + message[1:]
    if isinstance(error, click.UsageError) and error.ctx is not None and "; " not in message:
        message += f"; see `{error.ctx.command_path} --help`"
    click.echo(f"error: {message}", err=True)
