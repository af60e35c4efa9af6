"""Option types and output shared by the commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from fada_deploy.common.sizes import parse_size


class SizeType(click.ParamType[tuple[int, int]]):
    """WIDTHxHEIGHT on the command line, (height, width) in the code."""

    name = "WxH"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_size(value)
        except ValueError:
            self.fail(f"{value!r} is no size; write WIDTHxHEIGHT, for example 1024x512", param, ctx)


SIZE = SizeType()


def log(text: str) -> None:
    """Say something to the person: stderr, so that `--json` keeps stdout for one document."""
    click.echo(text, err=True)


def emit_json(document: Any) -> None:
    """Print the one JSON document of a `--json` call."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def need_extra(package: str, extra: str) -> None:
    """Raise `MissingExtraError` now, before any work, when a package that it will need is not installed."""
    from importlib.util import find_spec

    from fada_deploy.common.errors import MissingExtraError

    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


def newest() -> Path:
    """Return the newest run, saying which it is and what newer ones were passed over."""
    from fada_deploy.common.runs import newest_run

    run, skipped = newest_run()
    for line in skipped:
        log(f"skipped {line}")
    log(f"run {run}, the newest")
    return run
