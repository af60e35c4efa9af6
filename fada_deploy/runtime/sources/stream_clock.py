"""Timestamps of a live source, and their pace."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds by which a stream's timestamps may jump before the jump counts as a new recording.
_MAX_JUMP_S = 5.0
# Longest time in seconds by which a frame may arrive before its own time: a few segments.
_MAX_LEAD_S = 30.0
# How often a waiting thread checks whether it was stopped, in seconds.
_POLL_S = 0.1


class StreamClock:
    """Compute each frame's time in seconds since the first frame; times never decrease.

    By default a frame's time is its time of arrival. With `use_timestamps` it is the stream's own
    timestamp. Timestamps restart with each connection; the times continue from the previous one.
    """

    def __init__(self, *, use_timestamps: bool) -> None:
        self.use_timestamps = use_timestamps
        self._first_arrival: float | None = None
        # Added to the stream's timestamps; None until the first timestamp of a connection.
        self._offset: float | None = None
        self._last = self._step = 0.0

    def reconnected(self) -> None:
        """Expect the timestamps of a new connection."""
        self._offset = None

    def seconds(self, arrived: float, timestamp: float | None) -> float:
        """Return a frame's time.

        `arrived` is `time.monotonic()` on arrival, `timestamp` the stream's own time in seconds if
        it has one.
        """
        if self._first_arrival is None:
            self._first_arrival = arrived
        by_arrival = max(arrived - self._first_arrival, self._last)
        if not self.use_timestamps or (timestamp is None and self._offset is None):
            self._last = by_arrival
        elif timestamp is not None:
            if self._offset is None:
                self._offset = by_arrival - timestamp
            else:
                ahead = timestamp + self._offset - self._last
                if not -_MAX_JUMP_S < ahead < _MAX_JUMP_S + by_arrival - self._last:
                    # The time of arrival shows no such jump, so another recording has started.
                    self._offset = self._last + self._step - timestamp
            self._step = min(max(timestamp + self._offset - self._last, 0.0), _MAX_JUMP_S)
            self._last = timestamp + self._offset
        return self._last


class Pacer:
    """Wait until the time of a frame, for streams that deliver segments of several seconds.

    The first frame sets the time. A frame that is late, for example after a pause of the stream,
    and a jump of the timestamps set it again.
    """

    def __init__(self) -> None:
        # `time.monotonic()` at the timestamp 0.
        self._zero: float | None = None

    def wait_for(self, timestamp: float, stopped: Callable[[], bool]) -> None:
        """Return at the time of a timestamp in seconds, or soon after `stopped()` is true."""
        now = time.monotonic()
        zero = now - timestamp
        if self._zero is None or zero > self._zero or zero < self._zero - _MAX_LEAD_S:
            self._zero = zero
        sleep_until(timestamp + self._zero, stopped)


def sleep_until(moment: float, stopped: Callable[[], bool]) -> None:
    """Return at a moment of `time.monotonic()`, or soon after `stopped()` is true."""
    while not stopped() and (rest := moment - time.monotonic()) > 0:
        time.sleep(min(rest, _POLL_S))
