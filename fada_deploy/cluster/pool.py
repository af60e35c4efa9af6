"""A pool of Ray actors that run tasks, with retries after the loss of a worker."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from fada_deploy._version import __version__
from fada_deploy.cluster.connection import (
    LOCAL,
    ClusterOptions,
    cluster_resources,
    connect,
    describe_resources,
)
from fada_deploy.cluster.cores import ReservedCores
from fada_deploy.common.errors import DataError, DeviceError, FadaError, one_line
from fada_deploy.common.system import require_package

logger = logging.getLogger(__name__)

# Times that a task is started before it is given up because its worker was lost.
MAX_ATTEMPTS = 3
# Seconds without a ready worker after which the reason is logged.
_PATIENCE_S = 30.0

# A worker runs one task after another. A factory is called in the process of the worker.
Worker = Callable[[Any], Any]
WorkerFactory = Callable[[], Worker]


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says about itself when it is ready; `details` come from its `describe`."""

    node: str
    version: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LostTask:
    """The result of a task whose worker was lost `MAX_ATTEMPTS` times; `reason` is one line."""

    reason: str


@dataclass(frozen=True)
class _Attempt:
    """A task, and how often it was started, this time included."""

    task: Any
    number: int


_RETRY = object()


def _first_attempt(task: Any) -> _Attempt | None:
    return None if task is None else _Attempt(task, 1)


class WorkerPool:
    """Runs tasks on Ray actors. Use it as a context manager.

    Each worker runs one task at a time, and gets the next one when its result has arrived, so no
    task waits in a queue of Ray. A worker that is lost is started again, and its task is given to
    another one.

    Args:
        factory: Makes a worker, in the worker's own process. It is sent with Ray's pickle.
        options: Where the workers run.

    Attributes:
        workers: What each ready worker says about itself.

    Raises:
        MissingExtraError: Ray is not installed.
        DeviceError: There is no cluster at the address, or it has too few CPUs or GPUs for a worker
            and no autoscaler.
    """

    def __init__(self, factory: WorkerFactory, options: ClusterOptions) -> None:
        require_package("ray", "ray")
        self._factory, self._options = factory, options
        self._factory_reference: Any = None
        self._idle: list[Any] = []
        # References of calls that are being executed → the actor, and its task.
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, _Attempt]] = {}
        self._not_started = self._failed_starts = 0
        self.workers: list[WorkerInfo] = []

    def __enter__(self) -> Self:
        connect(self._options)
        try:
            self._not_started = self._worker_count()
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._disconnect()

    def run(
        self,
        take: Callable[[], Any],
        stop: threading.Event | None = None,
        *,
        on_ready: Callable[[], None] | None = None,
    ) -> Generator[tuple[Any, Any], None, None]:
        """Start the workers, and yield each task with its result, as they are completed.

        Args:
            take: Returns the next task, or None if there is none now. More may exist after further
                results were yielded; the iterator ends when there is none and none is running.
            stop: When it is set, no further task is begun.
            on_ready: Called once, when the first worker is ready and has no task yet.

        Yields:
            A task and what the worker returned for it, or a `LostTask`.

        Raises:
            FadaError: A worker cannot start, or raised an error.
        """
        import ray

        retries: list[_Attempt] = []
        held: _Attempt | None = None
        waiting_since = time.monotonic()
        while self._not_started:
            self._start_worker()
            self._not_started -= 1
        while True:
            if stop is not None and stop.is_set():
                held = None
                retries.clear()
            elif held is None:
                held = retries.pop() if retries else _first_attempt(take())
            if held is not None and self._idle:
                actor = self._idle.pop()
                self._running[actor.run.remote(held.task)] = actor, held
                held = None
                continue
            if held is None and not self._running:
                return
            ready, _ = ray.wait([*self._running, *self._starting], num_returns=1, timeout=0.5)
            for reference in ready:
                if reference in self._starting:
                    self._finish_start(reference)
                    if on_ready is not None and self.workers:
                        on_ready()
                        on_ready = None
                    continue
                actor, attempt = self._running.pop(reference)
                result = self._result(reference, actor, attempt)
                if result is _RETRY:
                    retries.append(_Attempt(attempt.task, attempt.number + 1))
                else:
                    yield attempt.task, result
            if self._idle or self._running:
                waiting_since = time.monotonic()
            elif time.monotonic() - waiting_since > _PATIENCE_S:
                waiting_since = float("inf")
                logger.warning("waiting for a worker; %s", describe_resources(self._options))

    def _result(self, reference: Any, actor: Any, attempt: _Attempt) -> Any:
        """Return the result of a call, a `LostTask`, or `_RETRY` to run the task again."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            result = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, FadaError):
                raise error.cause from None
            if isinstance(error.cause, OSError):
                raise DataError(f"a worker cannot read or write: {one_line(error)}") from None
            raise
        except RayError as error:
            # The worker, its machine or the connection to it is gone.
            with suppress(Exception):
                ray.kill(actor)
            self._start_worker()
            if attempt.number < MAX_ATTEMPTS:
                logger.warning("a worker was lost (%s); its task is run again", _reason(error))
                return _RETRY
            return LostTask(f"its worker was lost {MAX_ATTEMPTS} times ({_reason(error)})")
        self._idle.append(actor)
        return result

    def _finish_start(self, reference: Any) -> None:
        import ray
        from ray.exceptions import RayError, RayTaskError

        actor = self._starting.pop(reference)
        try:
            info: WorkerInfo = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, FadaError):
                raise error.cause from None
            raise DeviceError(f"a worker cannot start: {_reason(error)}") from None
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts < MAX_ATTEMPTS:
                self._start_worker()
            elif self._idle or self._running:
                logger.warning(
                    "a worker cannot start (%s); the others go on without it", _reason(error)
                )
            else:
                raise DeviceError(
                    f"workers cannot start ({_reason(error)}); "
                    "install the same version of this package on all machines of the cluster"
                ) from None
            return
        if info.version != __version__:
            raise DeviceError(
                f"{info.node} has version {info.version} of this package, this machine "
                f"{__version__}; install the same version on all machines of the cluster"
            )
        self._failed_starts = 0
        self.workers.append(info)
        self._idle.append(actor)

    def _start_worker(self) -> None:
        import ray

        options = self._options
        make = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_restarts=0)(_Actor)
        if self._factory_reference is None:
            # Sent once, however many workers there are: it may contain a model.
            self._factory_reference = ray.put(self._factory)
        actor: Any = make.remote(self._factory_reference, options.cpus, os.getcwd())
        self._starting[actor.start.remote()] = actor

    def _worker_count(self) -> int:
        options, (resources, _) = self._options, cluster_resources()
        if options.workers is not None and options.address != LOCAL:
            # Ray's autoscaler may add machines.
            return options.workers
        fitting = int(resources.get("CPU", 0) // options.cpus)
        if options.gpus:
            fitting = min(fitting, int(resources.get("GPU", 0) / options.gpus))
        if fitting < 1:
            hint = "" if options.address == LOCAL else ". To let it grow, name --ray-workers"
            raise DeviceError(
                f"no worker of {options.cpus} CPUs and {options.gpus:g} GPUs fits into the "
                f"cluster; {describe_resources(self._options)}{hint}"
            )
        return options.workers or fitting

    def _disconnect(self) -> None:
        import ray

        busy = [actor for actor, _ in self._running.values()]
        for actor in (*self._idle, *self._starting.values(), *busy):
            with suppress(Exception):
                ray.kill(actor)
        ray.shutdown()


class _Actor:
    """A worker in a process of its own."""

    def __init__(self, factory: WorkerFactory, cpus: int, folder: str) -> None:
        # Relative paths mean the same as in the driver, if the machines share a file system.
        with suppress(OSError):
            os.chdir(folder)
        self._cores = ReservedCores(cpus)
        self._factory = factory

    def start(self) -> WorkerInfo:
        """Make the worker; errors are raised to the pool, unlike those of `__init__`."""
        import platform

        self._worker = self._factory()
        describe = getattr(self._worker, "describe", dict)
        return WorkerInfo(platform.node(), __version__, describe())

    def run(self, task: Any) -> Any:
        """Run a task."""
        return self._worker(task)


def _reason(error: BaseException) -> str:
    """Return the reason of Ray in one line.

    That is the first line of its message, unless it quotes the traceback of a worker, which ends
    with the reason.
    """
    text = str(error)
    if "Traceback" in text or "creation task" in text:
        return one_line(error)
    return next((line.strip()[:200].rstrip(".") for line in text.splitlines() if line.strip()), "")
