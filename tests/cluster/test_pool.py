"""The pool of Ray workers: results, lost workers, errors. One cluster serves all tests."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from squares import Squares

from fada_deploy.cluster import pool as pool_module
from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.cores import ReservedCores
from fada_deploy.cluster.pool import MAX_ATTEMPTS, LostTask, WorkerPool
from fada_deploy.common.errors import DataError, DeviceError, MissingExtraError, UsageError


def tasks(*entries: tuple[str, int]) -> Callable[[], tuple[str, int] | None]:
    iterator = iter(entries)
    return lambda: next(iterator, None)


def options(address: str, **values: Any) -> ClusterOptions:
    return ClusterOptions(address=address, **values)


def test_results_and_lost_workers(address: str, tmp_path: Path) -> None:
    """The task of a lost worker is run again; one that always ends its worker is given up."""
    entries = [("square", n) for n in range(20)]
    entries[3:3] = [("die", 1), ("die once", 7)]
    with WorkerPool(partial(Squares, tmp_path), options(address)) as pool:
        results = dict(pool.run(tasks(*entries)))
        assert len(pool.workers) >= 2
        # Two if the workers of another test process have reserved the cores.
        assert all(worker.details["cores"] in (1, os.cpu_count()) for worker in pool.workers)
    assert results["die once", 7] == 49
    assert isinstance(results["die", 1], LostTask)
    assert all(results["square", n] == n * n for n in range(20))
    assert len((tmp_path / "die-1").read_text()) == MAX_ATTEMPTS
    assert len((tmp_path / "square-5").read_text()) == 1


def test_tasks_that_results_bring_about(address: str, tmp_path: Path) -> None:
    waiting = [("square", 2)]

    def take() -> tuple[str, int] | None:
        return waiting.pop() if waiting else None

    with WorkerPool(partial(Squares, tmp_path), options(address, workers=1)) as pool:
        seen = []
        for _, result in pool.run(take):
            seen.append(result)
            if result < 1000:
                waiting.append(("square", result))
    assert seen == [4, 16, 256, 65536]


def test_errors(address: str, tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="cannot be opened"),
        WorkerPool(partial(Squares, tmp_path, ready=False), options(address)) as pool,
    ):
        list(pool.run(tasks(("square", 1))))
    with (
        pytest.raises(DataError, match="3 is bad"),
        WorkerPool(partial(Squares, tmp_path), options(address)) as pool,
    ):
        list(pool.run(tasks(("fail", 3))))
    with pytest.raises(DeviceError, match="2 CPUs"), WorkerPool(Squares, options(address, cpus=3)):
        pass
    with pytest.raises(DeviceError, match="GPUs"), WorkerPool(Squares, options(address, gpus=1)):
        pass
    with pytest.raises(UsageError, match=r"1\.5"):
        options(address, gpus=1.5)


def test_a_missing_package_is_named_by_its_command(address: str, tmp_path: Path) -> None:
    """Errors keep their type and message between processes, and Ray the handler of SIGTERM."""
    error = pickle.loads(pickle.dumps(MissingExtraError("openvino", "openvino")))
    assert str(error) == str(MissingExtraError("openvino", "openvino"))
    handler = signal.getsignal(signal.SIGTERM)
    with WorkerPool(partial(Squares, tmp_path), options(address, workers=1)) as pool:
        assert signal.getsignal(signal.SIGTERM) is handler
        stop = threading.Event()
        stop.set()
        assert list(pool.run(tasks(("square", 1)), stop)) == []


def test_a_process_that_is_connected_already(address: str) -> None:
    ray.init(address=address, log_to_driver=False)
    try:
        with pytest.raises(UsageError, match="already"), WorkerPool(Squares, options(address)):
            pass
    finally:
        ray.shutdown()


def test_waiting_for_room(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for a worker, the reason is logged, and the pool waits for more machines."""
    monkeypatch.setattr(pool_module, "_PATIENCE_S", 0.0)
    wanted = options(address, workers=1, cpus=3)

    class LoggedError(Exception):
        pass

    def raise_when_logged() -> tuple[str, int]:
        return "square", 1

    with WorkerPool(partial(Squares, tmp_path), wanted) as pool:
        monkeypatch.setattr(pool_module.logger, "warning", _raise(LoggedError))
        with pytest.raises(LoggedError, match="2 CPUs"):
            list(pool.run(raise_when_logged))


def test_machines_that_are_added_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job begins with the workers for which there is room; the others join it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    resources = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={**resources, "include_dashboard": False}
    )
    numbers = iter(range(100_000))
    try:
        wanted = options(cluster.address, workers=2)
        with WorkerPool(partial(Squares, tmp_path), wanted) as pool:

            def take() -> tuple[str, int] | None:
                return None if len(pool.workers) == 2 else ("square", next(numbers))

            for (_, value), result in pool.run(take):
                assert result == value * value
                if value == 2:
                    assert len(pool.workers) == 1
                    cluster.add_node(**resources)
            assert len(pool.workers) == 2
    finally:
        cluster.shutdown()


def _raise(kind: type[Exception]) -> Callable[..., None]:
    def log(message: str, *arguments: object) -> None:
        raise kind(message % arguments)

    return log


def test_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="ray start"):
        WorkerPool(Squares, options("127.0.0.1:1")).__enter__()
    monkeypatch.setattr("fada_deploy.common.system.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="ray"):
        WorkerPool(Squares, ClusterOptions())


def test_reserved_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each core is given to one worker; more than there are leave the process unpinned."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("fada_deploy.common.system._CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    assert not ReservedCores(1).cores
    (tmp_path / "cpu.max").write_text("max 100000\n")
    all_cores = os.sched_getaffinity(0)
    try:
        first = ReservedCores(1)
        assert os.sched_getaffinity(0) == first.cores
        os.sched_setaffinity(0, all_cores)
        too_many = ReservedCores(len(all_cores) + 1)
        assert not too_many.cores
        if len(all_cores) > 1:
            second = ReservedCores(1)
            assert not second.cores & first.cores
            second.release()
        first.release()
    finally:
        os.sched_setaffinity(0, all_cores)


def test_time_is_not_spent_waiting(address: str, tmp_path: Path) -> None:
    """A pool without tasks ends at once, although no worker is ready."""
    start = time.monotonic()
    with WorkerPool(partial(Squares, tmp_path), options(address)) as pool:
        assert list(pool.run(tasks())) == []
    assert time.monotonic() - start < 60
