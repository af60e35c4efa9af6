"""`fada doctor`: what is installed here and truly works, and what to type for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fada_deploy.cli.console import emit_json

if TYPE_CHECKING:
    from fada_deploy.inspection.doctor import Check

_COLORS = {"ok": "green", "note": "yellow", "bad": "red"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def command(as_json: bool) -> int:
    """Try what this machine has: packages, engines, films, cores, disks. Takes some seconds, changes nothing.

    \b
    fada doctor             # a line each; what to type under what is not ok
    fada doctor --json      # for a bug report, or a machine's set-up

    A note costs speed or a convenience. Exits with 1 when something is bad.
    """
    from fada_deploy.inspection.doctor import diagnose

    found = diagnose()
    bad = sum(check.state == "bad" for check in found)
    if as_json:
        emit_json({"bad": bad, "checks": [asdict(check) for check in found]})
    else:
        _table(found)
        click.echo(
            click.style(f"{bad} to mend" if bad else "all well", fg=_COLORS["bad" if bad else "ok"])
        )
    return 1 if bad else 0


def _table(found: Sequence[Check]) -> None:
    width = max(len(check.name) for check in found)
    for check in found:
        state = click.style(f"{check.state:<4}", fg=_COLORS[check.state])
        click.echo(f"{state}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            click.echo(f"{'':<{width + 8}}type: {check.remedy}")
