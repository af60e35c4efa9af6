"""Limits how many frames of live sources are between their readers and the caller."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.sources.base import Frame, SourceEnd


class InFlight:
    """The frames of live sources that were read, but that the caller has not finished with.

    Every stage of the pipeline can hold frames. If the caller is slow, they wait there and get old,
    while newer ones are dropped. Therefore no frame is read while `limit` others are on their way.

    The pipeline keeps the order of its items, so an item that reaches the caller shows that no
    earlier one will.

    Attributes:
        changed: Notified when a frame has left; readers of live sources notify it, too.
    """

    def __init__(self, limit: int) -> None:
        self.changed = threading.Condition()
        self._limit = limit
        self._frames: deque[tuple[str, int]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether no further frame may be read."""
        return len(self._frames) >= self._limit

    def add(self, frame: Frame) -> None:
        """Count a frame that was read."""
        with self.changed:
            self._frames.append((frame.source, frame.index))

    def finished(self, item: Any) -> None:
        """Forget the frames up to an item with which the caller has finished.

        The item is a `Result`, the `DataError` of a frame that could not be written, or a
        `SourceEnd`. Frames of a source whose files cannot be written do not reach the caller; its
        end does.
        """
        with self.changed:
            if isinstance(item, SourceEnd):
                left = (key for key in self._frames if key[0] != item.source.name)
                self._frames = deque(left)
            elif isinstance(item, DataError):
                if self._frames:
                    self._frames.popleft()
            elif (key := (item.source, item.index)) in self._frames:
                while self._frames.popleft() != key:
                    pass
            self.changed.notify_all()
