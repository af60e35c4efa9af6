"""Exceptions that no command expects: one line, a log file, and the exit code."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from fada_deploy.cli import unexpected, version

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def failing(fada: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], str]:
    """Return a function that runs a command that raises; it returns the line and the code."""

    def run(error: BaseException) -> tuple[int, str]:
        def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr(version, "command", click.Command("version", callback=fail))
        code, out, err = fada("version")
        lines = [line for line in err.splitlines() if line]
        assert not out and len(lines) == 1 and lines[0].startswith("error: "), err
        return code, lines[0]

    return run  # type: ignore[return-value]


def test_the_traceback_is_in_a_log_file(
    failing: Callable[[BaseException], tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, line = failing(KeyError("colors"))
    assert code == 70 and "KeyError: 'colors'" in line
    (log,) = (tmp_path / "cache").rglob("*.log")
    assert str(log) in line and "raise error" in log.read_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("can't start new thread"), "thread"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "space on the disk"),
        (Exception("I/O error: No space left on device (os error 28)"), "space on the disk"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "temporarily"),
    ],
)
def test_limits_of_the_machine_are_named(
    failing: Callable[[BaseException], tuple[int, str]], error: Exception, words: str
) -> None:
    code, line = failing(error)
    assert code == 1 and words in line


def test_a_lost_connection_is_one_only_among_several_processes(
    failing: Callable[[BaseException], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:30124.")
    code, line = failing(error)
    assert code == 70 and "unexpected" in line
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, line = failing(error)
    assert code == 1 and "another process of the training" in line


def test_an_end_of_file_is_no_interruption(
    failing: Callable[[BaseException], tuple[int, str]],
) -> None:
    code, line = failing(EOFError("Ran out of input"))
    assert code == 70 and "EOFError" in line and "interrupted" not in line


def test_without_a_writable_folder_there_is_still_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unexpected, "_log_folder", lambda: Path("/proc/none"))
    monkeypatch.setattr(unexpected.tempfile, "gettempdir", lambda: "/proc/none")
    line, code = unexpected.report(ValueError("x"))
    assert code == 70 and "no log file" in line
