"""A latency budget that is kept by skipping frames."""

from __future__ import annotations


class Budget:
    """Keeps a latency budget by segmenting only every second frame while frames are late.

    This degraded mode starts after `LATE_FRAMES` consecutive segmented frames over the budget. It
    ends after `EASY_FRAMES` consecutive ones within `EASY_FRACTION` of the budget. Two different
    thresholds avoid switching back and forth. `seconds` is the budget; None disables it.
    """

    LATE_FRAMES, EASY_FRAMES, EASY_FRACTION = 3, 12, 0.8

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.degraded = seconds, False
        self.late_frames = self.skipped_frames = self.degradations = 0
        self._streak, self._previous_segmented = 0, False

    def next_is_segmented(self) -> bool:
        """Return whether to segment the next frame; otherwise the last result is reused."""
        self._previous_segmented = not (self.degraded and self._previous_segmented)
        return self._previous_segmented

    def add(self, latency_s: float, *, segmented: bool) -> bool:
        """Record the latency of a frame; return whether it exceeds the budget."""
        budget = float("inf") if self.seconds is None else self.seconds
        late = latency_s > budget
        self.late_frames += late
        self.skipped_frames += not segmented
        if segmented:
            counts = latency_s <= self.EASY_FRACTION * budget if self.degraded else late
            self._streak = self._streak + 1 if counts else 0
            if self._streak == (self.EASY_FRAMES if self.degraded else self.LATE_FRAMES):
                self.degraded, self._streak = not self.degraded, 0
                self.degradations += self.degraded
        return late
