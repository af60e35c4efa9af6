"""Timestamps of a live source."""

from __future__ import annotations

# Seconds by which a stream's clock may jump.
_JUMP = 5.0


class StreamClock:
    """Seconds since the first frame: by arrival, or by the stream's `own` clock, which an opening begins anew."""

    def __init__(self, *, own: bool) -> None:
        self._own = own
        self._began: float | None = None
        self._shift: float | None = None
        self._last = self._step = 0.0

    def begin_anew(self) -> None:
        """Say that the stream was opened."""
        self._shift = None

    def seconds(self, arrived: float, own: float | None) -> float:
        """Return a frame's seconds by when it arrived, `time.monotonic()`, and what the stream says."""
        self._began = arrived if self._began is None else self._began
        by_arrival = max(arrived - self._began, self._last)
        if not self._own or (own is None and self._shift is None):
            self._last = by_arrival
        elif own is not None:
            if self._shift is None:
                self._shift = by_arrival - own
            elif not -_JUMP < own + self._shift - self._last < _JUMP + by_arrival - self._last:
                # A jump that the time of arrival knows nothing of: another recording's clock.
                self._shift = self._last + self._step - own
            self._step = min(max(own + self._shift - self._last, 0.0), _JUMP)
            self._last = own + self._shift
        return self._last
