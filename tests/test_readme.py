"""What README and guide tell people to type exists, and the tree they draw is the tree there is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fada_deploy.cli import COMMANDS, cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> Iterator[tuple[str, str]]:
    """Yield (page, command line) for each `fada …` in code blocks and in code spans."""
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for line in [*(x for b in blocks for x in b.splitlines()), *spans]:
            for part in line.split("&&"):
                words = part.split("  #")[0].strip()
                words = re.sub(r"^([A-Z_]+=\S+ )+", "", words)
                if words.startswith("fada "):
                    yield page.name, words


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_every_command_written_down_exists_with_its_options(page: str, line: str) -> None:
    command, words = find(shlex.split(line)[1:])
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {
        "--help",
        "--version",
    }
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{page}: `{line}`: no option {word}"


def test_every_command_is_in_the_readme_or_the_guide() -> None:
    written = {line.split()[1] for _, line in commands()}
    assert set(COMMANDS) <= written


def test_the_tree_in_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"```\nfada_deploy/\n(.*?)```", text, re.DOTALL)
    assert block is not None
    folder = ROOT / "fada_deploy"
    drawn = set()
    for line in block.group(1).splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            assert (folder / name).exists(), f"fada_deploy/{name} is not there"
            drawn.add(name.rstrip("/"))
        else:
            assert (ROOT / name).exists(), f"{name} is not there"
    parts = {p.name for p in folder.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert parts <= drawn, f"not drawn: {', '.join(sorted(parts - drawn))}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_written_down_exist() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE):
            assert target in rules, f"{page.name}: make {target}"


def test_no_page_holds_a_blank_to_fill() -> None:
    for page in PAGES:
        blanks = re.findall(r"\b(?:TABLE|NOTES|REAL|DEMO)_[A-Z]+\b", page.read_text("utf-8"))
        assert not blanks, f"{page.name}: {', '.join(blanks)}"
