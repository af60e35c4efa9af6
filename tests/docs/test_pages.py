"""Commands, options, links and code in the documentation exist and can be parsed; nothing runs."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml
from markdown_pages import (
    PAGES,
    README,
    ROOT,
    SITE_PAGES,
    Block,
    all_commands,
    check_command,
    code_blocks,
    command_lines,
    page_name,
)

import fada_deploy
from fada_deploy.api import TrainOptions
from fada_deploy.cli import COMMANDS, cli

BLOCKS = [block for page in PAGES for block in code_blocks(page)]
ALL_OPTIONS = {
    name for command in all_commands(cli) for parameter in command.params for name in parameter.opts
} | {"--help", "--version"}
APP = ROOT / "examples" / "perception_app" / "app.py"
# Options of docker, of torchrun and of the example.
OTHER_OPTIONS = {
    "--tmpfs", "--build-arg", "--max-restarts", "--start-method",
    *re.findall(r'"(--[a-z-]+)"', APP.read_text("utf-8")),
}  # fmt: skip
COMMAND_LINES = sorted({(page_name(page), line) for page in PAGES for line in command_lines(page)})


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_documented_command_has_these_options(page: str, line: str) -> None:
    check_command(line)


def test_unknown_option_fails() -> None:
    with pytest.raises(AssertionError, match="--no-such-option"):
        check_command("infer drive.mp4 --no-such-option")
    with pytest.raises(AssertionError, match="nosuch"):
        check_command("nosuch")
    with pytest.raises(AssertionError, match="logit"):
        check_command("export --head logit")


def test_every_command_is_documented() -> None:
    documented = {line.split()[0] for _, line in COMMAND_LINES}
    assert set(COMMANDS) <= documented


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_images_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page_name(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_lines_have_at_most_100_columns(page: Path) -> None:
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if not line.startswith("|") and "](" not in line and "://" not in line:
            assert len(line) <= 100, f"{page_name(page)}:{number} has {len(line)} columns"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language], ids=lambda b: b.name)
def test_code_block_can_be_parsed(block: Block) -> None:
    if block.language == "python":
        check_calls(ast.parse(block.text))
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert block.language in {"bash", "zsh", "fish", "text", "bibtex"}


def check_calls(tree: ast.AST) -> None:
    """Fail if `fada.<name>` does not exist or is called with an argument that it does not have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_fada(node.value):
            assert hasattr(fada_deploy, node.attr), f"fada_deploy has no {node.attr}"
        elif isinstance(node, ast.Call) and is_fada(getattr(node.func, "value", None)):
            function = getattr(fada_deploy, getattr(node.func, "attr", ""), None)
            if function is not None:
                check_keywords(function, [word.arg for word in node.keywords if word.arg])


def is_fada(node: object) -> bool:
    return isinstance(node, ast.Name) and node.id == "fada"


def check_keywords(called: object, keywords: list[str]) -> None:
    if called is fada_deploy.export:
        from fada_deploy.export.plan import ExportOptions as called  # type: ignore[assignment]
    parameters = {*inspect.signature(called).parameters}
    if called is fada_deploy.train:
        parameters |= TrainOptions.__annotations__.keys()
    unknown = [word for word in keywords if word not in parameters]
    assert not unknown, f"{called} has no argument {', '.join(unknown)}"


def test_wrong_call_fails() -> None:
    with pytest.raises(AssertionError, match="no_such"):
        check_calls(ast.parse("fada.Segmenter('model.onnx', no_such=1)"))
    with pytest.raises(AssertionError, match="Segmentor"):
        check_calls(ast.parse("fada.Segmentor('model.onnx')"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_benchmarks_have_these_options(page: Path) -> None:
    text = page.read_text("utf-8").replace("\\\n", " ")
    for script, options in re.findall(r"python ((?:benchmarks|examples)/[^\s`]+)([^\n`]*)", text):
        path = ROOT / script
        modules = path.glob("*.py") if path.is_dir() else [path]
        source = "".join(module.read_text("utf-8") for module in modules)
        # What follows `--` belongs to `fada train`.
        for option in re.findall(r"--[a-z][a-z-]+", options.partition(" -- ")[0]):
            assert f'"{option}"' in source, f"{page_name(page)}: {script} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_options_in_prose_exist(page: Path) -> None:
    for span in re.findall(r"`(--[a-z][^`\n]*)`", page.read_text("utf-8")):
        option = re.split(r"[ =]", span)[0]
        assert option in ALL_OPTIONS | OTHER_OPTIONS, f"{page_name(page)}: no option {option}"


def load_hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_reference_has_every_option() -> None:
    hook = load_hook("cli_reference")
    page = hook.on_page_markdown((ROOT / "docs" / "reference" / "cli.md").read_text("utf-8"))
    sections = re.split(r"^#{2,3} `fada (.+)`$", page, flags=re.MULTILINE)
    described = dict(zip(sections[1::2], sections[2::2], strict=True))
    for command in all_commands(cli):
        (text,) = [t for name, t in described.items() if name.split()[-1] == command.name]
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert f"`{parameter.opts[0]}`" in text, f"fada {command.name} {parameter.opts[0]}"


def test_format_reference_has_every_key_of_the_schemas() -> None:
    hook = load_hook("schema_reference")
    page = hook.on_page_markdown(
        (ROOT / "docs" / "reference" / "file-formats.md").read_text("utf-8")
    )
    schemas = sorted((ROOT / "docs" / "schemas").glob("*.json"))
    assert schemas
    for path in schemas:
        schema = json.loads(path.read_text("utf-8"))
        assert f"(../schemas/{path.name})" in page
        for definition in (schema, *schema.get("$defs", {}).values()):
            for key in definition.get("properties", {}):
                assert f"| `{key}` |" in page, f"{path.name}: {key}"


def test_site_navigation_lists_every_page() -> None:
    # Tags such as !!python/name are not used, so a plain loader reads the file.
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

    def leaves(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        values = node.values() if isinstance(node, dict) else node
        return [leaf for value in values for leaf in leaves(value)]

    listed = leaves(config["nav"])
    written = {page.relative_to(ROOT / "docs").as_posix() for page in SITE_PAGES}
    assert len(listed) == len(set(listed)) and set(listed) == written


def test_site_loads_nothing_from_elsewhere() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert config["theme"]["font"] is False
    assert not any("://" in path for key in ("extra_css", "extra_javascript", "hooks")
                   for path in config.get(key, ()))  # fmt: skip


def test_readme_python_example_is_short() -> None:
    (block,) = [b for b in code_blocks(README) if b.language == "python"]
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 5
