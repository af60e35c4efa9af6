"""CPU cores, memory and installed versions of this process."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import numpy as np
import pytest

from fada_deploy.common import system
from fada_deploy.common.system import (
    installed_version,
    memory_mib,
    throughput_parallelism,
    usable_cores,
)


@pytest.fixture(autouse=True)
def no_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide a quota of the machine that runs the tests."""
    monkeypatch.setattr(system, "_CGROUP", tmp_path)


def test_usable_cores_are_those_of_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert usable_cores() == 3 == throughput_parallelism()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    assert usable_cores() == 32 and throughput_parallelism() == 4


def test_usable_cores_without_an_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


def test_peak_memory_includes_released_memory() -> None:
    if memory_mib() is None:
        pytest.skip("this system has no /proc/self/status")
    before = memory_mib()
    block = np.ones(64 << 20, np.uint8)
    del block
    peak = memory_mib(peak=True)
    assert before is not None and peak is not None and peak >= before + 60


def test_memory_is_unknown_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> str:
        raise OSError

    monkeypatch.setattr(system.Path, "read_text", missing)
    assert memory_mib() is None


def test_version_of_a_missing_distribution_is_none() -> None:
    assert installed_version("numpy") == importlib.metadata.version("numpy")
    assert installed_version("no-such-distribution") is None
