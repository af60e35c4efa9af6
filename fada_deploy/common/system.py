"""CPU cores and memory of this process, and the versions of installed packages."""

from __future__ import annotations

import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fada_deploy.common.errors import MissingExtraError


def usable_cores() -> int:
    """Return how many CPU cores this process may use; in a container they may be few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def throughput_parallelism() -> int:
    """Return how many parallel requests give the highest throughput on this CPU.

    Each request runs on its own part of the cores, without synchronization inside a frame. More
    than four requests need memory and are not faster.
    """
    return min(4, usable_cores())


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def require_package(package: str, extra: str) -> None:
    """Raise `MissingExtraError` if the module `package` of an extra is not installed."""
    if find_spec(package) is None:
        raise MissingExtraError(package, extra)


def memory_mib(*, peak: bool = False) -> int | None:
    """Return the resident memory of this process, or its peak, in MiB; None if it is unknown.

    `getrusage` is not used, because its peak includes that of the parent process before the fork.
    """
    try:
        text = Path("/proc/self/status").read_text("utf-8")
        return int(text.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) >> 10
    except (OSError, IndexError):
        return None
