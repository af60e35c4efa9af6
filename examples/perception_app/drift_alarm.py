"""Drift detection that prints when drift begins and ends."""

from __future__ import annotations

import click

from fada_deploy import DriftMonitor, Result, Segmenter

# The monitor gets every fifth segmented frame: neighboring frames add little information, and
# confidence takes time to compute.
DRIFT_EVERY = 5


class DriftAlarm:
    """Feeds a drift monitor and prints when drift begins and ends.

    `score` is None until the first update, and always for a model without target statistics.
    """

    def __init__(self, segmenter: Segmenter, window: int) -> None:
        self.score: float | None = None
        self.drifting = False
        self.summary = "drift not monitored"
        self._needs_confidence = segmenter.metadata.head == "logits"
        self._monitor: DriftMonitor | None = None
        if segmenter.metadata.target_statistics is not None:
            updates = max(1, window // DRIFT_EVERY)
            self._monitor = DriftMonitor.for_model(segmenter.metadata, window=updates)

    @property
    def is_available(self) -> bool:
        return self._monitor is not None

    def is_due(self, count: int) -> bool:
        """Return whether the segmented frame number `count` is used."""
        return self.is_available and count % DRIFT_EVERY == 0

    def wants_confidence(self, count: int) -> bool:
        return self._needs_confidence and self.is_due(count)

    def update(self, result: Result, index: int) -> None:
        """Add the result of frame `index`."""
        if self._monitor is None:
            return
        drift = self._monitor.update(result)
        changed = drift.drifting != self.drifting
        self.score, self.drifting = drift.score, drift.drifting
        self.summary = f"drift {drift.score:.2f}"
        if not drift.warmed_up:
            self.summary += " (too few frames to decide)"
        else:
            self.summary += f", {'not ' * drift.drifting}like the frames of the export"
            if drift.confidence is not None:
                self.summary += f", confidence {drift.confidence:+.1f} standard deviations"
            if drift.shifted_classes:
                self.summary += f", shifted classes: {', '.join(drift.shifted_classes)}"
        if changed:
            level = "warning" if drift.drifting else "note"
            click.echo(f"{level}: frame {index}: {self.summary}", err=True)
