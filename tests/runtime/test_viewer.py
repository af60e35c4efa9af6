"""The viewer: what it shows, how it ends, its error messages, and a real window under Xvfb.

The tests with a real window need `Xvfb` and an OpenCV with window support: the installed one, or
one in the folder $FADA_TEST_OPENCV (`pip install --no-deps --target DIR opencv-python`).
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy import TIMEOUT_S, scene, wait_until

from fada_deploy.common.errors import UsageError
from fada_deploy.runtime import viewer
from fada_deploy.runtime.viewer import Viewer, require_display, run_window


class Highgui:
    """Replace OpenCV's windows: record the images, and press `key` after `after` images."""

    def __init__(self, *, key: int = -1, after: int = 0, shut: bool = False) -> None:
        self.shown: list[np.ndarray] = []
        self.calls: list[tuple[object, ...]] = []
        self._key, self._after, self._shut = key, after, shut

    def namedWindow(self, *arguments: object) -> None:
        self.calls.append(("named", *arguments))

    def resizeWindow(self, *arguments: object) -> None:
        self.calls.append(("sized", *arguments))

    def imshow(self, title: str, image: np.ndarray) -> None:
        self.shown.append(image.copy())

    def waitKey(self, delay: int) -> int:
        return self._key if len(self.shown) >= self._after else -1

    def getWindowProperty(self, title: str, number: int) -> float:
        if self._shut and len(self.shown) >= self._after:
            raise cv2.error("NULL guiReceiver (please create a window)")
        return 1.0

    def destroyAllWindows(self) -> None:
        self.calls.append(("shut",))


@pytest.fixture
def pipe() -> Iterator[Callable[[bytes], int]]:
    """Return a function that returns the reading end of a pipe with the given data."""
    opened: list[int] = []

    def make_pipe(data: bytes, *, close: bool = True) -> int:
        end, start = os.pipe()
        opened.append(end)
        with os.fdopen(start, "wb") if close else open(os.dup(start), "wb") as file:
            file.write(data)
        if not close:
            opened.append(start)
        return end

    yield make_pipe
    for each in opened:
        os.close(each)


def encode(image: np.ndarray) -> bytes:
    return struct.pack("<II", *image.shape[:2]) + image.tobytes()


SMALL = [np.full((4, 6, 3), i, np.uint8) for i in range(3)]


def test_window_process_shows_all_images_and_ends_with_the_pipe(pipe: Callable[..., int]) -> None:
    highgui = Highgui()
    # The last image is incomplete.
    run_window("t", highgui, pipe(b"".join(map(encode, SMALL)) + encode(SMALL[0])[:-5]))
    np.testing.assert_array_equal(highgui.shown, SMALL)
    assert [c[0] for c in highgui.calls] == ["named", "sized", "shut"]
    assert highgui.calls[0][1] == "t" and highgui.calls[1][1:] == ("t", 6, 4)


def test_large_image_opens_a_window_that_fits_the_screen(pipe: Callable[..., int]) -> None:
    highgui = Highgui()
    run_window("t", highgui, pipe(encode(np.zeros((3, 2560, 3), np.uint8))))
    assert highgui.calls[1][1:] == ("t", 1280, 2) and highgui.shown[0].shape == (3, 2560, 3)


@pytest.mark.parametrize(
    "ends", [{"key": ord("q")}, {"key": 27}, {"key": ord("Q") | 0x100000}, {"shut": True}], ids=str
)
def test_window_process_ends_when_the_user_closes_it(
    pipe: Callable[..., int], ends: dict[str, int]
) -> None:
    highgui = Highgui(after=2, **ends)
    run_window("t", highgui, pipe(encode(SMALL[0]) + encode(SMALL[1]), close=False))
    assert len(highgui.shown) == 2


def test_other_keys_do_not_close_the_window(pipe: Callable[..., int]) -> None:
    highgui = Highgui(key=ord("x"))
    run_window("t", highgui, pipe(encode(SMALL[0])))
    assert len(highgui.shown) == 1


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that sets the code of the window process.

    The code may use `highgui(**options)` and `run_window`.
    """
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "QT", raising=False)

    def set_code(code: str) -> None:
        head = f"""
import os, sys, time
sys.path[:] = {[str(Path(__file__).parent), *sys.path]!r}
import numpy as np
from test_viewer import Highgui, run_window
def highgui(**options):
    made = Highgui(**options)
    record = made.imshow
    def imshow(title, image):
        record(title, image)
        np.save("{tmp_path}/part.npy", image)
        os.rename("{tmp_path}/part.npy", f"{tmp_path}/{{len(made.shown)}}.npy")
    made.imshow = imshow
    return made
"""
        monkeypatch.setattr(
            viewer, "_window_command", lambda title: [sys.executable, "-c", head + code]
        )

    return set_code


def saved(folder: Path) -> list[np.ndarray]:
    return [np.load(p) for p in sorted(folder.glob("[0-9]*.npy"), key=lambda p: int(p.stem))]


def test_images_arrive_with_their_colors(child: Callable[[str], None], tmp_path: Path) -> None:
    child("run_window('t', highgui())")
    first, second = scene(1)[0], np.zeros((20, 4000, 3), np.uint8)
    with Viewer("t") as window:
        assert window.show(first)
        wait_until(lambda: len(saved(tmp_path)) == 1)
        wait_until(lambda: window.is_ready)
        assert window.show(second)
        wait_until(lambda: len(saved(tmp_path)) == 2)
    images = saved(tmp_path)
    np.testing.assert_array_equal(images[0], first[..., ::-1])
    # The wide image was shrunk.
    assert images[1].shape == (6, 1333, 3)
    assert not window.closed and not window.failure


def test_last_image_is_shown_until_the_user_closes_the_window(
    child: Callable[[str], None], tmp_path: Path
) -> None:
    child("run_window('t', highgui())")
    with Viewer("t") as window:
        window.show(scene(1)[0])
    assert len(saved(tmp_path)) == 1
    child("run_window('t', highgui(key=ord('q'), after=1))")
    with Viewer("t") as window:
        window.show(scene(2)[0])
        window.wait()
    assert window.closed


def test_shows_the_newest_of_many_images(child: Callable[[str], None], tmp_path: Path) -> None:
    child("run_window('t', highgui())")
    with Viewer("t") as window:
        for index in range(200):
            assert window.show(np.full((4, 4, 3), index, np.uint8))
        wait_until(lambda: bool(saved(tmp_path)) and int(saved(tmp_path)[-1][0, 0, 0]) == 199)
    numbers = [int(p[0, 0, 0]) for p in saved(tmp_path)]
    assert numbers == sorted(numbers) and len(numbers) < 200


def test_user_closes_the_window(child: Callable[[str], None]) -> None:
    child("run_window('t', highgui(key=27, after=1))")
    calls: list[int] = []
    with Viewer("t", on_close=lambda: calls.append(1)) as window:
        assert window.show(SMALL[0])
        wait_until(lambda: not window.show(SMALL[1]))
        wait_until(lambda: calls == [1])
    assert window.closed and not window.failure and calls == [1]


def test_user_closes_the_window_while_no_image_comes(child: Callable[[str], None]) -> None:
    child("run_window('t', highgui(key=27))")
    closed = threading.Event()
    with Viewer("t", on_close=closed.set) as window:
        assert closed.wait(TIMEOUT_S)
    assert window.closed


def test_failing_window_does_not_end_the_program(child: Callable[[str], None]) -> None:
    child(
        "print(flush=True); sys.stderr.write('noise\\nThe X11 connection broke.\\n'); sys.exit(1)"
    )
    with Viewer("t", on_close=lambda: pytest.fail("the user did not close it")) as window:
        wait_until(lambda: bool(window.failure))
        assert window.show(SMALL[0]) and not window.closed and not window.is_ready
    assert "The X11 connection broke." in window.failure


def test_hanging_window_does_not_block_the_program(child: Callable[[str], None]) -> None:
    child("print(flush=True); time.sleep(3600)")
    with Viewer("t") as window:
        assert window.is_ready
        # More data than the pipe can hold.
        for _ in range(20):
            assert window.show(np.zeros((1000, 1000, 3), np.uint8))
            time.sleep(0.01)
        assert not window.is_ready
    assert not window.closed


def test_exception_in_the_block_closes_the_window(child: Callable[[str], None]) -> None:
    child("run_window('t', highgui())")
    with pytest.raises(KeyboardInterrupt), Viewer("t") as window:
        raise KeyboardInterrupt
    assert window._process.returncode == 0 and not [
        t for t in threading.enumerate() if t.name == "fada-viewer"
    ]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "sys.stderr.write('qt.qpa.xcb: could not connect to display :9\\nmore text\\n\\n'); "
            "sys.exit(134)",
            r"qt\.qpa\.xcb: could not connect to display :9",
        ),
        ("sys.exit(7)", "its process exited with code 7"),
    ],
)
def test_window_that_does_not_open_is_one_line(
    child: Callable[[str], None], code: str, why: str
) -> None:
    child(code)
    with pytest.raises(UsageError, match=rf"display ':9' \({why}\).*ssh -X.*--show") as caught:
        Viewer("t").__enter__()
    assert "\n" not in str(caught.value)


def test_display_that_does_not_respond(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(viewer, "_TIMEOUT_S", 0.3)
    child("time.sleep(3600)")
    with pytest.raises(UsageError, match=r"0\.3 s"):
        Viewer("t").__enter__()


def test_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(
        UsageError, match=r"neither DISPLAY nor WAYLAND_DISPLAY is set.*`ssh -X`.*--show"
    ):
        require_display()


def test_opencv_without_window_support(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "", raising=False)
    with pytest.raises(
        UsageError,
        match=r"run: pip uninstall -y opencv-python-headless && pip install .*opencv-python$",
    ):
        require_display()
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "GTK3", raising=False)
    require_display()


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_rejects_other_arrays(image: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"uint8.*\(H, W, 3\)"):
        Viewer("t").show(image)


@pytest.fixture
def display(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Start an X server; return its name and the file with the contents of its screen."""
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("Xvfb is not installed; run: apt-get install xvfb")
    end, start = os.pipe()
    command = [server, "-displayfd", str(start), "-screen", "0", "640x480x24", "-nolisten", "tcp"]
    process = subprocess.Popen(
        [*command, "-fbdir", str(tmp_path)], pass_fds=[start], stderr=subprocess.DEVNULL
    )
    os.close(start)
    with os.fdopen(end) as numbers:
        number = numbers.readline().strip()
    try:
        if not number:
            pytest.skip("Xvfb does not start here")
        yield f":{number}", tmp_path / "Xvfb_screen0"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def environment(display: tuple[str, Path]) -> dict[str, str]:
    """Return the environment variables with which OpenCV can open windows."""
    given = os.environ.get("FADA_TEST_OPENCV", "")
    path = os.pathsep.join(
        filter(None, [given, str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    environment = os.environ | {"DISPLAY": display[0], "PYTHONPATH": path}
    check = "import cv2; print(getattr(cv2, 'currentUIFramework', str)())"
    if not subprocess.run(
        [sys.executable, "-c", check], env=environment, capture_output=True, text=True
    ).stdout.strip():
        pytest.skip(
            "OpenCV has no window support; set $FADA_TEST_OPENCV to a folder with another build"
        )
    return environment


def screen(file: Path) -> np.ndarray:
    """Return the screen (H, W, 3) BGR of an X server, from its file in the format of `xwd`."""
    data = file.read_bytes()
    head = struct.unpack(">25I", data[:100])
    width, height, line, colors = head[4], head[5], head[12], head[19]
    pixels = np.frombuffer(data, np.uint8, height * line, head[0] + 12 * colors)
    return pixels.reshape(height, line)[:, : width * 4].reshape(height, width, 4)[..., :3]


SCRIPT = """
import sys
from toy import scene
from fada_deploy.runtime.viewer import Viewer
with Viewer("drive.mp4") as window:
    for line in sys.stdin:
        assert window.show(scene(int(line), (240, 320))[0])
    print(window.closed, window.failure)
"""


def test_real_window(
    display: tuple[str, Path], environment: dict[str, str], tmp_path: Path
) -> None:
    def is_shown(index: int) -> bool:
        # Without a window manager the window is at the corner, under the mouse pointer.
        same = screen(display[1])[:240, :320] == scene(index, (240, 320))[0][..., ::-1]
        return bool(same.mean() > 0.99) or process.poll() is not None

    errors = tmp_path / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            for index in (0, 5):
                process.stdin.write(f"{index}\n")
                process.stdin.flush()
                wait_until(lambda index=index: is_shown(index))
            process.stdin.close()
            said = process.stdout.read()
        finally:
            process.kill()
    assert said == "False \n" and not errors.read_text()


def test_missing_display_does_not_abort_the_process(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | {"DISPLAY": ":987"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    # The exit code of a Python exception, not of an abort (134).
    assert done.returncode == 1
    assert (
        "UsageError: cannot open a window on the display ':987' (" in done.stderr.splitlines()[-1]
    )
