"""Reads one live source: decodes, reconnects, and drops frames that come too fast."""

from __future__ import annotations

import gc
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from fada_deploy.common.errors import DataError, FadaError, UsageError, one_line
from fada_deploy.runtime.sources.addresses import PIPE, camera_number
from fada_deploy.runtime.sources.base import Frame
from fada_deploy.runtime.sources.frame_slot import DROP_POLICIES, FrameSlot, StreamCounters
from fada_deploy.runtime.sources.stream_clock import Pacer, StreamClock, sleep_until
from fada_deploy.runtime.sources.stream_input import (
    CONNECT_TIMEOUT_S,
    EndOfStream,
    Image,
    TimedImage,
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


@dataclass(frozen=True)
class LiveOptions:
    """How live sources are read.

    Attributes:
        drop_policy: What happens to frames that arrive faster than they are processed.
            "drop-oldest" keeps the newest frame, "drop-newest" keeps the waiting one, and "wait"
            blocks the reader and loses nothing ["wait" for the standard input and for recordings
            of known length on a server, otherwise "drop-oldest"].
        deadline_s: Drop frames older than this many seconds before they are processed, and results
            that reach this age while they wait for the caller of `Segmenter.stream`, with every
            policy [never].
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
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise UsageError(
                f"deadline must be greater than 0 ms, got {1000 * self.deadline_s:g} ms"
            )
        if not self.reconnect_timeout_s >= 0:
            raise UsageError(
                f"reconnect timeout must be at least 0 s, got {self.reconnect_timeout_s:g} s"
            )


class StreamReader:
    """Reads one live source in a thread of its own and hands frames over through a slot.

    Args:
        address: As for `LiveSource`.
        name: Name of the source in frames and messages.
        options: How it is read.
        counters: Receives the numbers of dropped, late and damaged frames and of reconnects.
        stopped: Set to end the stream.
        changed: Notified when the slot has received a frame or was closed.

    Attributes:
        slot: Where the frames wait.
    """

    def __init__(
        self,
        address: str,
        name: str,
        options: LiveOptions,
        counters: StreamCounters,
        stopped: threading.Event,
        changed: threading.Condition,
    ) -> None:
        self._name = name
        self._address = address
        self._options = options
        self._counters = counters
        self._stopped = stopped
        self._is_pipe = address == PIPE
        policy = options.drop_policy or ("wait" if self._is_pipe else "drop-oldest")
        self.slot = FrameSlot(policy, changed, counters)
        # Whether no frame may be dropped, however late it is.
        self._every_frame = policy == "wait" or self._is_pipe
        self._failure = ""
        self._clock = StreamClock(use_timestamps=self._every_frame)
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
        deadline_s = self._options.deadline_s
        if (
            frame is not None
            and deadline_s is not None
            and time.monotonic() - frame.captured > deadline_s
        ):
            self._counters.late += 1
            return None
        return frame

    @property
    def stopped(self) -> bool:
        """Whether the source was told to end."""
        return self._stopped.is_set()

    def failure(self) -> DataError | None:
        """Return why the source failed, or None if it ended by itself or was stopped."""
        failed = self._failure and not self.stopped
        name = "standard input" if self._is_pipe else self._name
        return DataError(f"{name}: {self._failure}") if failed else None

    def close(self) -> None:
        """Tell the thread to end."""
        self.slot.close()

    def join(self) -> None:
        """Wait up to a second for the thread; afterwards the source can be read again."""
        # A thread that is blocked by a silent pipe cannot be ended. It is a daemon thread and its
        # slot is closed, so it can be left behind.
        self._thread.join(timeout=1.0)
        self._stopped.clear()

    def _run(self) -> None:
        try:
            self._failure = self._read_until_end()
        except Exception as error:
            logger.debug("%s: reading failed", self._name, exc_info=True)
            self._failure = one_line(error, with_type=not isinstance(error, FadaError))
        finally:
            self.slot.close()

    def _ended(self) -> bool:
        return self.stopped or self.slot.closed

    def _read_until_end(self) -> str:
        """Read the source and reconnect when it breaks; return why it failed, "" if it ended."""
        timeout_s = self._options.reconnect_timeout_s
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
            if self._is_pipe:
                # The standard input cannot be opened again.
                return reason if broken or not self._index else ""
            if self._is_file:
                return (
                    f"{reason}; it is a file, and was not read to its end; download it, and name "
                    "the copy"
                )
            if not self._index:
                # A wrong address or a missing camera does not appear by waiting.
                return reason if broken else "it ended without a frame"
            # The wait for the packet that did not come is no attempt to reconnect.
            waited_s = packet_timeout_s(self._address) - CONNECT_TIMEOUT_S
            if time.monotonic() - self._last_frame > timeout_s + waited_s:
                return f"no frame for {timeout_s:g} s ({reason})"
            if self._delay == _FIRST_DELAY_S:
                logger.warning("%s: %s; reconnecting for %g s", self._name, reason, timeout_s)
            if not self._wait_before_reconnecting():
                return ""
            self._counters.reconnects += 1
        return ""

    def _read_connection(self) -> None:
        """Read frames until the connection ends or the reader is stopped."""
        opened, is_first = time.monotonic(), True
        for timed_image in self._images():
            if timed_image is None:
                self._counters.damaged += 1
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
            frame = Frame(image, self._name, self._index, item, now, pts, _TIME_BASE)
            self._index += 1
            if now - opened > _STABLE_S:
                self._delay = _FIRST_DELAY_S
            if not self.slot.put(frame):
                return
            # After `put`, which blocks under the policy "wait".
            self._last_frame = time.monotonic()

    def _images(self) -> Iterator[TimedImage | None]:
        number = camera_number(self._address)
        if number is not None:
            return read_camera(number, self._ended)
        return read_stream(
            self._address, self._ended, every_frame=self._every_frame,
            on_file=self._wait_for_every_frame, on_segments=self._pace_segments,
        )  # fmt: skip

    def _wait_for_every_frame(self) -> None:
        """Drop no frame of a file that is read over the network, unless a policy was named.

        Raise `EndOfStream` if it was a live stream before: a live playlist gets an end when the
        broadcast is over, and would now be read as a recording of all of it.
        """
        if self._index and not self._is_file:
            raise EndOfStream
        self._is_file = True
        if self._options.drop_policy is None:
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
                self._name,
            )
        self._beginning = beginning

    def _refuse_undecodable(self, opened: float) -> None:
        """Raise `DataError` if no packet could be decoded for the length of the timeout."""
        timeout_s = max(CONNECT_TIMEOUT_S, self._options.reconnect_timeout_s)
        since = time.monotonic() - max(self._last_frame, opened)
        if not self._is_pipe and since > timeout_s:
            raise DataError("no packet can be decoded")

    def _wait_before_reconnecting(self) -> bool:
        """Wait, and double the next delay; return False if the reader was stopped meanwhile."""
        sleep_until(time.monotonic() + self._delay, self._ended)
        self._delay = min(2 * self._delay, _LONGEST_DELAY_S)
        return not self._ended()
