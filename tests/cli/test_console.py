"""Console output next to progress bars."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fada_deploy.cli import console
from fada_deploy.common.progress import progress_bar, set_progress_factory


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_message_during_a_progress_bar_is_on_its_own_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    console.install()
    try:
        with progress_bar(4, "scoring") as bar:
            bar.update(1)
            logging.getLogger("fada_deploy.test").warning("a message")
            bar.update(3)
    finally:
        set_progress_factory(None)
    lines = terminal.getvalue().split("\n")
    # Everything after the last carriage return of a line stays visible.
    assert "warning: a message" in [line.rpartition("\r")[2] for line in lines]
    assert "4/4" in lines[-2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("output", ["/dev/full", "closed pipe"])
def test_a_document_that_cannot_be_written(output: str) -> None:
    """The exit code is 1, as for any file, and not that of an interpreter that fails at its end."""
    command = [sys.executable, "-m", "fada_deploy", "inspect", "builtin", "--json"]
    environment = {name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if output == "closed pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(output, os.O_WRONLY)
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env=environment, text=True, check=False
    )
    os.close(write)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert len([line for line in lines if "error" in line.lower()]) == (output == "/dev/full")
    assert "Exception ignored" not in done.stderr


def test_no_standard_output(tmp_path: Path) -> None:
    """A daemon may start a command without one."""
    command = f"{shlex.quote(sys.executable)} -m fada_deploy inspect builtin >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_document_is_complete_if_a_later_file_cannot_be_written() -> None:
    program = """
import fada_deploy.cli as commands
from fada_deploy.cli.console import emit_json

def fails(*_, **__):
    emit_json({"value": float("nan"), "list": [1.5, float("inf")]})
    raise PermissionError(13, "Permission denied", "plot.png")

commands.cli.main = fails
commands.main(["inspect"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={name: v for name, v in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    assert done.returncode == 1 and "plot.png: Permission denied" in done.stderr
    assert json.loads(done.stdout) == {"value": None, "list": [1.5, None]}


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["data", "render", "x", "--video-seconds", "nan"], "--video-seconds"),
        (["train", "--tgt", "x", "--cache", "inf"], "--cache"),
        (["infer", "x.mp4", "--alpha", "nan"], "--alpha"),
        (["export", "x", "--batch", "²"], "--batch"),
    ],
)
def test_numbers_must_be_finite(
    arguments: list[str], option: str, fada: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, err = fada(*arguments)
    assert code == 2 and option in err


def test_no_option_shows_a_range_without_limits(fada: Callable[..., tuple[int, str, str]]) -> None:
    for command in ("infer", "export", "verify", "train", "bench", "compare"):
        assert "None]" not in fada(command, "--help")[1]
