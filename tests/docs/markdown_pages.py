"""Read the Markdown pages of the documentation, and check the commands that they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from fada_deploy.cli import cli

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SITE_PAGES = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *SITE_PAGES,
    *sorted((ROOT / "examples").glob("*/README.md")),
]

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^(?P<indent> *)```(?P<language>[a-z]*)\n"
    r"(?P<text>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)
_FADA = re.compile(r"(?:^|\s)(?:\S*/)?(?:fada|-m fada_deploy) (?P<words>.*)")


@dataclass(frozen=True)
class Block:
    """One fenced code block; `reason` says why the tests do not run it, "" if they do."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    @property
    def name(self) -> str:
        return f"{page_name(self.page)}:{self.line}"


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, match.start("text")),
            match["language"],
            re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            match["reason"] or "",
        )
        for match in _BLOCK.finditer(text)
    ]


def command_lines(page: Path) -> Iterator[str]:
    """Yield the arguments of each `fada …` in code blocks and code spans of a page.

    Pipes, `&&`, redirections and comments are cut off, and lines with an ellipsis are skipped.
    """
    text = page.read_text("utf-8")
    blocks = [block.text.replace("\\\n", " ") for block in code_blocks(page)]
    spans = re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
    for line in [*(line for block in blocks for line in block.splitlines()), *spans]:
        for part in re.split(r"&&| \| | > ", line.partition("  #")[0]):
            match = _FADA.search(re.sub(r"^([A-Z_]+=\S+ )+", "", part.strip()))
            if match and "…" not in part and '"' not in part.partition("fada ")[0]:
                yield match["words"].strip()


def find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """Return the command that some words name, and the words after its name."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        child = command.get_command(click.Context(command), words[0])
        assert child is not None, f"there is no command {words[0]!r}"
        command, words = child, words[1:]
    return command, words


def all_commands(group: click.Group) -> Iterator[click.Command]:
    """Yield the commands of a group and of its subgroups."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from all_commands(command)


def check_command(line: str) -> None:
    """Fail if a command line names an unknown command, option, or value of an option."""
    command, words = find_command(shlex.split(line))
    context = click.Context(command)
    try:
        values, _, _ = command.make_parser(context).parse_args(list(words))
        for parameter in command.params:
            checked = not isinstance(parameter.type, click.Path | click.File)
            if isinstance(parameter, click.Option) and checked and parameter.name in values:
                parameter.type_cast_value(context, values[parameter.name])
    except click.UsageError as error:
        raise AssertionError(f"fada {line}: {error.format_message()}") from None
