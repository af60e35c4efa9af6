"""A window that shows pictures as they come, and neither holds up nor ends what makes them.

It lives in a process of its own. Qt, by which OpenCV has its windows, aborts the process that finds no display and
ends the one that loses it, and with it the film that is being written; and a window that nobody looks after all
the time looks dead. Pictures go there through a pipe, the newest one first.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.images import resize_frame

Picture = NDArray[np.uint8]

# Seconds: between two pictures, between two looks at keys and mouse, until a window is open or shut.
_BETWEEN, _LOOK, _PATIENCE = 1 / 30, 1 / 60, 30.0
# Pixels of a picture's longer side in the pipe, and of a window when it opens.
_LONGEST, _WINDOW = 1920, 1280
_HEAD = struct.Struct("<II")
_ESCAPE = 27
_QUIT = frozenset({_ESCAPE, ord("q"), ord("Q")})


def require_display() -> None:
    """Raise `UsageError` where there is no display, or where OpenCV was built without windows."""
    # First the display: without one, another OpenCV is of no use.
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise UsageError(
            "no display to show a window on (neither DISPLAY nor WAYLAND_DISPLAY is set); "
            "run it from the desktop or by `ssh -X`, or leave the window out"
        )
    # Old versions do not tell; there the attempt does.
    if hasattr(cv2, "currentUIFramework") and not cv2.currentUIFramework():
        raise UsageError(
            "this OpenCV has no windows (opencv-python-headless); type: "
            "pip uninstall -y opencv-python-headless && pip install --no-deps --force-reinstall opencv-python"
        )


class Window:
    """A window while the block lasts. Entering it raises `UsageError` where no window can be shown.

    `closed`: a person closed it, or pressed q or Esc; `on_close` is then called once, in a thread of its own.
    `failure`: one line where it went away by itself, as with its display; what makes the pictures goes on.
    """

    def __init__(self, title: str, *, on_close: Callable[[], None] | None = None) -> None:
        self.closed = False
        self.failure = ""
        self._title = title
        self._on_close = on_close
        self._next: Picture | None = None
        self._over = False
        self._changed = threading.Condition()

    @property
    def due(self) -> bool:
        """Say whether a picture given now is shown, and replaces none that waits; others need not be drawn."""
        return self._next is None and not (self.closed or self.failure)

    def show(self, picture: Picture) -> bool:
        """Show a picture (H, W, 3) uint8 RGB that nobody changes any more; return False once a person closed it.

        Never waits: of pictures that come faster than 30 a second, or than the window takes them, the newest is
        shown.
        """
        if (
            picture.dtype != np.uint8
            or picture.ndim != 3
            or picture.shape[2] != 3
            or not picture.size
        ):
            raise UsageError(
                f"a picture is uint8 of shape (H, W, 3), not {picture.dtype} {picture.shape}"
            )
        with self._changed:
            self._next = picture
            self._changed.notify_all()
        return not self.closed

    def wait(self) -> None:
        """Wait until a person closes the window, or it goes away by itself."""
        while self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def __enter__(self) -> Self:
        require_display()
        self._said: IO[bytes] = tempfile.TemporaryFile()
        # A session of its own: Ctrl-C is meant for this process, which finishes its film.
        self._process = subprocess.Popen(
            _program(self._title),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._send_on, name="fada-window", daemon=True)
        try:
            self._wait_until_open()
        except BaseException:
            self._process.kill()
            self._end()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)
        if self._thread.is_alive():
            # The window takes nothing, and who hands it a picture waits.
            self._process.kill()
            self._thread.join()
        self._end()

    def _wait_until_open(self) -> None:
        assert self._process.stdout is not None
        there, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        if there and self._process.stdout.read(1):
            return
        if there:
            self._process.wait(_PATIENCE)
        why = self._why() if there else f"no answer in {_PATIENCE:g} s"
        where = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or ""
        raise UsageError(
            f"no window opens on display {where!r} ({why}); run it from an X11 desktop, or one with Xwayland, "
            "or by `ssh -X`, or leave the window out"
        )

    def _send_on(self) -> None:
        """Hand the newest picture on until the block or the window ends."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._over, timeout=0.1)
                picture, self._next = self._next, None
                # The last picture is still shown: it may be the only one.
                if self._over and picture is None:
                    return
            if self._process.poll() is not None:
                break
            if picture is not None:
                start = time.monotonic()
                try:
                    self._send(picture)
                except OSError:
                    break
                time.sleep(max(0.0, start + _BETWEEN - time.monotonic()))
        self._notice()

    def _send(self, picture: Picture) -> None:
        assert self._process.stdin is not None
        height, width = picture.shape[:2]
        # By whole numbers, which takes a tenth of the time.
        if (factor := -(-max(height, width) // _LONGEST)) > 1:
            picture = resize_frame(picture, (max(1, height // factor), max(1, width // factor)))
        bgr = np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self._process.stdin.write(_HEAD.pack(*bgr.shape[:2]))
        self._process.stdin.write(bgr.data)
        self._process.stdin.flush()

    def _notice(self) -> None:
        """Note how the window ended."""
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code:
            self.failure = f"the window is gone ({self._why()}); the rest is not shown"
            return
        self.closed = True
        if self._on_close is not None:
            self._on_close()

    def _why(self) -> str:
        """Return what the window's process last said, in one line; the line about a display where there is one."""
        self._said.seek(0)
        lines = [
            " ".join(x.split()) for x in self._said.read().decode("utf-8", "replace").splitlines()
        ]
        said = [line for line in lines if line]
        named = [line for line in said if "display" in line] or said[-1:]
        return named[0][:200] if named else f"its process ended with {self._process.returncode}"

    def _end(self) -> None:
        """Shut the window and let everything go."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()


def _program(title: str) -> list[str]:
    # The same modules as here, wherever they lie.
    there = (
        f"import sys; sys.path[:] = {sys.path!r}; from fada_deploy.runtime.viewer import run_window"
    )
    return [sys.executable, "-c", f"{there}; run_window({title!r})"]


def run_window(title: str, highgui: Any = cv2, pictures: int = 0) -> None:
    """Show what the pipe `pictures` gives until it ends or a person closes the window: its own process's work."""
    highgui.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    highgui.waitKey(1)
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    first = True
    while _is_open(title, highgui):
        if not select.select([pictures], [], [], _LOOK)[0]:
            continue
        picture = _receive(pictures)
        if picture is None:
            break
        if first:
            height, width = picture.shape[:2]
            share = min(1.0, _WINDOW / max(height, width))
            highgui.resizeWindow(title, max(1, round(share * width)), max(1, round(share * height)))
            first = False
        highgui.imshow(title, picture)
    with suppress(cv2.error):
        highgui.destroyAllWindows()


def _is_open(title: str, highgui: Any) -> bool:
    """OverlayStyle at keys and mouse; say whether the window is still wanted."""
    if highgui.waitKey(1) & 0xFF in _QUIT:
        return False
    try:
        return bool(highgui.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1)
    except cv2.error:
        # Of the last window that was closed Qt knows nothing more.
        return False


def _receive(pipe: int) -> Picture | None:
    """Return the next picture (H, W, 3) uint8 BGR, None at the end."""
    head = _read(pipe, bytearray(_HEAD.size))
    if head is None:
        return None
    height, width = _HEAD.unpack(head)
    data = _read(pipe, bytearray(height * width * 3))
    return None if data is None else np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _read(pipe: int, into: bytearray) -> bytearray | None:
    """Fill a buffer; return None when the pipe ends before."""
    view = memoryview(into)
    while view:
        count = os.readv(pipe, [view])
        if not count:
            return None
        view = view[count:]
    return into
