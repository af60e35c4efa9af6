"""Write the command-line reference from the click commands when the site is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click

from fada_deploy.cli import cli

MARKER = "<!-- cli-reference -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker in a page with the reference of every command."""
    if MARKER not in markdown:
        return markdown
    return markdown.replace(MARKER, "\n".join(describe_commands(cli, "fada")))


def describe_commands(group: click.Group, path: str, level: int = 2) -> Iterator[str]:
    """Yield Markdown for the commands of a group, in the order of its help."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield f"{'#' * level} `{path} {name}`\n"
        yield from _describe(command, f"{path} {name}")
        if isinstance(command, click.Group):
            yield from describe_commands(command, f"{path} {name}", level + 1)


def _describe(command: click.Command, path: str) -> Iterator[str]:
    yield from _paragraphs(command.help or "")
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"```text\n{usage}\n```\n"
    options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield "| Option | Description |\n|---|---|"
        for option in options:
            yield f"| {_names(option, context)} | {_description(option, context)} |"
        yield ""


def _paragraphs(text: str) -> Iterator[str]:
    """Yield paragraphs of a help text; one that begins with a backspace is a block of examples."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            examples = paragraph.removeprefix("\b").strip("\n")
            yield f"```text\n{examples}\n```\n"
        else:
            yield " ".join(paragraph.split()) + "\n"


def _names(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag or option.count:
        return names
    if isinstance(option.type, click.Choice):
        values = ", ".join(f"`{choice}`" for choice in option.type.choices)
    else:
        values = f"`{option.make_metavar(context)}`"
    return f"{names}<br>{values}"


def _description(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    text = " ".join(record[1].split()) if record else ""
    for character in ("|", "*", "_"):
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "&lt;")
