"""The signals that ask a process to stop: Ctrl-C, SIGTERM, and SIGHUP of a closed terminal."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

_SIGHUP = getattr(signal, "SIGHUP", None)


def stop_signals() -> tuple[int, ...]:
    """Return the signals that ask a process to stop.

    SIGHUP is one of them unless it is ignored, as after `nohup`.
    """
    if _SIGHUP is None or signal.getsignal(_SIGHUP) == signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, _SIGHUP


def stop_handler(handle: Handler) -> Handler:
    """Return a handler of the signals to stop, which calls `handle`.

    After a SIGHUP the terminal is gone: what would be written to it is discarded, because every
    write would fail, and the SIGHUP of the shell, which follows that of the terminal, is ignored.
    """

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == _SIGHUP:
            signal.signal(number, signal.SIG_IGN)
            _leave_terminal()
        handle(number, frame)

    return on_signal


@contextmanager
def handled(handle: Handler) -> Iterator[None]:
    """Call `handle` on the signals to stop; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_signal = stop_handler(handle)
    previous = {number: signal.signal(number, on_signal) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            # A SIGHUP that has come stays ignored.
            if signal.getsignal(number) == on_signal:
                signal.signal(number, handler)


def _leave_terminal() -> None:
    """Connect the standard output and error to the null device if they are a terminal."""
    for descriptor in (1, 2):
        # Not `os.isatty`, which is false for a terminal that is gone.
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
