"""This process's memory, and the versions of what is installed."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def memory_mib(*, peak: bool = False) -> int | None:
    """Return this process's resident memory, or the most it ever had, in MiB; None where the system does not tell.

    Not `getrusage`, whose peak begins with that of the process that started this one.
    """
    try:
        text = Path("/proc/self/status").read_text("utf-8")
        return int(text.split("VmHWM:" if peak else "VmRSS:")[1].split()[0]) >> 10
    except (OSError, IndexError):
        return None
