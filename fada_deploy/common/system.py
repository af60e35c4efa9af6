"""What this process may use and what is installed: CPU cores, memory, package versions."""

from __future__ import annotations

import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fada_deploy.common.errors import MissingExtraError


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which in a container is fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def throughput_parallelism() -> int:
    """Return how many network requests share the cores best where many frames wait, as in a file.

    Each on its own part of the cores: they need not wait for each other inside a frame, and what decodes and
    encodes beside them finds its place. More than four only cost memory.
    """
    return min(4, usable_cores())


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def require_package(package: str, extra: str) -> None:
    """Raise `MissingExtraError` if a package of an extra is not installed."""
    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


def memory_mib(*, peak: bool = False) -> int | None:
    """Return this process's resident memory, or the most it ever had, in MiB; None where the system does not tell.

    Not `getrusage`, whose peak begins with that of the process that started this one.
    """
    try:
        text = Path("/proc/self/status").read_text("utf-8")
        return int(text.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) >> 10
    except (OSError, IndexError):
        return None
