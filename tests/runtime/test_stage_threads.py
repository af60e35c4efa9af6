"""Stages in threads: order, exceptions, back-pressure, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from fada_deploy.runtime.stage_threads import chain_stages


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("fada-")]


def fail_at(count: int, error: BaseException) -> Any:
    """Return a stage that yields `count` items and then raises."""

    def stage(items: Iterator[Any]) -> Generator[Any, None, None]:
        for i, item in enumerate(items):
            if i == count:
                raise error
            yield item

    return stage


def passthrough(items: Iterator[Any]) -> Generator[Any, None, None]:
    yield from items


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_exception_of_a_stage_follows_the_good_items(failing: int) -> None:
    stages = {f"s{i}": passthrough for i in range(3)}
    stages[f"s{failing}"] = fail_at(7, ValueError("broken"))
    items_read = []
    with pytest.raises(ValueError, match="broken"):
        for item in chain_stages(range(100), stages):
            items_read.append(item)
    assert items_read == list(range(7))


def test_exception_of_the_source_and_no_exception() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        list(chain_stages(source(), {"a": passthrough}))
    assert list(chain_stages(range(1000), {"a": passthrough, "b": passthrough})) == list(
        range(1000)
    )
    assert list(chain_stages([], {"a": passthrough})) == []


def test_slow_reader_blocks_the_writer() -> None:
    given = 0

    def source() -> Iterator[int]:
        nonlocal given
        for i in range(1000):
            given = i
            yield i

    items = chain_stages(source(), {"a": passthrough, "b": passthrough}, depth=2)
    assert next(items) == 0
    time.sleep(0.1)
    # One item at the caller, two in each channel, one in each stage.
    assert given <= 7
    items.close()


def test_interrupt_in_the_caller_joins_all_threads() -> None:
    def caller() -> None:
        for item in chain_stages(range(1000), {"a": passthrough, "b": passthrough}):
            if item == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caller()
