"""The command line as the tests type it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fada_deploy.cli import main


def listen_to_sigint() -> None:
    """Undo, in a child, what a background shell does to its children: let SIGINT be ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def interruptible() -> Callable[[], None]:
    """Return what a child must run first (`preexec_fn`) to be interrupted wherever the tests run."""
    return listen_to_sigint


@pytest.fixture
def fada(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `fada …` in an empty working directory: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return run
