"""Data checks and evaluations on a Ray cluster equal those of one process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.mapping import LostItemError, map_on_cluster
from fada_deploy.common.errors import DataError

Run = Callable[..., tuple[int, str, str]]
DATA = """[labels]
encoding = "trainId"
[splits.val]
images = "images/*.png"
labels = "labels/{stem}.png"
"""


def cubes(poisoned: int) -> Callable[[int], int]:
    def compute(i: int) -> int:
        if i == poisoned:
            os._exit(1)
        if i == 7:
            raise DataError("7 is bad")
        return i**3

    return compute


def test_items_arrive_in_order(address: str) -> None:
    """An item that ends its worker is reported, and so is one that raises."""
    options = ClusterOptions(address=address)
    items = list(map_on_cluster(lambda: cubes(40), 70, options, name=lambda i: f"item {i}"))
    errors = {i: str(item) for i, item in enumerate(items) if isinstance(item, DataError)}
    assert errors.keys() == {7, 40}
    assert errors[7] == "7 is bad"
    assert errors[40].startswith("item 40: its worker was lost")
    assert isinstance(items[40], LostItemError) and not isinstance(items[7], LostItemError)
    assert all(item == i**3 for i, item in enumerate(items) if i not in errors)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 frames of which one is broken, with labels."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index in range(40):
        frame = rng.integers(0, 256, (48, 96, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"images/{index:02d}.png"), frame)
        labels = rng.integers(0, 11, (48, 96), dtype=np.uint8)
        cv2.imwrite(str(folder / f"labels/{index:02d}.png"), labels)
    (folder / "images/13.png").write_bytes(b"no image")
    path = folder / "data.toml"
    path.write_text(DATA)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["eval", "builtin", "--backend", "onnxruntime", "--data"],
        ["data", "check", "--split", "val", "--label-space", "driving-11"],
    ],
)
def test_results_equal_those_of_one_process(
    command: list[str], address: str, dataset: Path, fada: Run
) -> None:
    code, local, _ = fada(*command, dataset, "--json")
    cluster_code, stdout, stderr = fada(*command, dataset, "--json", "--ray", address)
    assert cluster_code == code == 1, stderr
    documents = [json.loads(text) for text in (local, stdout)]
    for document in documents:
        for name in ("seconds", "jobs"):
            document.pop(name, None)
    assert documents[0] == documents[1]
    assert "13.png" in stdout
