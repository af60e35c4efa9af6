"""The sampler against the published rule, replayed with counts of its own."""

from __future__ import annotations

import numpy as np
import pytest

from fada_deploy.common.errors import DataError
from fada_deploy.training.data.samplers import BLOCK, ClassBalancedSampler, ShuffledSampler

RNG = np.random.default_rng(0)
# 60 files: class 0 everywhere, 1 in half, 2 in one file alone, 3 nowhere.
CONTAINS = np.zeros((60, 4), bool)
CONTAINS[:, 0] = True
CONTAINS[::2, 1] = True
CONTAINS[7, 2] = True


def test_positions_are_a_pure_function_of_the_seed() -> None:
    order, again = ClassBalancedSampler(CONTAINS, 5), ClassBalancedSampler(CONTAINS, 5)
    assert [again[p] for p in (BLOCK + 9, 3)] == [order[p] for p in (BLOCK + 9, 3)]
    assert [order[p] for p in range(50)] != [
        ClassBalancedSampler(CONTAINS, 6)[p] for p in range(50)
    ]
    assert [order[p] for p in range(50)] != [order[BLOCK + p] for p in range(50)]


def test_classes_are_drawn_as_the_published_probabilities_say() -> None:
    """Average the class probabilities by the rule over replayed draws; compare the rare file's share."""
    order = ClassBalancedSampler(CONTAINS, 1)
    drawn = [order[p] for p in range(BLOCK)]
    counts, mean_rare = np.zeros(4), 0.0
    for file in drawn:
        share = counts / counts.sum() if counts.sum() else counts
        weight = 1 / np.log(1.01 + share[:3])
        mean_rare += weight[2] / weight.sum() / BLOCK
        counts += CONTAINS[file]
    # The file of class 2 comes with class 2, and seldom through the lists of class 0.
    in_others = (1 - mean_rare) / 60
    assert drawn.count(7) / BLOCK == pytest.approx(mean_rare + in_others, abs=0.03)
    assert mean_rare > 0.3, "a class of one file must be drawn far more often than its 1 in 60"


def test_a_class_list_is_gone_through_before_it_repeats() -> None:
    order = ClassBalancedSampler(np.ones((10, 1), bool), 3)
    for start in range(0, 50, 10):
        assert sorted(order[start + i] for i in range(10)) == list(range(10))


def test_no_class_anywhere_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="is the label encoding right"):
        ClassBalancedSampler(np.zeros((5, 3), bool), 0)


def test_shuffled_order_shows_every_frame_once_an_epoch() -> None:
    order = ShuffledSampler(17, 4)
    epochs = [[order[e * 17 + i] for i in range(17)] for e in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert order[20] == ShuffledSampler(17, 4)[20]
