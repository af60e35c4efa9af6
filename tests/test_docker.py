"""The Dockerfiles name files, extras, commands and options that exist; no image is built."""

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


def instructions(file: Path) -> list[tuple[str, str]]:
    """Return (keyword, arguments) per instruction, without comments and line continuations."""
    lines = [
        line for line in file.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (first, rest.strip())
        for first, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def arguments_of(file: Path, keyword: str) -> list[str]:
    return [rest for first, rest in instructions(file) if first == keyword]


def test_each_use_has_a_dockerfile() -> None:
    assert {f.name for f in FILES} == {
        "runtime.Dockerfile",
        "runtime-gpu.Dockerfile",
        "train.Dockerfile",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_copied_files_exist(file: Path) -> None:
    copies = arguments_of(file, "COPY")
    sources = [
        s for copy in copies if not copy.startswith("--from=") for s in shlex.split(copy)[:-1]
    ]
    assert "fada_deploy" in sources and "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
    stages = {rest.split(" AS ")[1] for rest in arguments_of(file, "FROM") if " AS " in rest}
    assert {re.split(r"[= ]", c)[1] for c in copies if c.startswith("--from=")} <= stages
    # setuptools reads these when the package is built.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(sources)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_extras_exist_and_only_training_installs_torch(file: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    text = file.read_text("utf-8")
    (installed,) = re.findall(r'"\.\[([^\]]+)\]"', text)
    # The default, and the alternatives that the comment lists.
    lists = [*re.findall(r"^ARG BACKEND=(\S+)", text, re.MULTILINE),
             *re.findall(r"(?<=BACKEND: )[^.]*", text)]  # fmt: skip
    words = [w for part in lists for w in re.findall(r"[a-z-]+", re.sub(r"\([^)]*\)", "", part))]
    backends = [word for word in words if word != "or"]
    chosen = backends if installed == "${BACKEND}" else installed.split(",")
    assert chosen
    for extra in chosen:
        assert extra in extras, f"{file.name}: no extra [{extra}]"
        if file.name.startswith("runtime"):
            assert not any(re.match(r"torch\b|fada_deploy\[", need) for need in extras[extra])
    if file.name.startswith("runtime"):
        assert "torch" not in "".join(rest for _, rest in instructions(file))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_user_is_not_root_and_health_check_runs_fada(file: Path) -> None:
    last = [i for i, (first, _) in enumerate(instructions(file)) if first == "FROM"][-1]
    final = instructions(file)[last:]
    users = [rest for first, rest in final if first == "USER"]
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), (
        "use numbers: Kubernetes recognizes root by them"
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
def test_documented_run_command_has_these_options(file: Path) -> None:
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


def test_runtime_extras_install_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [
        *project["dependencies"],
        *(n for e in ("cpu", "openvino", "gpu") for n in project["optional-dependencies"][e]),
    ]
    assert {re.split(r"[^\w-]", need)[0] for need in needs}.isdisjoint(
        {"torch", "onnx", "onnxscript", "safetensors"}
    )
