"""Live sources: a camera, `rtsp://` or `http://`, a pipe. Frames come when they come, and what is late is dropped.

A thread of its own reads and decodes each of them all the time, so that none waits for another. What the network
is too slow for is dropped by a named policy and counted; a connection that breaks is opened again, with growing
pauses.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from fada_deploy.common.errors import DataError, UsageError, one_line
from fada_deploy.runtime.sources.base import PAUSE, Frame, Item, SourceEnd
from fada_deploy.runtime.sources.stream_clock import StreamClock
from fada_deploy.runtime.sources.stream_input import (
    CONNECT_TIMEOUT_S,
    PIPE,
    EndOfStream,
    Timed,
    read_camera,
    read_stream,
)

POLICIES = ("drop-oldest", "drop-newest", "wait")
SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "tcp://", "srt://")
_CLOCK = Fraction(1, 90_000)
# Seconds: to connect or to wait for a packet, between attempts, and without a frame until it is given up.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0
# Seconds after which a connection is one that lasts.
_LASTING = 10.0
# Seconds: while nothing comes, who has stopped is noticed within.
_NAP = 0.1


@dataclass(frozen=True)
class LiveOptions:
    """What becomes of frames that nobody waits for.

    `policy`: drop-oldest keeps the newest frame, drop-newest the one that waits, wait holds the reader back. By
    default a pipe waits, which loses nothing, and all others drop the oldest. `deadline_s`: a frame older than
    that is not begun. `give_up_s`: a source that gives no frame for so long has failed.
    """

    policy: str | None = None
    deadline_s: float | None = None
    give_up_s: float = 30.0

    def __post_init__(self) -> None:
        if self.policy not in (None, *POLICIES):
            raise UsageError(f"no policy {self.policy!r}; there are {', '.join(POLICIES)}")
        if self.deadline_s is not None and self.deadline_s <= 0:
            raise UsageError(
                f"a deadline of {1000 * self.deadline_s:g} ms has passed already; it is above 0"
            )


def is_live_address(address: str) -> bool:
    """Say whether a source is a stream's address, a camera's number, or `-` for a pipe."""
    return address == PIPE or address.isdigit() or address.startswith(SCHEMES)


class FrameSlot:
    """Room for one frame between a reader and the pipeline, which waits for `changed` of all its slots at once."""

    def __init__(self, policy: str, changed: threading.Condition) -> None:
        self._policy = policy
        self._items: deque[Frame] = deque()
        self._changed = changed
        self.closed = False
        self.dropped = 0

    def put(self, frame: Frame) -> bool:
        """Offer a frame; return False when nobody takes frames any more."""
        with self._changed:
            if self._policy == "wait":
                self._changed.wait_for(lambda: self.closed or not self._items)
            elif self._items:
                self.dropped += 1
                if self._policy == "drop-newest":
                    return not self.closed
                self._items.clear()
            self._items.append(frame)
            self._changed.notify_all()
            return not self.closed

    @property
    def ready(self) -> bool:
        """Say whether there is a frame to take, or none will come any more."""
        return self.closed or bool(self._items)

    def take(self) -> Frame | None:
        """Return the frame that lies there, if one does."""
        with self._changed:
            frame = self._items.popleft() if self._items else None
            self._changed.notify_all()
            return frame

    def close(self) -> None:
        """Let waiting ends go; what lies in the slot can still be taken."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class LiveSource:
    """Frames of a stream as they come; `stop` ends it, and what was begun is finished.

    `dropped` counts frames that were never looked at, `late` those past their deadline, `damaged` packets that
    could not be decoded, `reconnects` how often it was opened again. `on_trouble` is called, in a thread of its
    own, with a line for each time it breaks.
    """

    is_video = True
    is_live = True
    rate: Fraction | None = None
    pixel_aspect: Fraction | None = None
    audio: Path | None = None

    def __init__(self, address: str, options: LiveOptions | None = None) -> None:
        # Names go into logs and files, where a password has no place.
        bare = re.sub(r"//[^/@]*@", "//", address)
        self.name = {PIPE: "pipe"}.get(address, f"camera-{address}" if address.isdigit() else bare)
        self.on_trouble: Callable[[str], None] = lambda line: None
        self._address = address
        self._options = options or LiveOptions()
        self._policy = self._options.policy or ("wait" if address == PIPE else "drop-oldest")
        self._stopped = threading.Event()
        self._failure = ""
        self.dropped = self.late = self.damaged = self.reconnects = 0

    def count(self) -> None:
        """Return None: nobody knows."""
        return None

    def stop(self) -> None:
        """SourceEnd the stream as if it had ended by itself."""
        self._stopped.set()

    def frames(self) -> Generator[Item, None, None]:
        """Yield frames until the stream ends, is stopped, or fails; then the error that says why."""
        with closing(read_together([self])) as items:
            for item in items:
                if not isinstance(item, SourceEnd):
                    yield item

    def _read(self, slot: FrameSlot) -> None:
        try:
            self._failure = self._read_on(slot)
        except Exception as error:
            self._failure = one_line(error)
        finally:
            slot.close()

    def _read_on(self, slot: FrameSlot) -> str:
        """Read until the end, opening again what broke; return why it failed, "" where it only ended."""
        index, last = 0, time.monotonic()
        clock = StreamClock(own=self._whole)
        pause = _FIRST_PAUSE

        def over() -> bool:
            return self._stopped.is_set() or slot.closed

        while not over():
            why, broken, opened = "it ended", False, time.monotonic()
            clock.begin_anew()
            try:
                for timed in self._pictures(over):
                    if timed is None:
                        self.damaged += 1
                        patience = max(CONNECT_TIMEOUT_S, self._options.give_up_s)
                        if (
                            self._address != PIPE
                            and time.monotonic() - max(last, opened) > patience
                        ):
                            raise DataError("nothing in it can be decoded")
                        continue
                    (picture, own), now = timed, time.monotonic()
                    pts = round(clock.seconds(now, own) / _CLOCK)
                    frame = Frame(picture, self.name, index, f"{index:06d}", now, pts, _CLOCK)
                    index += 1
                    # One that ends again and again, soon after it was opened, is asked less and less often.
                    pause = _FIRST_PAUSE if now - opened > _LASTING else pause
                    if not slot.put(frame):
                        return ""
                    last = time.monotonic()
            except EndOfStream:
                return ""
            except (OSError, DataError) as error:
                why, broken = one_line(error), True
            if self._address == PIPE:
                # What a pipe has given is all there is.
                return why if broken or not index else ""
            if time.monotonic() - last > self._options.give_up_s:
                return f"gave no frame for {self._options.give_up_s:g} s ({why})"
            if pause == _FIRST_PAUSE:
                self.on_trouble(
                    f"{self.name}: {why}; trying again for {self._options.give_up_s:g} s"
                )
            until = time.monotonic() + pause
            while not over() and time.monotonic() < until:
                time.sleep(_NAP)
            if over():
                return ""
            pause = min(2 * pause, _LONGEST_PAUSE)
            self.reconnects += 1
        return ""

    @property
    def _whole(self) -> bool:
        """Say whether every frame is wanted, and none is worth less for being late."""
        return self._policy == "wait" or self._address == PIPE

    def _pictures(self, over: Callable[[], bool]) -> Iterator[Timed | None]:
        if self._address.isdigit():
            return read_camera(int(self._address), over)
        return read_stream(self._address, over, whole=self._whole)


class _StreamReader:
    """A source while it is read, in a thread of its own."""

    def __init__(self, source: LiveSource, changed: threading.Condition) -> None:
        self.source = source
        self.slot = FrameSlot(source._policy, changed)
        self._thread = threading.Thread(
            target=source._read, args=(self.slot,), name="fada-live", daemon=True
        )
        self._thread.start()

    def take(self) -> Frame | None:
        """Return the frame that lies there unless it is late."""
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
        """Return what ended it, if that was not `stop` or the stream's own end."""
        source = self.source
        failed = source._failure and not source._stopped.is_set()
        return DataError(f"{source.name}: {source._failure}") if failed else None

    def leave(self) -> None:
        """Tell the thread to end."""
        self.slot.close()
        self.source.dropped += self.slot.dropped
        self.slot.dropped = 0

    def join(self) -> None:
        # A pipe may hold its reader for ever; the thread is a daemon, and its frames go nowhere.
        self._thread.join(timeout=1.0)


def read_together(sources: Sequence[LiveSource]) -> Generator[Item | SourceEnd, None, None]:
    """Yield the frames of live sources as they come, one of each in turn, and each one's `SourceEnd`.

    Nobody waits for a source that gives nothing, or for one that is dead: its error comes when it is given up.
    """
    changed = threading.Condition()
    reading = [_StreamReader(source, changed) for source in sources]
    begun = list(reading)
    try:
        while reading:
            for each in list(reading):
                over = each.slot.closed
                frame = each.take()
                if each.source._stopped.is_set() or (over and frame is None):
                    failure = each.failure()
                    each.leave()
                    reading.remove(each)
                    if failure is not None:
                        yield failure
                    yield SourceEnd(each.source)
                elif frame is not None:
                    yield frame
            if any(each.slot.ready for each in reading):
                continue
            # Said again and again while nothing comes, so that whoever closes this stream is noticed.
            yield PAUSE
            with changed:
                # A look now and then at `stop`, which a signal's handler sets without a word.
                changed.wait_for(lambda: any(each.slot.ready for each in reading), timeout=_NAP)
    finally:
        for each in begun:
            each.leave()
        for each in begun:
            each.join()
