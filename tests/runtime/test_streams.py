"""Live sources from a real HTTP server and a real pipe: what comes, what is dropped, what breaks, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from toy import color_model, read_video, scene, until, write_video

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources import stream_input
from fada_deploy.runtime.sources import streams as live
from fada_deploy.runtime.sources.base import Frame, Pause
from fada_deploy.runtime.sources.images import ImageSource
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.sources.stream_clock import StreamClock
from fada_deploy.runtime.sources.streams import FrameSlot, LiveOptions, LiveSource, is_live_address
from fada_deploy.runtime.writers.save import SaveOptions, save_results

Serve = Callable[[list[bytes]], str]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Return 20 frames as MPEG-TS, which may begin and end anywhere."""
    return write_video(tmp_path / "film.ts", [scene(i)[0] for i in range(20)])


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves one body a connection, the last one again and again, without a length."""
    servers: list[ThreadingHTTPServer] = []

    def start(bodies: list[bytes], *, endless: bool = False) -> str:
        waiting = list(bodies)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = waiting.pop(0) if len(waiting) > 1 else waiting[0]
                self.close_connection = True
                if not body:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "video/mp2t")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
                        if not endless:
                            break
                        time.sleep(0.02)
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    return

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/film.ts"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_FIRST_PAUSE", 0.05)


def take(source: LiveSource, count: int) -> list[Frame | DataError]:
    found: list[Frame | DataError] = []
    for item in source.frames():
        if isinstance(item, Pause):
            continue
        found.append(item)
        if len(found) == count:
            source.stop()
    return found


def test_what_is_live() -> None:
    addresses = ["rtsp://a/b", "http://a/b", "-", "0", "udp://a:1"]
    assert all(map(is_live_address, addresses)) and not any(
        map(is_live_address, ["film.mp4", "a/0", "frames/"])
    )
    assert [s.name for s in map(LiveSource, ["-", "2", "rtsp://a/b"])] == [
        "pipe",
        "camera-2",
        "rtsp://a/b",
    ]
    assert isinstance(open_sources(["rtsp://a/b"])[0], LiveSource)
    assert LiveSource("rtsp://user:secret@a/b").name == "rtsp://a/b"
    assert [s.name for s in open_sources([["rtsp://a/b", 0], "rtsp://a/c"])] == [
        "rtsp://a/b",
        "camera-0",
        "rtsp://a/c",
    ]
    with pytest.raises(UsageError, match="rtps://a/b: no such kind of stream; there are rtsp://"):
        open_sources(["rtps://a/b"])
    with pytest.raises(
        UsageError, match="rtsp://a/b is live, and the others would wait for its end"
    ):
        open_sources(["rtsp://a/b", ImageSource("folder", {})])


def test_every_frame_comes_where_the_reader_waits(film: Path, serve: Serve) -> None:
    source = LiveSource(serve([film.read_bytes()]), LiveOptions("wait"))
    frames = take(source, 20)
    want = [rgb for _, rgb in read_video(film)]
    assert len(frames) == 20 and source.dropped == 0
    for frame, rgb in zip(frames, want, strict=True):
        assert isinstance(frame, Frame)
        np.testing.assert_array_equal(frame.rgb, rgb)
    clock = [f.pts for f in frames if isinstance(f, Frame) and f.pts is not None]
    assert clock == sorted(clock) and clock[0] == 0


def test_a_broken_connection_is_opened_again(film: Path, serve: Serve) -> None:
    data = film.read_bytes()
    source = LiveSource(serve([data, b"", data]), LiveOptions("wait"))
    said: list[str] = []
    source.on_trouble = said.append
    frames = take(source, 30)
    assert said[0] == f"{source.name}: it ended; trying again for 30 s"
    assert all(isinstance(f, Frame) for f in frames) and source.reconnects >= 2
    assert [f.index for f in frames if isinstance(f, Frame)] == list(range(30))


def test_a_source_that_gives_nothing_is_given_up(serve: Serve) -> None:
    found = take(LiveSource(serve([b""]), LiveOptions(give_up_s=0.3)), 1)
    assert (
        len(found) == 1 and "gave no frame for 0.3 s" in str(found[0]) and "\n" not in str(found[0])
    )


@pytest.mark.parametrize(("policy", "kept"), [("drop-oldest", [4]), ("drop-newest", [0])])
def test_what_nobody_takes_is_dropped_and_counted(policy: str, kept: list[int]) -> None:
    slot = FrameSlot(policy, threading.Condition())
    for index in range(5):
        assert slot.put(Frame(np.zeros((2, 2, 3), np.uint8), "s", index, "", 0.0))
    frame = slot.take()
    assert frame is not None and [frame.index] == kept and slot.dropped == 4
    assert slot.take() is None
    slot.close()
    assert not slot.put(frame)


def test_waiting_for_room_ends_with_the_slot() -> None:
    slot, frame = (
        FrameSlot("wait", threading.Condition()),
        Frame(np.zeros((2, 2, 3), np.uint8), "s", 0, "", 0.0),
    )
    assert slot.put(frame)
    refused: list[bool] = []
    writer = threading.Thread(target=lambda: refused.append(slot.put(frame)))
    writer.start()
    slot.close()
    writer.join(2)
    assert refused == [False] and slot.dropped == 0


def test_frames_past_their_deadline_are_not_begun(film: Path, serve: Serve) -> None:
    source = LiveSource(serve([film.read_bytes()]), LiveOptions("wait", deadline_s=1e-9))

    def stop_when_enough() -> None:
        while source.late < 20:
            time.sleep(0.01)
        source.stop()

    threading.Thread(target=stop_when_enough, daemon=True).start()
    assert all(isinstance(item, Pause) for item in source.frames()) and source.late >= 20


def test_wrong_options_are_one_line() -> None:
    with pytest.raises(
        UsageError, match="no policy 'hope'; there are drop-oldest, drop-newest, wait"
    ):
        LiveOptions("hope")
    with pytest.raises(UsageError, match="a deadline of 0 ms has passed already"):
        LiveOptions(deadline_s=0)


def test_an_abandoned_stream_leaves_no_thread(
    film: Path, serve: Callable[..., str], tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    with Segmenter(color_model(tmp_path / "toy.onnx")) as segmenter:
        for result in segmenter.stream(serve([film.read_bytes()], endless=True)):
            np.testing.assert_array_equal(result.labels.shape, (64, 128))
            break
    left = {t.name for t in set(threading.enumerate()) - before}
    assert not [name for name in left if name.startswith("fada")]


def test_several_at_once_and_a_dead_one_holds_nobody_up(
    film: Path, serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = [LiveSource(serve([film.read_bytes()], endless=True)) for _ in range(2)]
    dead = LiveSource(serve([b""]), LiveOptions(give_up_s=1000.0))
    indices: dict[str, list[int]] = {}
    batches: set[int] = set()
    with Segmenter(color_model(tmp_path / "toy.onnx"), batch=2) as segmenter:
        submit = segmenter.backend.submit

        def slow(frames: np.ndarray) -> Any:
            batches.add(len(frames))
            # Both cameras have a frame by the time the network is free.
            time.sleep(0.05)
            return submit(frames)

        monkeypatch.setattr(segmenter.backend, "submit", slow)
        for result in segmenter.stream([*streams, dead]):
            np.testing.assert_array_equal(
                result.labels, segmenter.backend.submit(result.frame[None]).labels((64, 128))[0]
            )
            indices.setdefault(result.source, []).append(result.index)
            if min(len(indices.get(s.name, ())) for s in streams) >= 8 and 2 in batches:
                break
    assert sorted(indices) == sorted(s.name for s in streams) and batches == {1, 2}
    for seen in indices.values():
        assert seen == sorted(set(seen))


def test_a_film_of_each(film: Path, serve: Callable[..., str], tmp_path: Path) -> None:
    streams = [
        LiveSource(serve([film.read_bytes()], endless=True), LiveOptions("wait")) for _ in range(2)
    ]
    frames: Counter[str] = Counter()
    with Segmenter(color_model(tmp_path / "toy.onnx")) as segmenter:
        for item in save_results(segmenter, streams, SaveOptions(tmp_path / "out")):
            if isinstance(item, Result):
                frames[item.source] += 1
            for stream in streams:
                if frames[stream.name] >= 10:
                    stream.stop()
    films = [read_video(tmp_path / f"out/overlay/{name}.mp4") for name in ("film", "film-2")]
    assert [len(f) for f in films] == [frames[s.name] for s in streams] and min(
        map(len, films)
    ) >= 10


def test_a_camera_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    found = take(LiveSource("77", LiveOptions(give_up_s=0.2)), 1)
    assert "camera 77 does not open" in str(found[0])


def test_a_pipe_is_labeled_to_its_end(film: Path, tmp_path: Path) -> None:
    model = color_model(tmp_path / "toy.onnx")
    command = [sys.executable, "-m", "fada_deploy", "infer", "-", "--model", model]
    command += ["--out", tmp_path / "out", "--json", "--save", "overlay,json"]
    with film.open("rb") as pipe:
        done = subprocess.run(list(map(str, command)), stdin=pipe, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 20 and summary["live"]["pipe"] == {
        "dropped": 0,
        "late": 0,
        "damaged": 0,
        "reconnects": 0,
    }
    # A pipe loses nothing, and its frames come when the stream says, however fast they are read.
    times = [float(t) for t, _ in read_video(tmp_path / "out/overlay/pipe.mp4")]
    np.testing.assert_allclose(times, np.arange(20) / 10, atol=2e-3)


def damaged_pictures(count: int, bad: set[int]) -> bytes:
    """Return motion JPEG, some pictures of which are no pictures."""
    found = []
    for i in range(count):
        ok, data = cv2.imencode(".jpg", scene(i)[0][..., ::-1])
        assert ok
        whole = data.tobytes()
        # Its head is whole, as the demuxer goes by it, and what follows is none.
        found.append(whole[:20] + b"\xff\xc0\x00\x02" + whole[-2:] if i in bad else whole)
    return b"".join(found)


def test_a_damaged_picture_in_a_pipe_is_counted_and_the_rest_go_on(tmp_path: Path) -> None:
    model = color_model(tmp_path / "toy.onnx")
    command = [sys.executable, "-m", "fada_deploy", "infer", "-", "--model", model]
    command += ["--out", tmp_path / "out", "--json", "--save", "json"]
    data = damaged_pictures(12, {4, 7})
    done = subprocess.run(list(map(str, command)), input=data, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 10 and summary["live"]["pipe"]["damaged"] == 2
    # Motion JPEG has no clock, and none is made up.
    times = [
        frame["time_s"]
        for frame in json.loads((tmp_path / "out/json/pipe.json").read_text())["frames"]
    ]
    assert times[0] == 0 and times == sorted(times) and times[1] != 0.04


def test_a_stream_in_which_nothing_decodes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (live, stream_input):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.1)
    source = LiveSource("http://127.0.0.1:9/film.ts", LiveOptions(policy="wait", give_up_s=0.3))

    def damaged(over: Callable[[], bool]) -> Iterator[None]:
        while not over():
            time.sleep(0.01)
            yield None

    source._pictures = damaged  # type: ignore[method-assign, assignment]
    (error,) = take(source, 1)
    assert (
        str(error).endswith("gave no frame for 0.3 s (nothing in it can be decoded)")
        and source.damaged
    )


def test_a_file_that_a_server_gives_whole_is_read_once(film: Path, tmp_path: Path) -> None:
    # As `python -m http.server` does: with its length, and nothing of it a second time.
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/{film.name}"
        found = list(LiveSource(address, LiveOptions(policy="wait", give_up_s=60)).frames())
    finally:
        server.shutdown()
        server.server_close()
    frames = [item for item in found if isinstance(item, Frame)]
    assert len(frames) == 20 and not [item for item in found if isinstance(item, DataError)]


def test_what_ends_soon_is_asked_less_and_less_often(film: Path, serve: Serve) -> None:
    source = LiveSource(serve([film.read_bytes()]), LiveOptions(policy="wait"))
    troubles: list[str] = []
    source.on_trouble = troubles.append
    began = time.monotonic()
    found = take(source, 20 * 5)
    # Said once; four pauses of 0.05, 0.1, 0.2 and 0.4 s.
    assert len(troubles) == 1 and "it ended; trying again" in troubles[0]
    assert source.reconnects == 4 and time.monotonic() - began > 0.75
    times = np.diff([float(item.pts * item.time_base) for item in found if isinstance(item, Frame)])
    # Its own clock within a connection, and onward from one to the next.
    assert (times >= 0).all() and np.isclose(times, 0.1, atol=1e-3).sum() == 95


def test_a_streams_own_clock_is_kept_and_carried_over_its_faults() -> None:
    clock = StreamClock(own=True)
    clock.begin_anew()
    # Read all at once: only the stream knows when they were taken; one says nothing of itself.
    found = [clock.seconds(100.0, own) for own in (7.0, 7.1, None, 7.3)]
    np.testing.assert_allclose(found, [0, 0.1, 0.1, 0.3])
    # Another recording behind it begins anew, or hours later: it goes on from where it was.
    found = [clock.seconds(100.0, own) for own in (0.0, 0.1, 9000.0, 9000.1)]
    np.testing.assert_allclose(found, [0.5, 0.6, 0.7, 0.8])
    # Opened again after a while: the while is there.
    clock.begin_anew()
    np.testing.assert_allclose([clock.seconds(130.0, own) for own in (3.0, 3.1)], [30, 30.1])
    by_arrival = StreamClock(own=False)
    assert [by_arrival.seconds(at, 5.0) for at in (10.0, 10.5)] == [0, 0.5]


def test_a_source_is_read_again(film: Path, serve: Callable[..., str]) -> None:
    source = LiveSource(serve([film.read_bytes()], endless=True), LiveOptions(policy="wait"))
    for _ in range(2):
        frames = (item for item in source.frames() if isinstance(item, Frame))
        assert [next(frames).index for _ in range(3)] == [0, 1, 2]
        frames.close()


def test_a_silent_pipe_is_left_with_the_film_whole(film: Path, tmp_path: Path) -> None:
    model = color_model(tmp_path / "toy.onnx")
    command = [
        sys.executable,
        "-m",
        "fada_deploy",
        "infer",
        "-",
        "--model",
        model,
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--save", "overlay,mask"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(film.read_bytes())
    process.stdin.flush()
    # Its writer says nothing more, and does not close.
    until(lambda: len(list(tmp_path.glob("out/mask/pipe/[!.]*"))) > 10, process)
    process.send_signal(signal.SIGINT)
    try:
        code = process.wait(60)
    finally:
        process.kill()
    assert code == 0, process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert 10 < len(read_video(tmp_path / "out/overlay/pipe.mp4")) <= 20


def test_ctrl_c_finishes_the_film(film: Path, serve: Callable[..., str], tmp_path: Path) -> None:
    """An endless stream, interrupted: exit 0, and the film is whole."""
    address = serve([film.read_bytes()], endless=True)
    model = color_model(tmp_path / "toy.onnx")
    command = [
        sys.executable,
        "-m",
        "fada_deploy",
        "infer",
        address,
        "--model",
        model,
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--save", "overlay,mask"], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    until(lambda: len(list(tmp_path.glob("out/mask/film/[!.]*"))) > 5, process)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "finishing; once more stops now" in said and "dropped" in said
    assert len(read_video(tmp_path / "out/overlay/film.mp4")) > 5
    assert not list(tmp_path.glob("out/overlay/.*"))
