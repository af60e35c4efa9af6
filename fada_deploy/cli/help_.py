"""`fada help`: the help of a command."""

from __future__ import annotations

import click

from fada_deploy.cli.options import unknown_command


@click.command("help")
@click.argument("names", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Show the help of COMMAND, for example `fada help data check`."""
    parent = ctx.find_root()
    target: click.Command = parent.command
    for name in names:
        commands = target.list_commands(parent) if isinstance(target, click.Group) else []
        if name not in commands:
            raise click.UsageError(
                unknown_command(name, commands)
                if commands
                else f"{parent.command_path} has no commands, got {name!r}",
                parent,
            )
        assert isinstance(target, click.Group)
        subcommand = target.get_command(parent, name)
        assert subcommand is not None
        target = subcommand
        parent = click.Context(target, parent, name)
    click.echo(target.get_help(parent))
