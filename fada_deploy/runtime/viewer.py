"""Show images in a window without slowing down or ending the program that produces them.

The window runs in a process of its own. Qt, which OpenCV uses for its windows, aborts the process
that finds no display and ends the one that loses it, which would destroy the video that is being
written. A window also has to handle its events all the time to stay responsive. Images are sent
through a pipe; if they come faster than the window shows them, only the newest is shown.
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

Image = NDArray[np.uint8]

# Seconds between two images, between two checks of keys and mouse, and until the window must have
# opened or closed.
_FRAME_INTERVAL_S, _EVENT_INTERVAL_S, _TIMEOUT_S = 1 / 30, 1 / 60, 30.0
# Pixels of the longer side: of an image in the pipe, and of the window when it opens.
_MAX_IMAGE_SIDE, _MAX_WINDOW_SIDE = 1920, 1280
_IMAGE_HEADER = struct.Struct("<II")
_ESCAPE = 27
_QUIT_KEYS = frozenset({_ESCAPE, ord("q"), ord("Q")})


def require_display() -> None:
    """Raise `UsageError` if there is no display, or if OpenCV was built without window support."""
    # The display comes first: without one, another build of OpenCV would not help.
    if sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise UsageError(
            "no display to show a window on (neither DISPLAY nor WAYLAND_DISPLAY is set); run from "
            "a desktop or with `ssh -X`, or leave --show out"
        )
    # Old versions of OpenCV do not report this; with them, opening the window fails.
    if hasattr(cv2, "currentUIFramework") and not cv2.currentUIFramework():
        raise UsageError(
            "this build of OpenCV has no window support (opencv-python-headless); run: "
            "pip uninstall -y opencv-python-headless && "
            "pip install --no-deps --force-reinstall opencv-python"
        )


class Viewer:
    """A window that is open while the block runs.

    Entering the block raises `UsageError` if no window can be opened.

    Args:
        title: Title of the window.
        on_close: Called once, in another thread, when the user closes the window.

    Attributes:
        closed: True after the user closed the window or pressed q or Esc.
        failure: One line if the window ended by itself, for example because its display
            disappeared; the program that shows images continues.
    """

    def __init__(self, title: str, *, on_close: Callable[[], None] | None = None) -> None:
        self.closed = False
        self.failure = ""
        self._title = title
        self._on_close = on_close
        self._next_image: Image | None = None
        self._is_ending = False
        self._changed = threading.Condition()

    @property
    def is_ready(self) -> bool:
        """True if an image that is passed now will be shown and replaces no waiting one."""
        return self._next_image is None and not (self.closed or self.failure)

    def show(self, image: Image) -> bool:
        """Show an image (H, W, 3) uint8 RGB; return False after the user closed the window.

        The call never waits. The caller must not change the image afterwards.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UsageError(
                "an image must be a uint8 array of shape (H, W, 3), got "
                f"{image.dtype} {image.shape}"
            )
        with self._changed:
            self._next_image = image
            self._changed.notify_all()
        return not self.closed

    def wait(self) -> None:
        """Wait until the user closes the window, or until it ends by itself."""
        while self._sender.is_alive():
            self._sender.join(_TIMEOUT_S)

    def __enter__(self) -> Self:
        require_display()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()
        # A new session, because Ctrl-C is meant for this process, which finishes its files.
        self._process = subprocess.Popen(  # noqa: S603 -- a list of arguments, without a shell
            _window_command(self._title),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        self._sender = threading.Thread(target=self._send_images, name="fada-viewer", daemon=True)
        try:
            self._wait_until_open()
        except BaseException:
            self._process.kill()
            self._release()
            raise
        self._sender.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        self._sender.join(timeout=1.0)
        if self._sender.is_alive():
            # The window process hangs, and the sender waits for it.
            self._process.kill()
            self._sender.join()
        self._release()

    def _wait_until_open(self) -> None:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _TIMEOUT_S)
        if readable and self._process.stdout.read(1):
            return
        if readable:
            self._process.wait(_TIMEOUT_S)
        reason = self._failure_reason() if readable else f"no response within {_TIMEOUT_S:g} s"
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or ""
        raise UsageError(
            f"cannot open a window on the display {display!r} ({reason}); run from an X11 desktop, "
            "from Wayland with Xwayland, or with `ssh -X`, or leave --show out"
        )

    def _send_images(self) -> None:
        """Send the newest image until the block or the window ends."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._next_image is not None or self._is_ending, timeout=0.1
                )
                image, self._next_image = self._next_image, None
                # The last image is still sent, because it may be the only one.
                if self._is_ending and image is None:
                    return
            if self._process.poll() is not None:
                break
            if image is not None:
                start = time.monotonic()
                try:
                    self._send(image)
                except OSError:
                    break
                time.sleep(max(0.0, start + _FRAME_INTERVAL_S - time.monotonic()))
        self._handle_window_end()

    def _send(self, image: Image) -> None:
        assert self._process.stdin is not None
        height, width = image.shape[:2]
        # Integer factors, because OpenCV shrinks by them about ten times faster.
        if (factor := -(-max(height, width) // _MAX_IMAGE_SIDE)) > 1:
            image = resize_frame(image, (max(1, height // factor), max(1, width // factor)))
        bgr = np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._process.stdin.write(_IMAGE_HEADER.pack(*bgr.shape[:2]))
        self._process.stdin.write(bgr.data)
        self._process.stdin.flush()

    def _handle_window_end(self) -> None:
        """Record whether the user closed the window or its process failed."""
        try:
            code = self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code:
            self.failure = (
                f"the window was closed by an error ({self._failure_reason()}); later images are "
                "not shown"
            )
            return
        self.closed = True
        if self._on_close is not None:
            self._on_close()

    def _failure_reason(self) -> str:
        """Return the last line that the window process printed, or its line about the display."""
        self._stderr.seek(0)
        text = self._stderr.read().decode("utf-8", "replace")
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        reasons = [line for line in lines if "display" in line] or lines[-1:]
        if reasons:
            return reasons[0][:200]
        return f"its process exited with code {self._process.returncode}"

    def _release(self) -> None:
        """Close the window process and its pipes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()


def _window_command(title: str) -> list[str]:
    # The window process imports the same modules as this one, from the same paths.
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from fada_deploy.runtime.viewer import run_window; run_window({title!r})"
    )
    return [sys.executable, "-c", code]


def run_window(title: str, highgui: Any = cv2, pipe: int = 0) -> None:
    """Show the images that arrive on a pipe until it ends or the user closes the window.

    This is the main function of the window process; it prints one newline once the window is open.
    """
    highgui.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
    highgui.waitKey(1)
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
    is_first = True
    while _is_open(title, highgui):
        if not select.select([pipe], [], [], _EVENT_INTERVAL_S)[0]:
            continue
        image = _receive(pipe)
        if image is None:
            break
        if is_first:
            height, width = image.shape[:2]
            scale = min(1.0, _MAX_WINDOW_SIDE / max(height, width))
            highgui.resizeWindow(title, max(1, round(scale * width)), max(1, round(scale * height)))
            is_first = False
        highgui.imshow(title, image)
    with suppress(cv2.error):
        highgui.destroyAllWindows()


def _is_open(title: str, highgui: Any) -> bool:
    """Handle keys and mouse; return False once the user closed the window or pressed a quit key."""
    if highgui.waitKey(1) & 0xFF in _QUIT_KEYS:
        return False
    try:
        return bool(highgui.getWindowProperty(title, cv2.WND_PROP_VISIBLE) >= 1)
    except cv2.error:
        # Qt has no properties of the last window once it is closed.
        return False


def _receive(pipe: int) -> Image | None:
    """Return the next image (H, W, 3) uint8 BGR, None at the end of the pipe."""
    header = _read_exactly(pipe, bytearray(_IMAGE_HEADER.size))
    if header is None:
        return None
    height, width = _IMAGE_HEADER.unpack(header)
    data = _read_exactly(pipe, bytearray(height * width * 3))
    return None if data is None else np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _read_exactly(pipe: int, buffer: bytearray) -> bytearray | None:
    """Fill a buffer from a pipe; return None if the pipe ends before it is full."""
    view = memoryview(buffer)
    while view:
        count = os.readv(pipe, [view])
        if not count:
            return None
        view = view[count:]
    return buffer
