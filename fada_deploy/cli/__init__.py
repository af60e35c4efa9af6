"""The `fada` command: one module a command, imported only when that command runs.

Every command exits with 0 done, 1 failed or partly failed, 2 usage, 3 a gate refused,
130 interrupted, and prints an error as one line.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from typing import Any

import click

from fada_deploy import __version__

# name: (module, one line for `fada --help`); the help must not cost an import.
COMMANDS = {
    "demo": ("demo", "Render streets, adapt, export and infer: the whole road in minutes."),
    "data": ("data", "Check and render data sets."),
    "train": ("train", "Adapt a segmenter from labeled source to unlabeled target data."),
    "eval": ("eval", "Score a model or a run on labeled frames."),
    "ccd": ("ccd", "Measure how tightly features gather around their classes' centers."),
    "import": ("import_", "Make a run of a checkpoint of the released FADA code."),
    "report": ("report", "Write a page about a run, or runs side by side."),
    "export": ("export", "Turn a run into proven ONNX files and engines."),
    "verify": ("verify", "Hold an exported file against its reference outputs, here and now."),
    "inspect": ("inspect", "Say what a model, reference outputs or run says of itself."),
    "bench": ("bench", "Measure how fast models run here."),
    "doctor": ("doctor", "Try what this machine has, and say what to type for the rest."),
    "infer": ("infer", "Label videos, images and folders; write overlays and masks."),
}


class _LazyGroup(click.Group):
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


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fada")
def cli() -> None:
    """Adapt a driving-scene segmenter to your streets, export it, run it.

    \b
    fada train --src gta5 --tgt cityscapes
    fada export
    fada infer video.mp4

    Each command takes what the one before it made. Exit codes: 0 done, 1 failed or partly failed,
    2 usage, 3 a quality gate refused, 130 interrupted.
    """


def main(args: list[str] | None = None) -> Any:
    """Run the command line; map every expected error to one line and its exit code."""
    from fada_deploy.cli import console
    from fada_deploy.common.errors import FadaError

    console.install()
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    ):
        # As Ctrl-C: half-made files go, and what a command can finish it finishes.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = cli.main(args, prog_name="fada", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FadaError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left (`fada … | head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # A full disk, a folder that may not be written: the system's own line says it best.
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
