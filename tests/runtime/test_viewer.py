"""The window: what it shows, how it ends, what it says where there can be none; and a real one under Xvfb.

The real one needs `Xvfb` and an OpenCV with windows, this environment's own or one that lies in the folder
$FADA_TEST_OPENCV (`pip install --no-deps --target DIR opencv-python`).
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
from toy import PATIENCE, scene, until

from fada_deploy.common.errors import UsageError
from fada_deploy.runtime import viewer as show
from fada_deploy.runtime.viewer import Window, require_display, run_window


class Highgui:
    """Stands in for OpenCV's windows: keeps what it was shown, presses `key` after so many pictures."""

    def __init__(self, *, key: int = -1, after: int = 0, shut: bool = False) -> None:
        self.shown: list[np.ndarray] = []
        self.calls: list[tuple[object, ...]] = []
        self._key, self._after, self._shut = key, after, shut

    def namedWindow(self, *arguments: object) -> None:
        self.calls.append(("named", *arguments))

    def resizeWindow(self, *arguments: object) -> None:
        self.calls.append(("sized", *arguments))

    def imshow(self, title: str, picture: np.ndarray) -> None:
        self.shown.append(picture.copy())

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
    """Return a function that gives a pipe's end, out of which the data come."""
    opened: list[int] = []

    def begin(data: bytes, *, over: bool = True) -> int:
        end, start = os.pipe()
        opened.append(end)
        with os.fdopen(start, "wb") if over else open(os.dup(start), "wb") as file:
            file.write(data)
        if not over:
            opened.append(start)
        return end

    yield begin
    for each in opened:
        os.close(each)


def sent(picture: np.ndarray) -> bytes:
    return struct.pack("<II", *picture.shape[:2]) + picture.tobytes()


SMALL = [np.full((4, 6, 3), i, np.uint8) for i in range(3)]


def test_the_windows_side_shows_all_and_ends_with_the_pipe(pipe: Callable[..., int]) -> None:
    highgui = Highgui()
    # The last picture is cut short.
    run_window("t", highgui, pipe(b"".join(map(sent, SMALL)) + sent(SMALL[0])[:-5]))
    np.testing.assert_array_equal(highgui.shown, SMALL)
    assert [c[0] for c in highgui.calls] == ["named", "sized", "shut"]
    assert highgui.calls[0][1] == "t" and highgui.calls[1][1:] == ("t", 6, 4)


def test_a_large_picture_gets_a_window_that_fits_a_screen(pipe: Callable[..., int]) -> None:
    highgui = Highgui()
    run_window("t", highgui, pipe(sent(np.zeros((3, 2560, 3), np.uint8))))
    assert highgui.calls[1][1:] == ("t", 1280, 2) and highgui.shown[0].shape == (3, 2560, 3)


@pytest.mark.parametrize(
    "ends", [{"key": ord("q")}, {"key": 27}, {"key": ord("Q") | 0x100000}, {"shut": True}], ids=str
)
def test_the_windows_side_ends_as_a_person_wants(
    pipe: Callable[..., int], ends: dict[str, int]
) -> None:
    highgui = Highgui(after=2, **ends)
    run_window("t", highgui, pipe(sent(SMALL[0]) + sent(SMALL[1]), over=False))
    assert len(highgui.shown) == 2


def test_other_keys_end_nothing(pipe: Callable[..., int]) -> None:
    highgui = Highgui(key=ord("x"))
    run_window("t", highgui, pipe(sent(SMALL[0])))
    assert len(highgui.shown) == 1


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Return a function that sets what the window's process runs; it may use `highgui(**how)` and `run_window`."""
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "QT", raising=False)

    def runs(code: str) -> None:
        head = f"""
import os, sys, time
sys.path[:] = {[str(Path(__file__).parent), *sys.path]!r}
import numpy as np
from test_viewer import Highgui, run_window
def highgui(**how):
    made = Highgui(**how)
    keep = made.imshow
    def imshow(title, picture):
        keep(title, picture)
        os.rename(np.save({str(tmp_path)!r} + "/part.npy", picture) or {str(tmp_path)!r} + "/part.npy",
                  f"{tmp_path}/{{len(made.shown)}}.npy")
    made.imshow = imshow
    return made
"""
        monkeypatch.setattr(show, "_program", lambda title: [sys.executable, "-c", head + code])

    return runs


def saved(folder: Path) -> list[np.ndarray]:
    return [np.load(p) for p in sorted(folder.glob("[0-9]*.npy"), key=lambda p: int(p.stem))]


def test_pictures_arrive_with_their_colors(child: Callable[[str], None], tmp_path: Path) -> None:
    child("run_window('t', highgui())")
    first, second = scene(1)[0], np.zeros((20, 4000, 3), np.uint8)
    with Window("t") as window:
        assert window.show(first)
        until(lambda: len(saved(tmp_path)) == 1)
        until(lambda: window.due)
        assert window.show(second)
        until(lambda: len(saved(tmp_path)) == 2)
    found = saved(tmp_path)
    np.testing.assert_array_equal(found[0], first[..., ::-1])
    # A wide one has been shrunk.
    assert found[1].shape == (6, 1333, 3)
    assert not window.closed and not window.failure


def test_a_picture_given_last_is_still_shown_and_stays_until_a_person_closes_it(
    child: Callable[[str], None], tmp_path: Path
) -> None:
    child("run_window('t', highgui())")
    with Window("t") as window:
        window.show(scene(1)[0])
    assert len(saved(tmp_path)) == 1
    child("run_window('t', highgui(key=ord('q'), after=1))")
    with Window("t") as window:
        window.show(scene(2)[0])
        window.wait()
    assert window.closed


def test_of_many_pictures_the_newest_is_shown(child: Callable[[str], None], tmp_path: Path) -> None:
    child("run_window('t', highgui())")
    with Window("t") as window:
        for index in range(200):
            assert window.show(np.full((4, 4, 3), index, np.uint8))
        until(lambda: bool(saved(tmp_path)) and int(saved(tmp_path)[-1][0, 0, 0]) == 199)
    numbers = [int(p[0, 0, 0]) for p in saved(tmp_path)]
    assert numbers == sorted(numbers) and len(numbers) < 200


def test_a_person_closes_it(child: Callable[[str], None]) -> None:
    child("run_window('t', highgui(key=27, after=1))")
    told: list[int] = []
    with Window("t", on_close=lambda: told.append(1)) as window:
        assert window.show(SMALL[0])
        until(lambda: not window.show(SMALL[1]))
        until(lambda: told == [1])
    assert window.closed and not window.failure and told == [1]


def test_a_person_closes_it_while_nothing_comes(child: Callable[[str], None]) -> None:
    child("run_window('t', highgui(key=27))")
    told = threading.Event()
    with Window("t", on_close=told.set) as window:
        assert told.wait(PATIENCE)
    assert window.closed


def test_a_window_that_goes_away_by_itself_ends_nothing(child: Callable[[str], None]) -> None:
    child(
        "print(flush=True); sys.stderr.write('noise\\nThe X11 connection broke.\\n'); sys.exit(1)"
    )
    with Window("t", on_close=lambda: pytest.fail("nobody closed it")) as window:
        until(lambda: bool(window.failure))
        assert window.show(SMALL[0]) and not window.closed and not window.due
    assert window.failure == "the window is gone (The X11 connection broke.); the rest is not shown"


def test_a_window_that_hangs_holds_nothing_up(child: Callable[[str], None]) -> None:
    child("print(flush=True); time.sleep(3600)")
    with Window("t") as window:
        assert window.due
        # More than a pipe holds.
        for _ in range(20):
            assert window.show(np.zeros((1000, 1000, 3), np.uint8))
            time.sleep(0.01)
        assert not window.due
    assert not window.closed


def test_an_error_inside_shuts_it(child: Callable[[str], None]) -> None:
    child("run_window('t', highgui())")
    with pytest.raises(KeyboardInterrupt), Window("t") as window:
        raise KeyboardInterrupt
    assert window._process.returncode == 0 and not [
        t for t in threading.enumerate() if t.name == "fada-window"
    ]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (
            "sys.stderr.write('qt.qpa.xcb: could not connect to display :9\\nQt said more\\n\\n'); sys.exit(134)",
            r"qt\.qpa\.xcb: could not connect to display :9",
        ),
        ("sys.exit(7)", "its process ended with 7"),
    ],
)
def test_a_window_that_does_not_open(child: Callable[[str], None], code: str, why: str) -> None:
    child(code)
    with pytest.raises(
        UsageError, match=rf"^no window opens on display ':9' \({why}\); run it from"
    ) as caught:
        Window("t").__enter__()
    assert "\n" not in str(caught.value)


def test_a_display_that_does_not_answer(
    child: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(show, "_PATIENCE", 0.3)
    child("time.sleep(3600)")
    with pytest.raises(UsageError, match=r"\(no answer in 0\.3 s\)"):
        Window("t").__enter__()


def test_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(
        UsageError, match=r"neither DISPLAY nor WAYLAND_DISPLAY is set.*desktop or by `ssh -X`"
    ):
        require_display()


def test_an_opencv_without_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "", raising=False)
    with pytest.raises(
        UsageError,
        match=r"type: pip uninstall -y opencv-python-headless && pip install .*opencv-python$",
    ):
        require_display()
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "GTK3", raising=False)
    require_display()


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture(picture: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"a picture is uint8 of shape \(H, W, 3\), not"):
        Window("t").show(picture)


@pytest.fixture
def display(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Start an X server; return its name and the file in which its screen lies."""
    server = shutil.which("Xvfb")
    if server is None:
        pytest.skip("no Xvfb; type: apt-get install xvfb")
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
    """Return the environment in which there are windows."""
    given = os.environ.get("FADA_TEST_OPENCV", "")
    path = os.pathsep.join(
        filter(None, [given, str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    environment = os.environ | {"DISPLAY": display[0], "PYTHONPATH": path}
    asks = "import cv2; print(getattr(cv2, 'currentUIFramework', str)())"
    if not subprocess.run(
        [sys.executable, "-c", asks], env=environment, capture_output=True, text=True
    ).stdout.strip():
        pytest.skip("this OpenCV has no windows; give one that has in $FADA_TEST_OPENCV")
    return environment


def screen(file: Path) -> np.ndarray:
    """Return an X server's screen (H, W, 3) BGR; it keeps it in the format of `xwd`."""
    data = file.read_bytes()
    head = struct.unpack(">25I", data[:100])
    width, height, line, colors = head[4], head[5], head[12], head[19]
    pixels = np.frombuffer(data, np.uint8, height * line, head[0] + 12 * colors)
    return pixels.reshape(height, line)[:, : width * 4].reshape(height, width, 4)[..., :3]


SCRIPT = """
import sys
from toy import scene
from fada_deploy.runtime.viewer import Window
with Window("drive.mp4") as window:
    for line in sys.stdin:
        assert window.show(scene(int(line), (240, 320))[0])
    print(window.closed, window.failure)
"""


def test_a_real_window(
    display: tuple[str, Path], environment: dict[str, str], tmp_path: Path
) -> None:
    def is_shown(index: int) -> bool:
        # Without a window manager it lies at the corner; the mouse's pointer lies over it.
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
                until(lambda index=index: is_shown(index))
            process.stdin.close()
            said = process.stdout.read()
        finally:
            process.kill()
    assert said == "False \n" and not errors.read_text()


def test_a_display_that_is_not_there_aborts_nothing(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | {"DISPLAY": ":987"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    # Python's own exit code for an exception, not 134.
    assert done.returncode == 1
    assert "UsageError: no window opens on display ':987' (" in done.stderr.splitlines()[-1]
