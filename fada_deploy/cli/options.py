"""Option types and output shared by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fada_deploy.common.errors import UsageError
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

# For commands with a positional MODEL, so that `--model` works in every command.
MODEL_OPTION = click.option(
    "--model", "model_option", type=click.Path(path_type=Path), help="Same as MODEL."
)


def model_path(argument: Path | None, option: Path | None) -> Path | None:
    """Return the model that was named by the argument MODEL or by `--model`; raise if by both."""
    if argument is not None and option is not None:
        raise UsageError(f"two models were named, {argument} and {option}; name one")
    return option if argument is None else argument
