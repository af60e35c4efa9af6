"""CPU cores and memory of this process, and the versions of installed packages."""

from __future__ import annotations

import math
import os
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fada_deploy.common.errors import MissingExtraError

# Where a container sees its control group.
_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return how many CPU cores this process may use.

    In a container they may be few, by its set of cores or by its quota of processor time, rounded
    up.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota() -> float | None:
    """Return the quota of processor time of the container in cores, None if it is unlimited."""
    try:
        limit, period = (_CGROUP / "cpu.max").read_text("utf-8").split()
    except (OSError, ValueError):
        try:
            folder = _CGROUP / "cpu"
            limit, period = (
                (folder / f"cpu.cfs_{name}_us").read_text("utf-8") for name in ("quota", "period")
            )
        except OSError:
            return None
    try:
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):  # the limit may be "max"
        return None
    return cores if cores > 0 else None


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
