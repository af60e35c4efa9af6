"""Compute the items of a sequence on a Ray cluster, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from fada_deploy.cluster.connection import ClusterOptions
from fada_deploy.cluster.pool import LostTask, WorkerPool
from fada_deploy.common.errors import DataError
from fada_deploy.common.read_ahead import read_ahead
from fada_deploy.common.system import usable_cores

T = TypeVar("T")


class LostItemError(DataError):
    """An item whose worker was lost each time; the reason may be the machine and not the item."""


# Items that a worker computes at a time.
_CHUNK = 32
# Chunks that may be computed before an earlier one, so that results in the driver are bounded.
_AHEAD = 64


@dataclass(frozen=True)
class _Chunk:
    start: int
    stop: int


class _ChunkWorker(Generic[T]):
    """Computes chunks of items in as many threads as the worker has cores."""

    def __init__(self, make: Callable[[], Callable[[int], T]]) -> None:
        self._compute = make()

    def __call__(self, chunk: _Chunk) -> list[T | DataError]:
        threads = usable_cores()
        items = read_ahead(
            lambda i: self._compute(chunk.start + i),
            chunk.stop - chunk.start,
            threads=threads,
            depth=2 * threads,
        )
        with closing(items):
            return list(items)


def map_on_cluster(
    make: Callable[[], Callable[[int], T]],
    count: int,
    options: ClusterOptions,
    *,
    name: Callable[[int], str] = str,
) -> Generator[T | DataError, None, None]:
    """Yield the items 0 … `count` - 1 in order, like `read_ahead`.

    Args:
        make: Called once in each worker; returns the function that computes an item. Both are sent
            with Ray's pickle.
        count: Number of items.
        options: The workers.
        name: Returns the name of an item, for the error of one whose worker is lost each time.
    """
    chunks = deque(_Chunk(i, min(i + _CHUNK, count)) for i in range(0, count, _CHUNK))
    results: dict[int, T | DataError] = {}
    next_item = 0

    def take() -> _Chunk | None:
        if chunks and chunks[0].start < next_item + _AHEAD * _CHUNK:
            return chunks.popleft()
        return None

    with (
        WorkerPool(partial(_ChunkWorker, make), options) as pool,
        closing(pool.run(take)) as finished,
    ):
        for chunk, values in finished:
            if isinstance(values, LostTask):
                if chunk.stop - chunk.start > 1:
                    # One of the items ends the worker; the others are computed without it.
                    chunks.extendleft(_Chunk(i, i + 1) for i in range(chunk.start, chunk.stop))
                    continue
                values = [LostItemError(f"{name(chunk.start)}: {values.reason}")]
            results.update(enumerate(values, chunk.start))
            while next_item in results:
                yield results.pop(next_item)
                next_item += 1
