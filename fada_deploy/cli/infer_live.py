"""Stop sources on Ctrl-C, SIGTERM or SIGHUP, so that their output files are completed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from fada_deploy.cli.console import log
from fada_deploy.common.errors import InterruptedRunError
from fada_deploy.common.signals import handled

if TYPE_CHECKING:
    from fada_deploy.runtime.sources.base import Source, StoppableSource
    from fada_deploy.runtime.writers.inference import InferenceSummary


# Seconds from the second Ctrl-C until the process ends in any case.
_GRACE_S = 5.0


class StopRequest:
    """Stops the sources of a run; `requested` says whether the live ones were stopped.

    `files` is set when no further frame of a file should be read.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        from fada_deploy.runtime.sources.base import live_sources

        self.live: list[StoppableSource] = live_sources(sources)
        self.files = threading.Event()
        self.requested = False

    def stop_live(self) -> None:
        """Stop the live sources; files continue to their end."""
        self.requested = True
        for source in self.live:
            source.stop()

    def stop_all(self) -> None:
        """Stop the live sources, and read no further frame of a file."""
        self.stop_live()
        self.files.set()


@contextmanager
def stop_on_signals(stop: StopRequest) -> Iterator[None]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP stop all sources; the second one interrupts at once.

    If a library does not return within `_GRACE_S` seconds after the second one, the process ends.
    """
    is_stopping = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            deadline = threading.Timer(_GRACE_S, os._exit, (InterruptedRunError.exit_code,))
            deadline.daemon = True
            deadline.start()
            raise KeyboardInterrupt
        is_stopping = True
        stop.stop_all()
        kept = "unfinished recordings are kept" if stop.live else "unfinished files are removed"
        log(f"\nstopping; press Ctrl-C again to quit at once ({kept})")

    with handled(handle):
        if stop.live:
            names = ", ".join(source.name for source in stop.live)
            log(f"reading {names}; press Ctrl-C to stop and save playable files")
        yield


def interruption(summary: InferenceSummary) -> str:
    """Return a line about what is missing after files were stopped, "" if nothing is missing."""
    unread = f"{summary.unread} source{'s' * (summary.unread != 1)}"
    if summary.interrupted is None:
        return f"interrupted: {unread} not read" if summary.unread else ""
    name, frames = summary.interrupted
    further = f", and {unread} not read" if summary.unread else ""
    return (
        f"interrupted: {frames} frame{'s' * (frames != 1)} of {name} processed, "
        f"the rest is missing{further}"
    )
