"""Run `fada` in processes of its own, with limits, and kill it at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

FACTOR = int(os.environ.get("FADA_TORTURE", "1"))
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(
    arguments: Sequence[object],
    folder: Path,
    before: Callable[[], None] | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `fada` in a folder; `before` is called in the new process."""
    command = [sys.executable, "-m", "fada_deploy", *map(str, arguments)]
    return subprocess.run(
        command, cwd=folder, preexec_fn=before, text=True, env=ENVIRONMENT, timeout=300,
        check=False, stderr=subprocess.PIPE, **({"stdout": subprocess.PIPE} | options),
    )  # fmt: skip


def error_line(err: str) -> str:
    """Return the only error line, which must be the last line."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.rstrip().splitlines()[-1] == lines[0], err
    return lines[0]


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files in a folder."""
    return [p for p in folder.rglob("*") if ".partial" in p.name]


def killed_runs(
    command: Callable[[Path], Sequence[object]], folder: Path, *, seconds: float, kills: int
) -> Iterator[Path]:
    """Kill `fada COMMAND(output)` at random moments of its `seconds`, each in another output.

    Yield the output after each kill. Runs that end before they are killed do not count.
    """
    randomness, killed = random.Random(0), 0
    for attempt in range(5 * kills):
        out = folder / f"killed-{attempt}"
        arguments = [sys.executable, "-m", "fada_deploy", *map(str, command(out))]
        with subprocess.Popen(
            arguments, cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        ) as process:  # fmt: skip
            time.sleep(randomness.uniform(0.2, 0.95) * seconds)
            # Worker processes too, as when a machine loses its power.
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == -signal.SIGKILL:
            killed += 1
            yield out
        if killed == kills:
            return
    raise AssertionError(f"only {killed} of {kills} runs were killed before their end")
