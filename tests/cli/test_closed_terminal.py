"""A terminal that is closed while a command runs: SIGHUP, and no write to it succeeds any more."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest


def run_until(command: list[str], ready: Callable[[], bool], prepare: Callable[[], None]) -> int:
    """Run a command in a terminal, close that when `ready`, and return the exit code."""
    master, slave = pty.openpty()

    def take_terminal() -> None:
        prepare()
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_terminal
    ) as process:
        os.close(slave)
        shown = b""
        while not ready():
            # What is shown must be read, so that the process is not blocked.
            if select.select([master], [], [], 0.05)[0]:
                with suppress(OSError):
                    shown += os.read(master, 4096)
            assert process.poll() is None, shown.decode()
        os.close(master)
        return process.wait(timeout=120)


@pytest.mark.slow
def test_training_saves_its_state(
    blocks: Path, tmp_path: Path, interruptible: Callable[[], None]
) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "fada_deploy", "train", "--src", str(blocks / "source.toml"), "--tgt",
        str(blocks / "target.toml"), "--recipe", "small", "--size", "96x64", "--batch", "2",
        "--stages", "source", "--out", str(run), "--device", "cpu",
    ]  # fmt: skip
    metrics = run / "source/metrics.jsonl"

    def trains() -> bool:
        return metrics.is_file() and metrics.read_text().count("\n") >= 2

    assert run_until(command, trains, interruptible) == 130
    assert (run / "source/state.pt").is_file()


def test_a_stopped_command_completes_its_work(
    tmp_path: Path, interruptible: Callable[[], None]
) -> None:
    code = """
import sys, time
from pathlib import Path
from fada_deploy.cli import infer_live
stop = infer_live.StopRequest([])
with infer_live.stop_on_signals(stop):
    Path("ready").touch()
    while not stop.files.is_set():
        time.sleep(0.01)
    print("a line that nobody reads", file=sys.stderr, flush=True)
    Path("completed").touch()
"""

    def ready() -> bool:
        return (tmp_path / "ready").is_file()

    command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r})\n{code}"]
    assert run_until(command, ready, interruptible) == 0
    assert (tmp_path / "completed").is_file()
