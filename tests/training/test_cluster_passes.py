"""Pseudo-labels and thresholds that a Ray cluster computes are those of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.common.errors import UsageError
from fada_deploy.training import distributed
from fada_deploy.training.config import RunConfig
from fada_deploy.training.run import train
from fada_deploy.training.settings import make_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOptions]:
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args=resources)
    yield ClusterOptions(address=started.address, workers=1)
    started.shutdown()


def config(blocks: Path, stage: str, *settings: str) -> RunConfig:
    each = [f"{stage}.iterations=4", f"{stage}.batch=2", "size=96x64", "src_size=96x64", "amp=off"]
    return make_config(
        recipe="paper",
        file=None,
        settings=[*each, *settings],
        options={
            "src": str(blocks / "source.toml"),
            "tgt": str(blocks / "target.toml"),
            "backbone": "ddrnet23-slim",
            "init": "none",
            "stages": ("source", stage),
        },
    )


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("selftrain", ("selftrain.rounds=2", "selftrain.masked_weight=1")),
        ("distill", ("distill.size=96x64", "distill.crop=64x64")),
    ],
)
def test_weights_equal_those_of_one_process(
    stage: str, settings: tuple[str, ...], blocks: Path, cluster: ClusterOptions, tmp_path: Path
) -> None:
    settings = (*settings, "source.iterations=2", "source.batch=2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, where in (("local", None), ("cluster", cluster)):
            run = config(blocks, stage, *settings)
            train(run, tmp_path / name, device=CPU, cluster=where)
    finally:
        torch.set_num_threads(threads)
    local, remote = (
        load_file(tmp_path / name / stage / "weights.safetensors") for name in ("local", "cluster")
    )
    assert all(torch.equal(local[name], remote[name]) for name in local)
    if stage == "distill":
        files = [sorted((tmp_path / n / "distill/pseudo").iterdir()) for n in ("local", "cluster")]
        assert [p.name for p in files[0]] == [p.name for p in files[1]] != []
        assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def test_torchrun_and_a_cluster(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="torchrun"):
        train(config(blocks, "distill"), tmp_path / "run", device=CPU, cluster=ClusterOptions())
