"""Stop live sources on Ctrl-C, so that their output files are completed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from fada_deploy.cli.console import log

if TYPE_CHECKING:
    from fada_deploy.runtime.sources.base import Source, StoppableSource


class StopRequest:
    """Call it to stop the live sources; `requested` says whether that was done."""

    def __init__(self, live: list[StoppableSource]) -> None:
        self._live = live
        self.requested = False

    def __call__(self) -> None:
        self.requested = True
        for source in self._live:
            source.stop()


@contextmanager
def stop_on_signals(sources: Sequence[Source]) -> Iterator[StopRequest]:
    """Let the first Ctrl-C or SIGTERM stop the live sources; the second one interrupts at once.

    Without live sources, signals keep their usual effect.
    """
    from fada_deploy.runtime.sources.base import live_sources

    live = live_sources(sources)
    stop = StopRequest(live)
    if not live or threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.default_int_handler)
        log("\nstopping; press Ctrl-C again to quit at once and discard unfinished files")
        stop()

    previous = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in previous:
        signal.signal(each, handle)
    names = ", ".join(source.name for source in live)
    log(f"reading {names}; press Ctrl-C to stop and save playable files")
    try:
        yield stop
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
