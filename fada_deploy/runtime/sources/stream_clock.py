"""Timestamps of a live source."""

from __future__ import annotations

# Seconds by which a stream's timestamps may jump before the jump counts as a new recording.
_MAX_JUMP_S = 5.0


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
