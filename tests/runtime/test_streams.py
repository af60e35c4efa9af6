"""Live sources from a real HTTP server and a real pipe: dropping, reconnecting, stopping."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from toy import color_model, http_server, read_video, scene, wait_until, write_video

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources import stream_input, stream_reader
from fada_deploy.runtime.sources.addresses import is_live_address
from fada_deploy.runtime.sources.base import Frame, Pause
from fada_deploy.runtime.sources.frame_slot import FrameSlot, StreamCounters
from fada_deploy.runtime.sources.images import ImageSource
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.sources.stream_clock import StreamClock
from fada_deploy.runtime.sources.stream_input import read_stream
from fada_deploy.runtime.sources.stream_reader import LiveOptions
from fada_deploy.runtime.sources.streams import LiveSource
from fada_deploy.runtime.writers.save import SaveOptions, save_results

Serve = Callable[[list[bytes]], str]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Return 20 frames as MPEG-TS, a format that may start and end anywhere."""
    return write_video(tmp_path / "clip.ts", [scene(i)[0] for i in range(20)])


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves one body per connection without a length.

    The last body is repeated; an empty body is a 404 response.
    """

    def start(bodies: list[bytes], *, endless: bool = False) -> str:
        remaining = list(bodies)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = remaining.pop(0) if len(remaining) > 1 else remaining[0]
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

        return f"{servers.enter_context(http_server(Handler))}/clip.ts"

    with ExitStack() as servers:
        yield start


@pytest.fixture(autouse=True)
def short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_reader, "_FIRST_DELAY_S", 0.05)


def take(source: LiveSource, count: int) -> list[Frame | DataError]:
    """Return the first `count` frames and errors of a source."""
    items: list[Frame | DataError] = []
    for item in source.frames():
        if isinstance(item, Pause):
            continue
        items.append(item)
        if len(items) == count:
            source.stop()
    return items


def test_opens_live_addresses() -> None:
    addresses = ["rtsp://a/b", "http://a/b", "-", "0", "camera:0", "udp://a:1"]
    assert all(map(is_live_address, addresses)) and not any(
        map(is_live_address, ["clip.mp4", "a/0", "frames/"])
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
    with pytest.raises(UsageError, match=r"rtps://a/b: unknown kind of stream.*rtsp://"):
        open_sources(["rtps://a/b"])
    with pytest.raises(UsageError, match="rtsp://a/b is a live source"):
        open_sources(["rtsp://a/b", ImageSource("folder", {})])


def test_wait_policy_loses_no_frame(clip: Path, serve: Serve) -> None:
    source = LiveSource(serve([clip.read_bytes()]), LiveOptions("wait"))
    frames = take(source, 20)
    expected = [rgb for _, rgb in read_video(clip)]
    assert len(frames) == 20 and source.counters.dropped == 0
    for frame, rgb in zip(frames, expected, strict=True):
        assert isinstance(frame, Frame)
        np.testing.assert_array_equal(frame.rgb, rgb)
    times = [f.pts for f in frames if isinstance(f, Frame) and f.pts is not None]
    assert times == sorted(times) and times[0] == 0


def test_reconnects_after_a_broken_connection(
    clip: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    data = clip.read_bytes()
    source = LiveSource(serve([data, b"", data]), LiveOptions("wait"))
    frames = take(source, 30)
    assert source.name in caplog.messages[0] and "reconnecting for 30 s" in caplog.messages[0]
    assert all(isinstance(f, Frame) for f in frames) and source.counters.reconnects >= 2
    assert [f.index for f in frames if isinstance(f, Frame)] == list(range(30))


def test_gives_up_after_the_reconnect_timeout(clip: Path, serve: Serve) -> None:
    address = serve([clip.read_bytes(), b""])
    *frames, error = take(LiveSource(address, LiveOptions("wait", reconnect_timeout_s=0.3)), 30)
    assert len(frames) == 20 and isinstance(error, DataError)
    assert "no frame for 0.3 s" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("SERVER", "404"),
        ("http://no-such-host.invalid/a.ts", "host name no-such-host.invalid is unknown"),
        ("rtsp://127.0.0.1:9/a", "refused"),
    ],
)
def test_a_source_that_never_worked_is_given_up_at_once(
    serve: Serve, address: str, cause: str
) -> None:
    source = LiveSource(address.replace("SERVER", serve([b""])))
    (error,) = take(source, 1)
    assert isinstance(error, DataError) and cause in str(error) and source.counters.reconnects == 0


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://user:secret@host/live", "rtsp://host/live"),
        ("rtsp://user:se/c@ret@host:554/live", "rtsp://host:554/live"),
        ("rtsp://user@host/live", "rtsp://host/live"),
        ("RTSP://user:secret@host/live", "rtsp://host/live"),
        ("rtsp://user:123/secret@host/live", "rtsp://host/live"),
        ("rtsp://user:pa?secret@host/live", "rtsp://"),
        ("https://host/a?key=secret@x", "https://"),
        ("https://host/a.m3u8?token=secret", "https://host/a.m3u8?"),
        ("rtsp://host:554/user=admin&password=secret&channel=1.sdp", "rtsp://host:554/?"),
        ("rtsp://host/user=admin&password=p@secret&channel=1?a", "rtsp://host/?"),
        ("rtsp://host/monkey=1/stream", "rtsp://host/monkey=1/stream"),
    ],
)
def test_names_of_sources_contain_no_secret(address: str, name: str) -> None:
    (source,) = open_sources([address])
    assert source.name.startswith(name) and "secret" not in source.name
    if "?" in address:
        assert source.name != LiveSource(address + "2").name


@pytest.mark.parametrize(("policy", "remaining"), [("drop-oldest", [4]), ("drop-newest", [0])])
def test_full_slot_drops_and_counts(policy: str, remaining: list[int]) -> None:
    counters = StreamCounters()
    slot = FrameSlot(policy, threading.Condition(), counters)
    for index in range(5):
        assert slot.put(Frame(np.zeros((2, 2, 3), np.uint8), "s", index, "", 0.0))
    frame = slot.take()
    assert frame is not None and [frame.index] == remaining and counters.dropped == 4
    assert slot.take() is None
    slot.close()
    assert not slot.put(frame)


def test_closing_a_slot_wakes_a_waiting_reader() -> None:
    counters = StreamCounters()
    slot = FrameSlot("wait", threading.Condition(), counters)
    frame = Frame(np.zeros((2, 2, 3), np.uint8), "s", 0, "", 0.0)
    assert slot.put(frame)
    accepted: list[bool] = []
    writer = threading.Thread(target=lambda: accepted.append(slot.put(frame)))
    writer.start()
    slot.close()
    writer.join(2)
    assert accepted == [False] and counters.dropped == 0


def test_late_frames_are_dropped_and_counted(clip: Path, serve: Serve) -> None:
    source = LiveSource(serve([clip.read_bytes()]), LiveOptions("wait", deadline_s=1e-9))

    def stop_when_enough() -> None:
        while source.counters.late < 20:
            time.sleep(0.01)
        source.stop()

    threading.Thread(target=stop_when_enough, daemon=True).start()
    assert all(isinstance(item, Pause) for item in source.frames()) and source.counters.late >= 20


def test_invalid_options_raise() -> None:
    with pytest.raises(UsageError, match=r"drop-oldest, drop-newest, wait.*'hope'"):
        LiveOptions("hope")
    with pytest.raises(UsageError, match="greater than 0 ms"):
        LiveOptions(deadline_s=0)
    with pytest.raises(UsageError, match="at least 0 s, got -1 s"):
        LiveOptions(reconnect_timeout_s=-1)


def test_closed_stream_leaves_no_thread(
    clip: Path, serve: Callable[..., str], tmp_path: Path
) -> None:
    before = set(threading.enumerate())
    with Segmenter(color_model(tmp_path / "toy.onnx")) as segmenter:
        for result in segmenter.stream(serve([clip.read_bytes()], endless=True)):
            np.testing.assert_array_equal(result.labels.shape, (64, 128))
            break
    names = {t.name for t in set(threading.enumerate()) - before}
    assert not [name for name in names if name.startswith("fada") and "kernels" not in name]


def test_dead_stream_does_not_delay_others(
    clip: Path, serve: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = [LiveSource(serve([clip.read_bytes()], endless=True)) for _ in range(2)]
    dead = LiveSource(serve([clip.read_bytes(), b""]), LiveOptions(reconnect_timeout_s=1000.0))
    indices: dict[str, list[int]] = {}
    batches: set[int] = set()
    with Segmenter(color_model(tmp_path / "toy.onnx"), batch=2) as segmenter:
        submit = segmenter.backend.submit

        def slow(frames: np.ndarray) -> Any:
            batches.add(len(frames))
            # Slow enough that both streams have a frame when the network is free.
            time.sleep(0.05)
            return submit(frames)

        monkeypatch.setattr(segmenter.backend, "submit", slow)
        for result in segmenter.stream([*live, dead]):
            np.testing.assert_array_equal(
                result.labels, segmenter.backend.submit(result.frame[None]).labels((64, 128))[0]
            )
            indices.setdefault(result.source, []).append(result.index)
            if min(len(indices.get(s.name, ())) for s in live) >= 8 and 2 in batches:
                break
    assert {s.name for s in live} <= set(indices) and batches == {1, 2}
    for numbers in indices.values():
        assert numbers == sorted(set(numbers))


def test_frames_have_the_name_of_their_source(
    clip: Path, serve: Callable[..., str], tmp_path: Path
) -> None:
    """The login is left out of a name, and may be all that tells two cameras apart."""
    address = serve([clip.read_bytes()], endless=True)
    logins = [address.replace("http://", f"http://{login}@") for login in ("front:1", "rear:2")]
    cameras = open_sources([LiveSource(login) for login in logins])
    seen: set[str] = set()
    with Segmenter(color_model(tmp_path / "toy.onnx")) as segmenter:
        for result in segmenter.stream(cameras):
            seen.add(result.source)
            if len(seen) == 2:
                break
    assert seen == {camera.name for camera in cameras} and len(seen) == 2


def test_each_stream_has_its_own_video(
    clip: Path, serve: Callable[..., str], tmp_path: Path
) -> None:
    live = [
        LiveSource(serve([clip.read_bytes()], endless=True), LiveOptions("wait")) for _ in range(2)
    ]
    frames: Counter[str] = Counter()
    with Segmenter(color_model(tmp_path / "toy.onnx")) as segmenter:
        for item in save_results(segmenter, live, SaveOptions(tmp_path / "out")):
            if isinstance(item, Result):
                frames[item.source] += 1
            for source in live:
                if frames[source.name] >= 10:
                    source.stop()
    videos = [read_video(tmp_path / f"out/overlay/{name}.mp4") for name in ("clip", "clip-2")]
    counts = [len(video) for video in videos]
    assert counts == [frames[s.name] for s in live] and min(counts) >= 10


def test_missing_camera(capfd: pytest.CaptureFixture[str]) -> None:
    (error,) = take(LiveSource("camera:77", LiveOptions(reconnect_timeout_s=0.2)), 1)
    assert "camera 77 cannot be opened" in str(error)


def test_pipe_is_processed_to_its_end(clip: Path, tmp_path: Path) -> None:
    model = color_model(tmp_path / "toy.onnx")
    command = [sys.executable, "-m", "fada_deploy", "infer", "-", "--model", model]
    command += ["--out", tmp_path / "out", "--json", "--save", "overlay,json"]
    with clip.open("rb") as pipe:
        done = subprocess.run(list(map(str, command)), stdin=pipe, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 20 and summary["live"]["pipe"] == {
        "dropped": 0,
        "late": 0,
        "damaged": 0,
        "reconnects": 0,
    }
    # A pipe loses no frame, and its frames have the stream's timestamps.
    times = [float(t) for t, _ in read_video(tmp_path / "out/overlay/pipe.mp4")]
    np.testing.assert_allclose(times, np.arange(20) / 10, atol=2e-3)


def motion_jpeg(count: int, damaged: set[int]) -> bytes:
    """Return motion JPEG with some images damaged."""
    images = []
    for i in range(count):
        ok, data = cv2.imencode(".jpg", scene(i)[0][..., ::-1])
        assert ok
        image = data.tobytes()
        if i in damaged:
            # The demuxer needs the header; the rest cannot be decoded.
            image = image[:20] + b"\xff\xc0\x00\x02" + image[-2:]
        images.append(image)
    return b"".join(images)


def test_damaged_image_in_a_pipe_is_counted(tmp_path: Path) -> None:
    model = color_model(tmp_path / "toy.onnx")
    command = [sys.executable, "-m", "fada_deploy", "infer", "-", "--model", model]
    command += ["--out", tmp_path / "out", "--json", "--save", "json"]
    data = motion_jpeg(12, {4, 7})
    done = subprocess.run(list(map(str, command)), input=data, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 10 and summary["live"]["pipe"]["damaged"] == 2
    # Motion JPEG has no timestamps: times of arrival, not FFmpeg's invented 25 per second.
    times = [
        frame["time_s"]
        for frame in json.loads((tmp_path / "out/json/pipe.json").read_text())["frames"]
    ]
    assert times[0] == 0 and times == sorted(times) and times[1] != 0.04


def test_gives_up_when_no_packet_can_be_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stream_reader, stream_input):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.1)

    def damaged(address: str, stopped: Callable[[], bool], **_: object) -> Iterator[None]:
        while not stopped():
            time.sleep(0.01)
            yield None

    monkeypatch.setattr(stream_reader, "read_stream", damaged)
    source = LiveSource("http://127.0.0.1:9/clip.ts", LiveOptions("wait", reconnect_timeout_s=0.3))
    (error,) = take(source, 1)
    assert "no packet can be decoded" in str(error) and source.counters.damaged


def test_file_with_known_length_is_read_once(clip: Path, tmp_path: Path) -> None:
    # Like `python -m http.server`: the response states its length.
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

    with http_server(Handler) as address:
        source, items = LiveSource(f"{address}/{clip.name}"), []
        for item in source.frames():
            items.append(item)
            # Slower than the server, which would lose frames of a live stream.
            time.sleep(0.01)
    frames = [item for item in items if isinstance(item, Frame)]
    assert [frame.index for frame in frames] == [*range(20)] and source.counters.dropped == 0
    np.testing.assert_allclose(np.diff([float(f.pts * f.time_base) for f in frames]), 0.1)  # type: ignore[operator]
    assert not [item for item in items if isinstance(item, DataError)]


def test_a_file_whose_connection_breaks_is_not_read_again(clip: Path) -> None:
    """From the beginning it would give frames twice."""
    data, requests = clip.read_bytes(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal requests
            requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: int(0.6 * len(data))])

    with http_server(Handler) as address:
        *frames, error = take(LiveSource(f"{address}/c.ts"), 100)
    assert 5 < len(frames) < 20 and requests == 1
    assert isinstance(error, DataError) and "not read to its end" in str(error)


def test_delay_between_connections_grows(
    clip: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    source = LiveSource(serve([clip.read_bytes()]), LiveOptions("wait"))
    start = time.monotonic()
    items = take(source, 20 * 5)
    # One warning of each kind; four delays of 0.05, 0.1, 0.2 and 0.4 s.
    reconnecting, begins_again = caplog.messages
    assert "reconnecting" in reconnecting and "begins again" in begins_again
    assert source.counters.reconnects == 4 and time.monotonic() - start > 0.75
    times = np.diff([float(item.pts * item.time_base) for item in items if isinstance(item, Frame)])
    # The stream's timestamps within a connection, continued from one connection to the next.
    assert (times >= 0).all() and np.isclose(times, 0.1, atol=1e-3).sum() == 95


def test_stream_clock_continues_over_jumps_and_gaps() -> None:
    clock = StreamClock(use_timestamps=True)
    clock.reconnected()
    # All arrive at once, so only the timestamps tell when they were captured; one is missing.
    times = [clock.seconds(100.0, timestamp) for timestamp in (7.0, 7.1, None, 7.3)]
    np.testing.assert_allclose(times, [0, 0.1, 0.1, 0.3])
    # Another recording starts at 0 or hours later: the times continue.
    times = [clock.seconds(100.0, timestamp) for timestamp in (0.0, 0.1, 9000.0, 9000.1)]
    np.testing.assert_allclose(times, [0.5, 0.6, 0.7, 0.8])
    # After a reconnect the times include the gap between the arrivals.
    clock.reconnected()
    np.testing.assert_allclose([clock.seconds(130.0, t) for t in (3.0, 3.1)], [30, 30.1])
    by_arrival = StreamClock(use_timestamps=False)
    assert [by_arrival.seconds(at, 5.0) for at in (10.0, 10.5)] == [0, 0.5]


def test_a_stopped_source_can_be_read_again(clip: Path, serve: Serve) -> None:
    source = LiveSource(serve([clip.read_bytes()], endless=True), LiveOptions("wait"))
    for _ in range(2):
        assert len(take(source, 3)) == 3


def test_dropped_frames_are_counted_while_the_stream_is_read(clip: Path, serve: Serve) -> None:
    source = LiveSource(serve([clip.read_bytes()], endless=True))
    frames = source.frames()
    next(item for item in frames if isinstance(item, Frame))
    until = time.monotonic() + 20
    while source.counters.dropped < 5 and time.monotonic() < until:
        time.sleep(0.01)
    before = source.counters.dropped
    frames.close()
    assert 5 <= before <= source.counters.dropped


def test_streams_that_differ_in_their_login_are_both_read() -> None:
    addresses = [f"rtsp://{user}:secret@nvr/live" for user in ("one", "two", "one")]
    names = [source.name for source in open_sources(addresses)]
    assert names == ["rtsp://nvr/live", "rtsp://nvr/live#2"]
    same = [0, "camera:0", "00", "rtsp://a/b", "RTSP://a/b"]
    assert [source.name for source in open_sources(same)] == ["camera-0", "rtsp://a/b"]


def test_any_iterable_of_sources_is_opened(clip: Path) -> None:
    opened = open_sources([clip.parent.glob(clip.name)])  # type: ignore[list-item]
    assert [source.name for source in opened] == [str(clip)]
    for wrong, name in ((1.5, "float"), ([1.5], "float"), (b"ab", "bytes"), ({"a": 1}, "dict")):
        with pytest.raises(UsageError, match=f"got {name}"):
            open_sources([wrong])  # type: ignore[list-item]


def with_longer_sound(path: Path) -> Path:
    """Write two seconds of video, and ten seconds of sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"tune": "zerolatency"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=16_000)
        silence = np.zeros((1, 1024), np.float32)
        for number in range(156):
            if number < 50:
                image = np.full((48, 64, 3), number, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
            frame.sample_rate = 16_000
            container.mux(sound.encode(frame))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path


def test_sound_does_not_hide_that_the_video_has_stopped(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = serve([with_longer_sound(tmp_path / "a.ts").read_bytes()])
    clock = itertools.count()
    # A second for each packet of sound; FFmpeg may deliver a few at a time.
    monkeypatch.setattr(stream_input.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(stream_input, "CONNECT_TIMEOUT_S", 30.0)
    # RTSP delivers discarded streams, too.
    monkeypatch.setattr(stream_input, "_discard_others", lambda *_: None)
    images = read_stream(address, lambda: False, every_frame=True)
    shown = 0
    with pytest.raises(DataError, match="no packet of the video for 30 s"):
        for _ in images:
            shown += 1
    assert shown > 40


def test_source_can_be_read_twice(clip: Path, serve: Callable[..., str]) -> None:
    source = LiveSource(serve([clip.read_bytes()], endless=True), LiveOptions("wait"))
    for _ in range(2):
        frames = (item for item in source.frames() if isinstance(item, Frame))
        assert [next(frames).index for _ in range(3)] == [0, 1, 2]
        frames.close()


def test_ctrl_c_on_a_silent_pipe_saves_a_playable_video(clip: Path, tmp_path: Path) -> None:
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
    process.stdin.write(clip.read_bytes())
    process.stdin.flush()
    # From here on the pipe is silent and stays open.
    wait_until(lambda: len(list(tmp_path.glob("out/mask/pipe/[!.]*"))) > 10, process)
    process.send_signal(signal.SIGINT)
    try:
        code = process.wait(60)
    finally:
        process.kill()
    assert code == 0, process.stderr.read()
    process.stdin.close()
    process.stderr.close()
    assert 10 < len(read_video(tmp_path / "out/overlay/pipe.mp4")) <= 20


def test_ctrl_c_on_an_endless_stream_saves_a_playable_video(
    clip: Path, serve: Callable[..., str], tmp_path: Path
) -> None:
    address = serve([clip.read_bytes()], endless=True)
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
    wait_until(lambda: len(list(tmp_path.glob("out/mask/clip/[!.]*"))) > 5, process)
    os.kill(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert "Ctrl-C again" in messages and "dropped" in messages
    assert len(read_video(tmp_path / "out/overlay/clip.mp4")) > 5
    assert not list(tmp_path.glob("out/overlay/.*"))
