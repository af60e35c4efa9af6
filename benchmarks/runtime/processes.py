"""Measurements in processes of their own, and how busy the cores are with other processes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fada_deploy.common.system import usable_cores


def run_job(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job of this benchmark in a new process; return its result."""
    return run_json(
        [sys.executable, str(Path(__file__).parent), "--job", name, json.dumps(job)], name
    )


def run_json(command: list[str], name: str) -> dict[str, Any]:
    """Run a command and return the last line of its output, a JSON document."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=environment(), check=False
    )
    if done.returncode:
        raise SystemExit(f"{name} failed with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def environment(**more: str) -> dict[str, str]:
    """Return the environment of measured processes: one thread per usable core."""
    threads = str(usable_cores())
    return os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads} | more


class OtherLoad:
    """The fraction of the measured cores' time that other processes used, by part."""

    def __init__(self, cores: list[int]) -> None:
        self._names = {f"cpu{core}" for core in cores}
        self.fraction: dict[str, float] = {}

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Record and print the fraction while a part is measured."""
        busy, ours, start = self._busy_seconds(), self._own_seconds(), time.monotonic()
        yield
        others = self._busy_seconds() - busy - (self._own_seconds() - ours)
        elapsed = len(self._names) * (time.monotonic() - start)
        self.fraction[part] = max(0.0, others / elapsed)
        print(f"(other processes used {self.fraction[part]:.0%} of the cores)")

    def _busy_seconds(self) -> float:
        """Return the seconds that the cores were busy, including time stolen by the hypervisor."""
        rows = [line.split() for line in Path("/proc/stat").read_text("utf-8").splitlines()]
        # Columns user, nice, system, irq, softirq, steal.
        ticks = [
            sum(int(row[i]) for i in (1, 2, 3, 6, 7, 8)) for row in rows if row[0] in self._names
        ]
        return sum(ticks) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own_seconds() -> float:
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def processor_name() -> str:
    """Return the model name of the CPU, "" if it is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ""
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), ""
    )
