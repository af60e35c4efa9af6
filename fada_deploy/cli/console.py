"""Console output: results on stdout, messages and progress bars on stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import Any

import click

from fada_deploy.cli.typed_paths import with_typed_paths
from fada_deploy.common.progress import Progress, set_progress_factory


def log(text: str) -> None:
    """Print a message to stderr; stdout is reserved for the result of the command."""
    # Only loaded if there are bars, which are redrawn below the message. A signal handler may call
    # this in the middle of the import.
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with tqdm.external_write_mode(file=sys.stderr) if tqdm else nullcontext():
        click.echo(text, err=True)


def warn_about_unused(reasons: Mapping[str, str], named: Collection[str]) -> None:
    """Print a warning for each option without effect that the user has named.

    Args:
        reasons: Parameter → why its option has no effect.
        named: The parameters whose options were named.
    """
    for name, reason in reasons.items():
        if name in named:
            log(f"warning: --{name.replace('_', '-')} has no effect: {reason}")


def shown_files(lines: Sequence[str], count: int = 3) -> list[str]:
    """Return the first lines about bad files, and a line with the number of the others."""
    others = len(lines) - count
    return [*lines[:count], f"{others} more files"] if others > 1 else list(lines)


def emit_json(document: Any) -> None:
    """Print a JSON document to stdout, for `--json`; NaN and infinite numbers become null."""
    click.echo(json.dumps(_finite(document), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


@contextmanager
def library_output_hidden() -> Iterator[None]:
    """Discard what libraries print to stdout, which is reserved for the result of the command.

    Ray prints there when a worker is lost, from a thread of its own. This package logs it as well.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


class _StderrHandler(logging.Handler):
    """Print log records of the library; warnings and errors start with their level."""

    def emit(self, record: logging.LogRecord) -> None:
        text = with_typed_paths(record.getMessage())
        log(f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text)


def _open_bar(
    *, total: int | None, description: str, unit: str, initial: int
) -> AbstractContextManager[Progress]:
    from tqdm import tqdm

    # disable=None: no bar when stderr is not a terminal.
    bar: AbstractContextManager[Progress] = tqdm(
        total=total, desc=description, unit=unit, initial=initial, disable=None, file=sys.stderr,
        dynamic_ncols=True,
    )  # fmt: skip
    return bar


def install() -> None:
    """Show log records of the library and its progress on stderr."""
    logger = logging.getLogger("fada_deploy")
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())
        logger.setLevel(logging.INFO)
    set_progress_factory(_open_bar)
