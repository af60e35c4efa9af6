"""The container files name what there is; no container is built here."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from fada_deploy.cli import COMMANDS, cli

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


def steps(file: Path) -> list[tuple[str, str]]:
    """Return (instruction, rest) of each step, continued lines joined and comments dropped."""
    lines = [
        line for line in file.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (first, rest.strip())
        for first, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def of(file: Path, instruction: str) -> list[str]:
    return [rest for first, rest in steps(file) if first == instruction]


def test_there_is_one_for_each_use() -> None:
    assert {f.name for f in FILES} == {
        "runtime.Dockerfile",
        "runtime-gpu.Dockerfile",
        "train.Dockerfile",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_what_is_copied_exists(file: Path) -> None:
    copies = of(file, "COPY")
    sources = [
        s for copy in copies if not copy.startswith("--from=") for s in shlex.split(copy)[:-1]
    ]
    assert "fada_deploy" in sources and "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
    stages = {rest.split(" AS ")[1] for rest in of(file, "FROM") if " AS " in rest}
    assert {re.split(r"[= ]", c)[1] for c in copies if c.startswith("--from=")} <= stages
    # setuptools reads these when the package is built.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(sources)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_extras_exist_and_only_training_has_torch(file: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = file.read_text("utf-8")
    (asked,) = re.findall(r'"\.\[([^\]]+)\]"', text)
    engines = re.findall(r"^ARG ENGINE=(\S+)", text, re.MULTILINE)
    # The default, and what the comment names.
    named = engines + re.findall(r"(?<=ENGINE: )[^.]*", text)
    words = [w for part in named for w in re.findall(r"[a-z-]+", re.sub(r"\([^)]*\)", "", part))]
    chosen = [w for w in words if w != "or"] if asked == "${ENGINE}" else asked.split(",")
    assert chosen
    for extra in chosen:
        assert extra in extras, f"{file.name}: no extra [{extra}]"
        if file.name.startswith("runtime"):
            assert not any(re.match(r"torch\b|fada_deploy\[", need) for need in extras[extra])
    if file.name.startswith("runtime"):
        assert "torch" not in "".join(rest for _, rest in steps(file))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_nobody_is_root_and_health_is_asked(file: Path) -> None:
    last = [i for i, (first, _) in enumerate(steps(file)) if first == "FROM"][-1]
    final = steps(file)[last:]
    users = [rest for first, rest in final if first == "USER"]
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), (
        "a number: Kubernetes tells root by it"
    )
    after = [first for first, _ in final[[first for first, _ in final].index("USER") :]]
    assert "RUN" not in after and "COPY" not in after
    entry, health = (dict(final)[name] for name in ("ENTRYPOINT", "HEALTHCHECK"))
    assert json.loads(entry) == ["fada"]
    command = " ".join(json.loads(health[health.index("[") :]))
    for name in re.findall(r"fada ([a-z]+)", command):
        assert name in COMMANDS
    assert "fada --version" in command


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_what_the_head_says_to_type_exists(file: Path) -> None:
    head = [
        line.lstrip("# ") for line in file.read_text("utf-8").splitlines() if line.startswith("#")
    ]
    (typed,) = re.findall(r"docker run (?:.*\\\n)*.*", "\n".join(head))
    words = shlex.split(typed.replace("\\\n", " "))
    image = words.index(f"fada-{file.name.removesuffix('.Dockerfile')}")
    if file.name.startswith("runtime"):
        assert {"--read-only", "--cap-drop", "--network"} <= set(words[:image])
        assert any(word.endswith(":/models:ro") for word in words[:image])
    command = cli.get_command(click.Context(cli), words[image + 1])
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[image + 2 :] if word.startswith("--")} <= known


def test_the_runtimes_base_brings_no_torch() -> None:
    """That the base and one engine suffice is shown in docs/deploy.md; here, that neither asks for more."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [
        *project["dependencies"],
        *(n for e in ("cpu", "openvino", "gpu") for n in project["optional-dependencies"][e]),
    ]
    assert {re.split(r"[^\w-]", need)[0] for need in needs}.isdisjoint(
        {"torch", "onnx", "onnxscript", "safetensors"}
    )
