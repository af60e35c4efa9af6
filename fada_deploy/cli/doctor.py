"""`fada doctor`: check what is installed on this machine and whether it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from fada_deploy.cli.console import emit_json
from fada_deploy.cli.options import JSON_OPTION

if TYPE_CHECKING:
    from fada_deploy.inspection.doctor import Check

_COLORS = {"ok": "green", "info": "blue", "warning": "yellow", "problem": "red"}
_STATE_WIDTH = max(map(len, _COLORS))


@click.command("doctor")
@JSON_OPTION
def command(as_json: bool) -> int:
    """Check what works on this machine, and how to install what does not.

    Packages, inference backends, video codecs, CPU cores and disks are tested. This takes a few
    seconds and changes nothing.

    \b
    fada doctor             # one line per check, with a command that helps
    fada doctor --json      # for a bug report

    A warning means slower or less convenient. Exits with 1 if there is a problem.
    """
    from fada_deploy.inspection.doctor import diagnose

    checks = diagnose()
    problems = sum(check.state == "problem" for check in checks)
    if as_json:
        emit_json({"problems": problems, "checks": [asdict(check) for check in checks]})
        return 1 if problems else 0
    _print_checks(checks)
    if problems:
        summary = f"{problems} problem{'s' if problems > 1 else ''} found"
        click.echo(click.style(summary, fg=_COLORS["problem"]))
        return 1
    click.echo(click.style("no problems found", fg=_COLORS["ok"]))
    return 0


def _print_checks(checks: Sequence[Check]) -> None:
    # Not `format_table`: the remedies are indented lines of their own.
    width = max(len(check.name) for check in checks)
    indent = " " * (_STATE_WIDTH + width + 4)
    for check in checks:
        state = click.style(f"{check.state:<{_STATE_WIDTH}}", fg=_COLORS[check.state])
        click.echo(f"{state}  {check.name:<{width}}  {check.detail}")
        if check.remedy:
            click.echo(f"{indent}run: {check.remedy}")
