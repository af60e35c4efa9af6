"""Live sources: cameras, network streams and the standard input.

Each source is read and decoded in a thread of its own, so that no source waits for another. Frames
that the network is too slow for are dropped by a named policy and counted. A connection that breaks
after its first frame is opened again, with growing delays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

from fada_deploy.common.errors import UsageError
from fada_deploy.runtime.sources.addresses import (
    SCHEMES,
    camera_number,
    display_name,
    is_live_address,
)
from fada_deploy.runtime.sources.base import BUSY, PAUSE, Item, SourceEnd
from fada_deploy.runtime.sources.frame_slot import StreamCounters
from fada_deploy.runtime.sources.in_flight import InFlight
from fada_deploy.runtime.sources.stream_reader import LiveOptions, StreamReader

# How often (in seconds) a waiting thread checks whether it was stopped.
_POLL_S = 0.1


class LiveSource:
    """A camera, a network stream or the standard input.

    Args:
        address: A URL with a scheme of `SCHEMES`, `camera:N` or `N`, or `-` for the standard input.
        options: How it is read.

    Raise `UsageError` for any other address.

    Attributes:
        name: The `Result.source` of its frames: `camera-N`, `pipe`, or the address without login
            and query. `open_sources` adds a number if two cameras would have the same name.
        counters: Numbers of dropped, late and damaged frames and of reconnects so far.
    """

    is_video = True
    is_live = True
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, address: str | int, options: LiveOptions | None = None) -> None:
        if isinstance(address, int):
            address = f"camera:{address}"
        is_camera = isinstance(address, str) and camera_number(address) is not None
        if not isinstance(address, str) or not (is_camera or is_live_address(address)):
            has_scheme = isinstance(address, str) and "://" in address
            shown = display_name(address) if has_scheme else repr(address)
            raise UsageError(
                f"{shown}: not a live source, which is a number, camera:N, - or an address that "
                f"begins with {', '.join(SCHEMES)}; name a file by its path, without LiveSource"
            )
        self.name = display_name(address)
        self._address = address
        self._camera = camera_number(address)
        self._options = options or LiveOptions()
        self._stopped = threading.Event()
        self.counters = StreamCounters()

    def reads(self, other: LiveSource) -> bool:
        """Return whether the other source has the same address."""
        if self._camera is not None:
            return self._camera == other._camera
        return _with_lower_scheme(self._address) == _with_lower_scheme(other._address)

    def count(self) -> None:
        """Return None: the length of a live source is unknown."""
        return None

    def stop(self) -> None:
        """End the stream as if it had ended by itself; it can then be read again.

        A source that is not being read yet ends when it is.
        """
        self._stopped.set()

    def refuses(self, captured: float, latency_s: float) -> bool:
        """Return whether a result exceeded the deadline while it waited for the caller; count it.

        A result that was late when it was computed is not refused, because the next one would be
        late, too. The arguments are those of the `Result`.
        """
        deadline_s = self._options.deadline_s
        if deadline_s is None or not latency_s <= deadline_s < time.monotonic() - captured:
            return False
        self.counters.late += 1
        return True

    def frames(self) -> Generator[Item, None, None]:
        """Yield frames until the stream ends, is stopped, or fails; a failure is the last item."""
        with closing(read_together([self])) as items:
            for item in items:
                if not isinstance(item, SourceEnd):
                    yield item

    def start_reader(self, changed: threading.Condition) -> StreamReader:
        """Start to read the stream; `changed` is notified when a frame is ready."""
        return StreamReader(
            self._address, self.name, self._options, self.counters, self._stopped, changed
        )


def _with_lower_scheme(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    return scheme.lower() + separator + rest


def read_together(
    sources: Sequence[LiveSource], in_flight: InFlight | None = None
) -> Generator[Item | SourceEnd, None, None]:
    """Yield the frames of live sources as they arrive, in turn, and a `SourceEnd` for each source.

    A silent or broken source does not delay the others; its error is yielded after its timeout.
    While `in_flight` is full, frames stay in their slots, where newer ones replace them. Sources
    that drop no frame do not count.
    """
    changed = threading.Condition() if in_flight is None else in_flight.changed
    readers = [(source, source.start_reader(changed)) for source in sources]
    active = list(readers)

    def may_take(reader: StreamReader) -> bool:
        return in_flight is None or not reader.slot.drops or not in_flight.is_full

    def any_ready() -> bool:
        return any(reader.slot.ready and may_take(reader) for _, reader in active)

    try:
        while active:
            for source, reader in list(active):
                if not (reader.stopped or may_take(reader)):
                    continue
                # Before `take`: a frame put before the slot was closed must not be lost.
                closed = reader.slot.closed
                frame = reader.take()
                if reader.stopped or (closed and frame is None):
                    failure = reader.failure()
                    reader.close()
                    active.remove((source, reader))
                    if failure is not None:
                        yield failure
                    yield SourceEnd(source)
                elif frame is not None:
                    if in_flight is not None and reader.slot.drops:
                        in_flight.add(frame)
                    # The others come first when there is room for a single frame.
                    active.remove((source, reader))
                    active.append((source, reader))
                    yield frame
            if any_ready():
                continue
            # Yielded repeatedly while nothing arrives, so that the consumer can close this
            # generator.
            yield BUSY if in_flight is not None and in_flight.is_full else PAUSE
            with changed:
                # The timeout is for `stop`, which a signal handler calls without notifying.
                changed.wait_for(any_ready, _POLL_S)
    finally:
        for _, reader in readers:
            reader.close()
        for _, reader in readers:
            reader.join()
