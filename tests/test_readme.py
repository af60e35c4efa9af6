"""The README describes the repository as it is; tests/docs checks its commands and examples."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from markdown_pages import PAGES, README, ROOT

from fada_deploy.cli import COMMANDS

TEXT = README.read_text("utf-8")


def test_tree_is_the_tree_of_the_repository() -> None:
    block = re.search(r"```\nfada_deploy/\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None
    package = ROOT / "fada_deploy"
    listed = set()
    for line in block[1].splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            assert (package / name).exists(), f"fada_deploy/{name} does not exist"
            listed.add(name.rstrip("/"))
        else:
            assert (ROOT / name).exists(), f"{name} does not exist"
    parts = {
        path.name
        for path in package.iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("_")
    }
    assert parts == listed


def test_every_command_is_listed() -> None:
    for command in COMMANDS:
        assert re.search(rf"`fada {command}\b", TEXT), f"fada {command} is missing"


def test_every_extra_is_listed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = set(project["optional-dependencies"]) - {"dev", "docs"}
    for extra in extras:
        assert re.search(rf"^\|[^|]*`{extra}`", TEXT, re.MULTILINE), f"extra {extra} is missing"


def test_first_screen_shows_image_commands_scores_and_code() -> None:
    first = TEXT.partition("\n## ")[0]
    for part in ("docs/images/street.jpg", "make demo", "make test", "fada train", "fada export",
                 "fada infer", "```python", "| Source only"):  # fmt: skip
        assert part in first, f"{part} is missing"


# Rows of the first page's table → rows of the results.
ROWS = {
    "Source only": "source only, 900 iterations",
    "Recipe deploy": "recipe deploy, 400 + 500 iterations",
}


@pytest.mark.parametrize("page", [README, ROOT / "docs" / "index.md"], ids=lambda p: p.name)
def test_scores_are_those_of_the_results(page: Path) -> None:
    results = (ROOT / "docs" / "results" / "index.md").read_text("utf-8")
    real_streets = results.partition("## Real streets")[2].partition("\n## ")[0]
    measured = {
        cells[1].strip(): cells[-2].strip()
        for cells in (line.split("|") for line in real_streets.splitlines())
        if len(cells) > 2
    }
    table = re.findall(
        r"^\| ([^|:]+?)(?::[^|]*)? \| ([\d.]+ ± [\d.]+) \|$", page.read_text("utf-8"), re.M
    )
    assert dict(table) == {name: measured[row] for name, row in ROWS.items()}


def test_images_are_small() -> None:
    for image in (ROOT / "docs" / "images").glob("*.jpg"):
        assert image.stat().st_size <= 300_000, f"{image.name} is larger than 300 kB"


def test_documented_make_targets_exist() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text("utf-8")
        for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE):
            assert target in rules, f"{page.name}: make {target}"
