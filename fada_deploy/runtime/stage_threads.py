"""Run a chain of generator stages, each in its own thread.

A stage is a generator function from an iterator to an iterator. `chain_stages` runs every stage in
its own thread and connects consecutive stages with a bounded channel. Each stage reads and yields
in order, so the order is kept. A full channel blocks its writer, so memory use is bounded. An
exception travels through the channels behind the items that were produced before it, and is raised
to the caller.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

Stage = Callable[[Iterator[Any]], Generator[Any, None, None]]
# Items that wait between two stages. Two absorb the variation of the stages' times.
CHANNEL_DEPTH = 2


class _ChannelClosed(Exception):
    """The other end of the channel was closed."""


@dataclass(frozen=True)
class _EndOfItems:
    """The last item of a channel: the end of the stage, or the exception that ended it."""

    error: BaseException | None


class _Channel:
    """A bounded queue that wakes up both waiting ends when it is closed."""

    def __init__(self, depth: int) -> None:
        self._items: deque[Any] = deque()
        self._depth = depth
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if self._closed:
                raise _ChannelClosed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if self._closed:
                raise _ChannelClosed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


class _StageThread:
    """One stage that runs in its own thread."""

    def __init__(self, name: str, items: Generator[Any, None, None], depth: int) -> None:
        self._items = items
        self.channel = _Channel(depth)
        self.thread = threading.Thread(target=self._run, name=f"fada-{name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        end = _EndOfItems(None)
        try:
            # Closing the generator ends its `with` blocks in the thread that entered them.
            with closing(self._items):
                for item in self._items:
                    self.channel.put(item)
        except _ChannelClosed:
            return
        except BaseException as error:
            end = _EndOfItems(error)
        try:
            self.channel.put(end)
        except _ChannelClosed:
            return

    def __iter__(self) -> Iterator[Any]:
        while not isinstance(item := self.channel.get(), _EndOfItems):
            yield item
        if item.error is not None:
            raise item.error


def chain_stages(
    source: Iterable[Any], stages: Mapping[str, Stage], *, depth: int = CHANNEL_DEPTH
) -> Generator[Any, None, None]:
    """Yield the items of the last stage.

    An exception in any stage is raised here. All threads have ended when this generator ends,
    whether it was exhausted, closed, or left by an exception.
    """
    running: list[_StageThread] = []
    items = iter(source)
    try:
        for name, stage in stages.items():
            running.append(_StageThread(name, stage(items), depth))
            items = iter(running[-1])
        yield from items
    finally:
        for stage_thread in running:
            stage_thread.channel.close()
        for stage_thread in running:
            stage_thread.thread.join()
