"""A Ray cluster for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Start a cluster with two cores; yield its address."""
    from ray.cluster_utils import Cluster

    # The workers import the module of their factory.
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_USAGE_STATS_ENABLED")}
    path = os.pathsep.join([str(Path(__file__).parent), before["PYTHONPATH"] or ""])
    os.environ.update(PYTHONPATH=path, RAY_USAGE_STATS_ENABLED="0")
    resources = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    yield cluster.address
    cluster.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
