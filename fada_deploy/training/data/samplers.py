"""Samplers: the frame at each position of training, as a pure function of (seed, position).

There is no iterator state to save: a resumed run asks for the same positions and gets the same
frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError

BLOCK = 3000
# Draws over which the sources have exactly their parts of a mixture.
MIXTURE_BLOCK = 100


_NO_CLASS = "no source label contains a class of the label space; check the label encoding"


class Sampler(Protocol):
    """An endless sequence of frame indices."""

    def __getitem__(self, position: int) -> int:
        """Return the frame index at a position, counted from 0 over the whole training."""
        ...


class EvenSampler:
    """Draw every frame once per epoch, in the order of the data set."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __getitem__(self, position: int) -> int:
        """Return the frame index at a position."""
        return position % self._length


class ShuffledSampler:
    """Draw every frame once per epoch, in a new random order each epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(length)
        )

    def __getitem__(self, position: int) -> int:
        """Return the frame index at a position of the endless sequence."""
        return int(self._permutation(position // self._length)[position % self._length])


class ClassBalancedSampler:
    """Draw files so that rare classes appear more often, as the released FADA code does.

    `contains` (N, C) bool tells which of N files contain which of C classes. Each step draws a
    class with probability ∝ 1 / log(1.01 + p_c), where p_c = n_c / Σ n and n_c counts the files
    with class c among those drawn so far, then takes the next file of that class's shuffled list.
    The counts restart every `BLOCK` draws, so that a position can be computed without replaying
    the whole training. Raise `DataError` if no file contains any class.
    """

    def __init__(self, contains: NDArray[np.bool_], seed: int) -> None:
        self._contains = contains
        self._files_by_class = [np.flatnonzero(column) for column in contains.T]
        self._present_classes = np.flatnonzero(contains.any(axis=0))
        if not self._present_classes.size:
            raise DataError(_NO_CLASS)
        self._block = lru_cache(maxsize=2)(
            lambda block: self._draw_block(np.random.default_rng([seed, block]))
        )

    def __getitem__(self, position: int) -> int:
        """Return the frame index at a position of the endless sequence."""
        return self._block(position // BLOCK)[position % BLOCK]

    def _draw_block(self, rng: np.random.Generator) -> Sequence[int]:
        counts = np.zeros(self._contains.shape[1])
        remaining: dict[int, list[int]] = {}
        drawn = []
        for _ in range(BLOCK):
            frequency = counts / max(counts.sum(), 1.0)
            weight = 1 / np.log(1.01 + frequency[self._present_classes])
            chosen = int(rng.choice(self._present_classes, p=weight / weight.sum()))
            if not remaining.get(chosen):
                remaining[chosen] = rng.permutation(self._files_by_class[chosen]).tolist()
            file = remaining[chosen].pop()
            counts += self._contains[file]
            drawn.append(file)
        return drawn


class RareClassSampler:
    """Draw files of rare classes more often (Hoyer et al., CVPR 2022, DAFormer, eq. 9).

    `pixels` (N, C) counts the pixels of C classes in N files. A class is drawn with probability
    ∝ exp((1 − f_c) / `temperature`), where f_c is its fraction of all pixels, and then one of the
    files that contain it. Raise `DataError` if no file contains any class.
    """

    def __init__(self, pixels: NDArray[np.int64], temperature: float, seed: int) -> None:
        present = np.flatnonzero(pixels.any(axis=0))
        if not present.size:
            raise DataError(_NO_CLASS)
        fractions = pixels.sum(0)[present] / pixels.sum()
        # The largest exponent is 0, so that a small temperature does not overflow.
        weights = np.exp((fractions.min() - fractions) / temperature)
        self.probabilities = weights / weights.sum()
        self._files = [np.flatnonzero(pixels[:, k]) for k in present.tolist()]
        self._seed = seed

    def __getitem__(self, position: int) -> int:
        """Return the frame index at a position of the endless sequence."""
        rng = np.random.default_rng([self._seed, position])
        files = self._files[int(rng.choice(len(self._files), p=self.probabilities))]
        return int(files[rng.integers(len(files))])


class MixtureSampler:
    """Draw from several samplers, each with its part of the positions.

    `samplers[d]` yields indices into source `d`, whose first frame has the index `offsets[d]`.
    Every `MIXTURE_BLOCK` positions contain round(weight · MIXTURE_BLOCK) draws of each source, in a
    random order; every source gets at least one. `weights` sum to 1.
    """

    def __init__(
        self,
        samplers: Sequence[Sampler],
        offsets: Sequence[int],
        weights: Sequence[float],
        seed: int,
    ) -> None:
        self._samplers, self._offsets = samplers, offsets
        ends = np.round(np.cumsum(weights) * MIXTURE_BLOCK).astype(int)
        self._draws = np.maximum(np.diff(ends, prepend=0), 1)
        self._block = lru_cache(maxsize=2)(lambda block: self._draw_block(seed, block))

    def __getitem__(self, position: int) -> int:
        """Return the frame index at a position of the endless sequence."""
        length = int(self._draws.sum())
        source, number = self._block(position // length)[position % length]
        return self._offsets[source] + self._samplers[source][number]

    def _draw_block(self, seed: int, block: int) -> list[tuple[int, int]]:
        """Return (source, number of its draw) for each position of a block."""
        order = np.repeat(np.arange(len(self._draws)), self._draws)
        order = np.random.default_rng([seed, block]).permutation(order)
        next_draw = (block * self._draws).tolist()
        drawn = []
        for source in order.tolist():
            drawn.append((source, next_draw[source]))
            next_draw[source] += 1
        return drawn
