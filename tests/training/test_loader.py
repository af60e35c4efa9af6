"""BatchLoader are a pure function of the iteration, and survive a bad file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fada_deploy.common.errors import DataError
from fada_deploy.training.data.loader import BatchLoader, Sample

BAD = 3


class Cycle:
    def __getitem__(self, position: int) -> int:
        return position % 7


class EveryOtherBad:
    def __getitem__(self, position: int) -> int:
        return BAD


def load(index: int, rng: np.random.Generator) -> Sample:
    if index == BAD:
        raise DataError("frame 3 is broken")
    frame = np.full((2, 4, 3), index, np.uint8)
    frame[0] += rng.integers(100, dtype=np.uint8)
    return frame, np.full((2, 4), index, np.uint8)


@contextmanager
def batches(order: object = None, ego: np.ndarray | None = None) -> Iterator[BatchLoader]:
    made = BatchLoader(load, order or Cycle(), batch=2, seed=5, device=torch.device("cpu"), ego=ego)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def test_a_batch_depends_on_its_iteration_alone() -> None:
    with batches() as whole, batches() as resumed:
        all_of_them = [whole[i] for i in range(12)]
        for i in range(9, 12):
            again = resumed[i]
            assert again.indices == all_of_them[i].indices
            assert torch.equal(again.frames_bhwc, all_of_them[i].frames_bhwc)
    assert all_of_them[2].indices == (4, 5) and all_of_them[0].labels.dtype == torch.int64
    assert not torch.equal(all_of_them[0].frames_bhwc, all_of_them[7].frames_bhwc)


def test_a_bad_file_is_replaced_by_the_next_and_named() -> None:
    with batches() as made:
        assert made[1].indices == (2, 4)
        assert list(made.bad) == ["frame 3 is broken"]


def test_nothing_but_bad_files_ends_the_run() -> None:
    with (
        batches(EveryOtherBad()) as made,
        pytest.raises(DataError, match=r"20 frames in a row.*frame 3 is broken"),
    ):
        made[0]


def test_the_bonnet_mask_comes_at_any_size() -> None:
    ego = np.zeros((2, 4), bool)
    ego[1] = True
    with batches(ego=ego) as made:
        ignore = made[0].ignore((4, 8))
    assert ignore is not None and ignore.shape == (2, 4, 8)
    assert not ignore[:, :2].any() and ignore[:, 2:].all()
    with batches() as made:
        assert made[0].ignore((4, 8)) is None
