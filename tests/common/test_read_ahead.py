"""The read-ahead loop: order, errors in place of items, bounded depth, early close."""

from __future__ import annotations

import threading
import time

import pytest

from fada_deploy.common.errors import DataError
from fada_deploy.common.read_ahead import read_ahead


def test_yields_items_in_order_although_later_ones_finish_first() -> None:
    def read(i: int) -> int:
        time.sleep(0.002 * (5 - i % 5))
        return i * i

    assert list(read_ahead(read, 17, threads=4, depth=8)) == [i * i for i in range(17)]


def test_yields_a_data_error_in_place_of_its_item() -> None:
    def read(i: int) -> int:
        if i == 1:
            raise DataError("1.png is damaged")
        return i

    first, second, third = read_ahead(read, 3, threads=2, depth=2)
    assert (first, third) == (0, 2)
    assert isinstance(second, DataError) and str(second) == "1.png is damaged"


def test_raises_any_other_exception() -> None:
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda i: 1 // i, 3, threads=2, depth=2))


def test_reads_at_most_depth_items_ahead_and_stops_when_closed() -> None:
    read_indices: list[int] = []
    lock = threading.Lock()

    def read(i: int) -> int:
        with lock:
            read_indices.append(i)
        return i

    items = read_ahead(read, 100, threads=2, depth=4)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(read_indices) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert sorted(read_indices) == [0, 1, 2, 3]
    items.close()
    assert len(read_indices) == 4
