"""Samplers: the class-balanced one against the published rule, recomputed from its draws."""

from __future__ import annotations

import numpy as np
import pytest

from fada_deploy.common.errors import DataError
from fada_deploy.training.data.samplers import BLOCK, ClassBalancedSampler, ShuffledSampler

# 60 files: class 0 in all of them, class 1 in half, class 2 in a single file, class 3 in none.
CONTAINS = np.zeros((60, 4), bool)
CONTAINS[:, 0] = True
CONTAINS[::2, 1] = True
CONTAINS[7, 2] = True


def test_draws_depend_only_on_seed_and_position() -> None:
    sampler, same_seed = ClassBalancedSampler(CONTAINS, 5), ClassBalancedSampler(CONTAINS, 5)
    other_seed = ClassBalancedSampler(CONTAINS, 6)
    assert [same_seed[p] for p in (BLOCK + 9, 3)] == [sampler[p] for p in (BLOCK + 9, 3)]
    first_block = [sampler[p] for p in range(50)]
    assert first_block != [other_seed[p] for p in range(50)]
    assert first_block != [sampler[BLOCK + p] for p in range(50)]


def test_draws_classes_with_the_published_probabilities() -> None:
    """Average the class probabilities over the draws; compare with how often the rare file came."""
    sampler = ClassBalancedSampler(CONTAINS, 1)
    drawn = [sampler[p] for p in range(BLOCK)]
    counts, mean_probability = np.zeros(4), 0.0
    for file in drawn:
        frequency = counts / counts.sum() if counts.sum() else counts
        weight = 1 / np.log(1.01 + frequency[:3])
        mean_probability += weight[2] / weight.sum() / BLOCK
        counts += CONTAINS[file]
    # The only file of class 2 is also drawn, rarely, through the list of class 0.
    through_class_0 = (1 - mean_probability) / 60
    expected = mean_probability + through_class_0
    assert drawn.count(7) / BLOCK == pytest.approx(expected, abs=0.03)
    assert mean_probability > 0.3, "a class of one file must come far more often than 1 in 60"


def test_draws_every_file_of_a_class_before_repeating_one() -> None:
    sampler = ClassBalancedSampler(np.ones((10, 1), bool), 3)
    for start in range(0, 50, 10):
        assert sorted(sampler[start + i] for i in range(10)) == list(range(10))


def test_labels_without_any_class_raise_data_error() -> None:
    with pytest.raises(DataError, match="label encoding"):
        ClassBalancedSampler(np.zeros((5, 3), bool), 0)


def test_shuffled_sampler_draws_every_frame_once_per_epoch() -> None:
    sampler = ShuffledSampler(17, 4)
    epochs = [[sampler[e * 17 + i] for i in range(17)] for e in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert sampler[20] == ShuffledSampler(17, 4)[20]
