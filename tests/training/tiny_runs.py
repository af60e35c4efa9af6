"""Settings of runs that train in a second."""

from __future__ import annotations

from pathlib import Path

from fada_deploy.training.config import RunConfig
from fada_deploy.training.settings import make_config


def tiny_config(blocks: Path, stages: tuple[str, ...], *settings: str) -> RunConfig:
    """Return settings of the backbone `tiny` on the data sets of the fixture `blocks`."""
    return make_config(
        recipe="small", file=None,
        settings=["size=96x64", "src_size=96x64", "backbone=tiny", "amp=off", *settings],
        options={
            "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"),
            "stages": stages,
        },
    )  # fmt: skip
