"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fada_deploy.common.errors import DeviceError, UsageError, one_line
from fada_deploy.common.system import usable_cores

# Starts a cluster on this machine.
LOCAL = "local"
# Seconds to wait for a connection to a cluster.
_CONNECT_S = 10.0
# The smallest object store of Ray. Tasks and results are small, frames do not pass through it.
_OBJECT_STORE_BYTES = 100 << 20


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where tasks run.

    Attributes:
        address: Address of a running Ray cluster, "auto" for the one of this machine, or `LOCAL`.
        workers: Number of workers [as many as fit into the cluster when the job starts]. Workers
            for which there is no room wait until Ray's autoscaler adds machines.
        cpus: CPU cores of each worker.
        gpus: GPUs of each worker; a fraction lets several workers share a GPU.
    """

    address: str = LOCAL
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        # Ray counts GPUs in ten-thousandths.
        is_fraction = 0.0001 <= self.gpus < 1
        if self.gpus and not is_fraction and self.gpus != int(self.gpus):
            raise UsageError(
                f"the GPUs of a worker must be a whole number or a fraction of 1, got {self.gpus:g}"
            )


def worker_device(device: str, options: ClusterOptions) -> str:
    """Return the device of a worker for what the user asked for: "auto", "cpu", "cuda" or "cuda:N".

    A worker uses no GPU that it has not reserved. Ray numbers the reserved ones from 0. Raise
    `UsageError` if the workers have no such GPU. Other names are returned unchanged, for the worker
    to refuse.
    """
    name, _, index = device.partition(":")
    if name != "cuda":
        return "cpu" if device == "auto" and not options.gpus else device
    if not options.gpus:
        raise UsageError(
            f"--device {device}: the workers have no GPU; add --ray-gpus 1, or a fraction such as "
            "0.25 to share a GPU"
        )
    if index.isdecimal() and int(index) >= max(1, options.gpus):
        raise UsageError(f"--device {device}: each worker numbers its own GPUs from 0; use cuda")
    return device


def connect(options: ClusterOptions) -> None:
    """Connect this process to a cluster, or start one; raise `DeviceError` if there is none."""
    import ray

    if ray.is_initialized():
        raise UsageError("this process is already connected to a Ray cluster; disconnect first")
    # Its notices are not about this command; errors are raised.
    logging.getLogger("ray").setLevel(logging.ERROR)
    settings: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": False,
    }
    if options.address == LOCAL:
        # A cluster that nobody else uses sends no usage statistics and has no dashboard.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        settings |= {
            "num_cpus": max(usable_cores(), (options.workers or 0) * options.cpus),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        _check_address(options.address)
        with _signal_handlers_kept():
            ray.init(address=options.address, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise DeviceError(_why_not_connected(options.address, error)) from None


def _why_not_connected(address: str, error: Exception) -> str:
    if "Version mismatch" in str(error):
        reason = " ".join(str(error).split())
        return f"{reason}; install the same versions of Ray and Python on all machines"
    if address == LOCAL:
        return f"a Ray cluster cannot be started on this machine ({one_line(error)})"
    return (
        f"no Ray cluster at {address} ({one_line(error)}); start one with `ray start --head`, or "
        "use --ray without an address"
    )


def describe_resources(options: ClusterOptions) -> str:
    """Return a clause about what the cluster has, and what the workers need."""
    total, free = cluster_resources()
    return (
        f"the cluster has {total.get('CPU', 0):g} CPUs ({free.get('CPU', 0):g} free) and "
        f"{total.get('GPU', 0):g} GPUs ({free.get('GPU', 0):g} free), a worker needs "
        f"{options.cpus} CPUs and {options.gpus:g} GPUs"
    )


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces by one that exits at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _check_address(address: str) -> None:
    """Raise `OSError` if nothing listens at HOST:PORT, for which Ray would wait for minutes."""
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def cluster_resources() -> tuple[dict[str, float], dict[str, float]]:
    """Return all resources of the cluster, and those that are free."""
    # Ray's functions for it have no types.
    import ray as ray_module

    ray: Any = ray_module
    return ray.cluster_resources(), ray.available_resources()
