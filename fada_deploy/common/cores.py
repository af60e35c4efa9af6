"""How many cores there are for us."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many CPU cores this process may use, which in a container is fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def throughput_requests() -> int:
    """Return how many network requests share the cores best where many frames wait, as in a file.

    Each on its own part of the cores: they need not wait for each other inside a frame, and what decodes and
    encodes beside them finds its place. More than four only cost memory.
    """
    return min(4, usable_cores())
