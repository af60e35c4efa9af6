"""Reserve CPU cores for a worker process."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from fada_deploy.common.system import cpu_quota


class ReservedCores:
    """CPU cores on which this process runs alone, among the workers of this package.

    Ray counts cores but does not assign them, and the libraries for inference start one thread for
    each core that they see. Without reserved cores, N workers on N cores would run N² threads.

    Args:
        count: Number of cores. If fewer are free, the operating system cannot pin a process, or a
            quota limits the processor time (as in a pod of Kubernetes, which sees the cores of its
            machine, but not who else uses them), the process keeps all cores.

    Attributes:
        cores: The reserved cores; empty if the process keeps all cores.
    """

    def __init__(self, count: int) -> None:
        from filelock import FileLock, Timeout  # slow to import

        self.cores: frozenset[int] = frozenset()
        self._locks: list[FileLock] = []
        if not hasattr(os, "sched_setaffinity") or cpu_quota() is not None:
            return
        cores: list[int] = []
        folder = Path(tempfile.gettempdir())
        for core in sorted(os.sched_getaffinity(0)):
            lock = FileLock(folder / f"fada-core-{core}.lock", mode=0o666)
            try:
                lock.acquire(timeout=0)
            except (Timeout, OSError):
                continue
            # The operating system releases the lock however the process ends.
            self._locks.append(lock)
            cores.append(core)
            if len(cores) == count:
                self.cores = frozenset(cores)
                for thread in Path("/proc/self/task").iterdir():
                    # A thread may have ended in the meantime.
                    with suppress(ProcessLookupError):
                        os.sched_setaffinity(int(thread.name), self.cores)
                return
        self.release()

    def release(self) -> None:
        """Let other workers reserve the cores."""
        for lock in self._locks:
            lock.release()
        self._locks.clear()
