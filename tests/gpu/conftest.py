"""Tests that need a GPU: `make test-gpu`. They are skipped where PyTorch finds none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="PyTorch finds no CUDA device"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda:0")
