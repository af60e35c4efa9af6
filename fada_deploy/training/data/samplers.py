"""Which frame is drawn when: pure functions of (seed, position), with no iterator to save.

A resumed run asks for the same positions and so sees the same frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError

BLOCK = 3000


class ShuffledSampler:
    """Every frame once per epoch, in an order of its own each epoch."""

    def __init__(self, length: int, seed: int) -> None:
        self._length = length
        self._permutation = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(length)
        )

    def __getitem__(self, position: int) -> int:
        """Return the frame at a position of the endless sequence."""
        return int(self._permutation(position // self._length)[position % self._length])


class ClassBalancedSampler:
    """Class-balanced source sampling of the released FADA code, restarted every 3000 draws.

    `contains` (N, C) bool says which of N files hold which of C classes. At each draw n_c counts the
    files drawn so far in the block that hold class c, p_c = n_c / Σ n, and a class is drawn with
    probability ∝ 1 / log(1.01 + p_c); then comes the next file of that class's shuffled list.
    """

    def __init__(self, contains: NDArray[np.bool_], seed: int) -> None:
        self._contains = contains
        self._files = [np.flatnonzero(column) for column in contains.T]
        self._present = np.flatnonzero(contains.any(axis=0))
        if not self._present.size:
            raise DataError(
                "no source label holds any class of the label space; is the label encoding right?"
            )
        self._block = lru_cache(maxsize=2)(
            lambda block: self._draw(np.random.default_rng([seed, block]))
        )

    def __getitem__(self, position: int) -> int:
        """Return the frame at a position of the endless sequence."""
        return self._block(position // BLOCK)[position % BLOCK]

    def _draw(self, rng: np.random.Generator) -> Sequence[int]:
        counts = np.zeros(self._contains.shape[1])
        waiting: dict[int, list[int]] = {}
        drawn = []
        for _ in range(BLOCK):
            share = counts / max(counts.sum(), 1.0)
            weight = 1 / np.log(1.01 + share[self._present])
            chosen = int(rng.choice(self._present, p=weight / weight.sum()))
            if not waiting.get(chosen):
                waiting[chosen] = rng.permutation(self._files[chosen]).tolist()
            file = waiting[chosen].pop()
            counts += self._contains[file]
            drawn.append(file)
        return drawn
