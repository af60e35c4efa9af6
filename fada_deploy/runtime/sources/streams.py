"""Live sources: cameras, network streams and the standard input.

Each source is read and decoded in a thread of its own, so that no source waits for another. Frames
that the network is too slow for are dropped by a named policy and counted. A connection that breaks
after its first frame is opened again, with growing delays.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.runtime.sources.addresses import PIPE, camera_number, display_name
from fada_deploy.runtime.sources.base import PAUSE, Frame, Item, SourceEnd
from fada_deploy.runtime.sources.frame_slot import DROP_POLICIES, FrameSlot
from fada_deploy.runtime.sources.stream_clock import Pacer, StreamClock, sleep_until
from fada_deploy.runtime.sources.stream_input import (
    CONNECT_TIMEOUT_S,
    EndOfStream,
    Image,
    TimedImage,
    one_line,
    packet_timeout_s,
    read_camera,
    read_stream,
)

logger = logging.getLogger(__name__)

_TIME_BASE = Fraction(1, 90_000)
# Seconds between two attempts to connect: the first delay, which then doubles up to the longest.
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 5.0
# A connection that delivers frames for this many seconds resets the delay.
_STABLE_S = 10.0
# How often (in seconds) a waiting thread checks whether it was stopped.
_POLL_S = 0.1


@dataclass(frozen=True)
class LiveOptions:
    """How live sources are read.

    Attributes:
        drop_policy: What happens to frames that arrive faster than they are processed.
            "drop-oldest" keeps the newest frame, "drop-newest" keeps the waiting one, and "wait"
            blocks the reader and loses nothing ["wait" for the standard input and for recordings
            of known length on a server, otherwise "drop-oldest"].
        deadline_s: Drop frames older than this many seconds before they are processed [never].
        reconnect_timeout_s: Give up on a source that has delivered frames after this many seconds
            without one. A source whose first connection fails is given up at once.
    """

    drop_policy: str | None = None
    deadline_s: float | None = None
    reconnect_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.drop_policy not in (None, *DROP_POLICIES):
            raise UsageError(
                f"drop policy must be one of {', '.join(DROP_POLICIES)}, got {self.drop_policy!r}"
            )
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise UsageError(
                f"deadline must be greater than 0 ms, got {1000 * self.deadline_s:g} ms"
            )
        if self.reconnect_timeout_s < 0:
            raise UsageError(
                f"reconnect timeout must be at least 0 s, got {self.reconnect_timeout_s:g} s"
            )


class LiveSource:
    """A camera, a network stream or the standard input.

    Args:
        address: A URL with a scheme of `SCHEMES`, `camera:N` or `N`, or `-` for the standard input.
        options: How it is read.

    Attributes:
        late: Frames dropped because they exceeded the deadline.
        damaged: Packets that could not be decoded.
        reconnects: How often the connection was opened again.
    """

    is_video = True
    is_live = True
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, address: str, options: LiveOptions | None = None) -> None:
        self.name = display_name(address)
        self._address = address
        self._camera = camera_number(address)
        self._options = options or LiveOptions()
        default_policy = "wait" if address == PIPE else "drop-oldest"
        self._drop_policy = self._options.drop_policy or default_policy
        self._stopped = threading.Event()
        self._failure = ""
        self._slot: FrameSlot | None = None
        self._dropped = 0
        self.late = self.damaged = self.reconnects = 0

    @property
    def dropped(self) -> int:
        """Frames dropped by the policy, also those of a stream that is being read."""
        return self._dropped + (self._slot.dropped if self._slot is not None else 0)

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

    def counters(self) -> dict[str, int]:
        """Return the numbers of dropped, late and damaged frames and of reconnects, by name."""
        return {
            "dropped": self.dropped,
            "late": self.late,
            "damaged": self.damaged,
            "reconnects": self.reconnects,
        }

    def frames(self) -> Generator[Item, None, None]:
        """Yield frames until the stream ends, is stopped, or fails; a failure is the last item."""
        with closing(read_together([self])) as items:
            for item in items:
                if not isinstance(item, SourceEnd):
                    yield item

    @property
    def _every_frame(self) -> bool:
        """Whether no frame may be dropped, however late it is."""
        return self._drop_policy == "wait" or self._address == PIPE

    def _images(
        self,
        stopped: Callable[[], bool],
        on_file: Callable[[], None],
        on_segments: Callable[[], None],
    ) -> Iterator[TimedImage | None]:
        if self._camera is not None:
            return read_camera(self._camera, stopped)
        return read_stream(
            self._address, stopped, every_frame=self._every_frame,
            on_file=on_file, on_segments=on_segments,
        )  # fmt: skip


def _with_lower_scheme(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    return scheme.lower() + separator + rest


class _StreamReader:
    """Reads one source in a thread of its own and hands frames over through a slot."""

    def __init__(self, source: LiveSource, changed: threading.Condition) -> None:
        self.source = source
        self.slot = source._slot = FrameSlot(source._drop_policy, changed)
        source._failure = ""
        self._clock = StreamClock(use_timestamps=source._every_frame)
        self._index = 0
        # A file that is read over the network would begin again after a reconnection.
        self._is_file = False
        # Delivers the frames of a segment one after the other.
        self._pacer: Pacer | None = None
        # Time stamp and content of the first frame of a connection.
        self._beginning: tuple[float, bytes] | None = None
        self._is_repetition = False
        self._delay = _FIRST_DELAY_S
        self._last_frame = 0.0
        self._thread = threading.Thread(target=self._run, name="fada-live", daemon=True)
        self._thread.start()

    def take(self) -> Frame | None:
        """Return the waiting frame, or None if there is none or it has exceeded the deadline."""
        frame = self.slot.take()
        deadline_s = self.source._options.deadline_s
        if (
            frame is not None
            and deadline_s is not None
            and time.monotonic() - frame.captured > deadline_s
        ):
            self.source.late += 1
            return None
        return frame

    def failure(self) -> DataError | None:
        """Return why the source failed, or None if it ended by itself or was stopped."""
        source = self.source
        failed = source._failure and not source._stopped.is_set()
        name = "standard input" if source._address == PIPE else source.name
        return DataError(f"{name}: {source._failure}") if failed else None

    def close(self) -> None:
        """Tell the thread to end, and add up the dropped frames."""
        self.slot.close()
        if self.source._slot is self.slot:
            self.source._slot = None
            self.source._dropped += self.slot.dropped

    def join(self) -> None:
        """Wait up to a second for the thread."""
        # A thread that is blocked by a silent pipe cannot be ended. It is a daemon thread and its
        # slot is closed, so it can be left behind.
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        try:
            self.source._failure = self._read_until_end()
        except Exception as error:
            self.source._failure = one_line(error)
        finally:
            self.slot.close()

    def _ended(self) -> bool:
        return self.source._stopped.is_set() or self.slot.closed

    def _read_until_end(self) -> str:
        """Read the source and reconnect when it breaks; return why it failed, "" if it ended."""
        source, timeout_s = self.source, self.source._options.reconnect_timeout_s
        self._last_frame = time.monotonic()
        while not self._ended():
            reason, broken = "the stream ended", False
            self._clock.reconnected()
            try:
                self._read_connection()
                if self._ended():
                    return ""
            except EndOfStream:
                return ""
            except (OSError, DataError) as error:
                reason, broken = one_line(error), True
            # The streams of a closed container form reference cycles, whose decoders hold hundreds
            # of kilobytes that Python's collector does not know of.
            gc.collect()
            if source._address == PIPE:
                # The standard input cannot be opened again.
                return reason if broken or not self._index else ""
            if self._is_file:
                return f"{reason}; it is a file, and was not read to its end"
            if not self._index:
                # A wrong address or a missing camera does not appear by waiting.
                return reason if broken else "it ended without a frame"
            # The wait for the packet that did not come is no attempt to reconnect.
            waited_s = packet_timeout_s(source._address) - CONNECT_TIMEOUT_S
            if time.monotonic() - self._last_frame > timeout_s + waited_s:
                return f"no frame for {timeout_s:g} s ({reason})"
            if self._delay == _FIRST_DELAY_S:
                logger.warning("%s: %s; reconnecting for %g s", source.name, reason, timeout_s)
            if not self._wait_before_reconnecting():
                return ""
            source.reconnects += 1
        return ""

    def _read_connection(self) -> None:
        """Read frames until the connection ends or the reader is stopped."""
        source, opened, is_first = self.source, time.monotonic(), True
        images = source._images(self._ended, self._wait_for_every_frame, self._pace_segments)
        for timed_image in images:
            if timed_image is None:
                source.damaged += 1
                self._refuse_undecodable(opened)
                continue
            image, timestamp = timed_image
            if is_first:
                is_first = False
                self._warn_about_repetition(image, timestamp)
            if self._pacer is not None and timestamp is not None:
                self._pacer.wait_for(timestamp, self._ended)
            now = time.monotonic()
            pts = round(self._clock.seconds(now, timestamp) / _TIME_BASE)
            item = f"{self._index:06d}"
            frame = Frame(image, source.name, self._index, item, now, pts, _TIME_BASE)
            self._index += 1
            if now - opened > _STABLE_S:
                self._delay = _FIRST_DELAY_S
            if not self.slot.put(frame):
                return
            # After `put`, which blocks under the policy "wait".
            self._last_frame = time.monotonic()

    def _wait_for_every_frame(self) -> None:
        """Drop no frame of a file that is read over the network, unless a policy was named.

        Raise `EndOfStream` if it was a live stream before: a live playlist gets an end when the
        broadcast is over, and would now be read as a recording of all of it.
        """
        if self._index and not self._is_file:
            raise EndOfStream
        self._is_file = True
        if self.source._options.drop_policy is None:
            self.slot.drop_policy = "wait"
            self._clock.use_timestamps = True

    def _pace_segments(self) -> None:
        """Deliver the frames of segments at the times at which they were recorded."""
        self._pacer = Pacer()
        self._clock.use_timestamps = True

    def _warn_about_repetition(self, image: Image, timestamp: float | None) -> None:
        """Print a warning if a new connection begins with the same frame as the previous one."""
        if timestamp is None or self._is_repetition:
            return
        beginning = timestamp, hashlib.sha256(image.tobytes()).digest()
        self._is_repetition = beginning == self._beginning
        if self._is_repetition:
            logger.warning(
                "%s: begins again with the same frame; if it is a file and not a live stream, stop "
                "it with Ctrl-C, download it and name the file",
                self.source.name,
            )
        self._beginning = beginning

    def _refuse_undecodable(self, opened: float) -> None:
        """Raise `DataError` if no packet could be decoded for the length of the timeout."""
        timeout_s = max(CONNECT_TIMEOUT_S, self.source._options.reconnect_timeout_s)
        since = time.monotonic() - max(self._last_frame, opened)
        if self.source._address != PIPE and since > timeout_s:
            raise DataError("no packet can be decoded")

    def _wait_before_reconnecting(self) -> bool:
        """Wait, and double the next delay; return False if the reader was stopped meanwhile."""
        sleep_until(time.monotonic() + self._delay, self._ended)
        self._delay = min(2 * self._delay, _LONGEST_DELAY_S)
        return not self._ended()


def read_together(sources: Sequence[LiveSource]) -> Generator[Item | SourceEnd, None, None]:
    """Yield the frames of live sources as they arrive, in turn, and a `SourceEnd` for each source.

    A silent or broken source does not delay the others; its error is yielded after its timeout.
    """
    changed = threading.Condition()
    readers = [_StreamReader(source, changed) for source in sources]
    active = list(readers)
    try:
        while active:
            for reader in list(active):
                # Before `take`: a frame put before the slot was closed must not be lost.
                closed = reader.slot.closed
                frame = reader.take()
                if reader.source._stopped.is_set() or (closed and frame is None):
                    failure = reader.failure()
                    reader.close()
                    active.remove(reader)
                    if failure is not None:
                        yield failure
                    yield SourceEnd(reader.source)
                elif frame is not None:
                    yield frame
            if any(reader.slot.ready for reader in active):
                continue
            # Yielded repeatedly while nothing arrives, so that the consumer can close this
            # generator.
            yield PAUSE
            with changed:
                # The timeout is for `stop`, which a signal handler calls without notifying.
                changed.wait_for(lambda: any(r.slot.ready for r in active), timeout=_POLL_S)
    finally:
        for reader in readers:
            reader.close()
        for reader in readers:
            reader.join()
            # The source can be read again.
            reader.source._stopped.clear()
