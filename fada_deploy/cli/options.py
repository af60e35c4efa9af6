"""Option types and output shared by the commands."""

from __future__ import annotations

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
