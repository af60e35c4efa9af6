"""Compute the items of a sequence ahead of their consumer, in threads and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from fada_deploy.common.errors import DataError

T = TypeVar("T")


def read_ahead(
    read: Callable[[int], T], count: int, *, threads: int, depth: int
) -> Generator[T | DataError, None, None]:
    """Yield `read(0)`, `read(1)`, …, `read(count - 1)`, of which up to `depth` are computed ahead.

    A `DataError` that `read` raises is yielded in place of its item, so that one unreadable file
    does not end the loop; any other exception is raised. Close the generator to discard the items
    that have not started, for example with `contextlib.closing`.
    """

    def read_or_error(index: int) -> T | DataError:
        try:
            return read(index)
        except DataError as error:
            return error

    indices = iter(range(count))
    with ThreadPoolExecutor(threads, "read-ahead") as pool:
        pending: deque[Future[T | DataError]] = deque(
            pool.submit(read_or_error, i) for i in islice(indices, depth)
        )
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(read_or_error, i) for i in islice(indices, 1))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
