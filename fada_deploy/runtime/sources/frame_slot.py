"""The one-frame buffer between the thread that reads a live source and the pipeline."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from fada_deploy.runtime.sources.base import Frame

DROP_POLICIES = ("drop-oldest", "drop-newest", "wait")


@dataclass
class StreamCounters:
    """What went wrong while a live source was read, since it was opened first.

    Attributes:
        dropped: Frames dropped by the policy.
        late: Frames and results dropped because they exceeded the deadline.
        damaged: Packets that could not be decoded.
        reconnects: How often the connection was opened again.
    """

    dropped: int = 0
    late: int = 0
    damaged: int = 0
    reconnects: int = 0


class FrameSlot:
    """A buffer for one frame.

    The reader `put`s frames, the pipeline `take`s them. If the slot is full, the drop policy
    decides: "drop-oldest" replaces the waiting frame, "drop-newest" drops the new one, and "wait"
    blocks the reader. Dropped frames are counted in `counters`. Several slots share the condition
    `changed`, so that one thread can wait for all of them.
    """

    def __init__(
        self, drop_policy: str, changed: threading.Condition, counters: StreamCounters
    ) -> None:
        self.drop_policy = drop_policy
        self._frames: deque[Frame] = deque()
        self._changed = changed
        self.closed = False
        self._counters = counters

    def put(self, frame: Frame) -> bool:
        """Offer a frame; return False if the slot is closed."""
        with self._changed:
            if self.drop_policy == "wait":
                self._changed.wait_for(lambda: self.closed or not self._frames)
            elif self._frames:
                self._counters.dropped += 1
                if self.drop_policy == "drop-newest":
                    return not self.closed
                self._frames.clear()
            self._frames.append(frame)
            self._changed.notify_all()
            return not self.closed

    @property
    def drops(self) -> bool:
        """Whether frames may be dropped."""
        return self.drop_policy != "wait"

    @property
    def ready(self) -> bool:
        """Whether `take` would return a frame, or the slot is closed."""
        return self.closed or bool(self._frames)

    def take(self) -> Frame | None:
        """Return the waiting frame, or None if there is none."""
        with self._changed:
            frame = self._frames.popleft() if self._frames else None
            self._changed.notify_all()
            return frame

    def close(self) -> None:
        """Wake up all waiting threads; a frame in the slot can still be taken."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
