"""Streams in segments (HLS) from an HTTP server: recordings, live playlists and their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from toy import http_server, scene

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.sources import stream_reader
from fada_deploy.runtime.sources.base import Frame, Pause
from fada_deploy.runtime.sources.frame_slot import StreamCounters
from fada_deploy.runtime.sources.stream_clock import Pacer
from fada_deploy.runtime.sources.stream_reader import LiveOptions
from fada_deploy.runtime.sources.streams import LiveSource

FRAMES, RATE = 27, 15
END = "#EXT-X-ENDLIST"


@pytest.fixture
def playlist(tmp_path: Path) -> Path:
    """Return a playlist of three segments, 27 frames in 1.8 seconds, that has an end."""
    path = tmp_path / "drive.m3u8"
    options = {"hls_time": "0.6", "hls_list_size": "0", "hls_playlist_type": "vod"}
    with av.open(str(path), "w", format="hls", options=options) as container:
        stream = container.add_stream("libx264", rate=RATE, options={"g": "10", "bf": "0"})
        stream.height, stream.width = scene(0)[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(scene(i)[0], format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    text = path.read_text()
    assert text.count("#EXTINF") == 3 and END in text
    return path


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[int], str]], str]]:
    """Return a function that serves the folder, and a playlist that depends on the request."""

    def start(text_of: Callable[[int], str]) -> str:
        requests = 0

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(tmp_path))

            def do_GET(self) -> None:
                nonlocal requests
                if not self.path.endswith(".m3u8"):
                    super().do_GET()
                    return
                body, requests = text_of(requests).encode(), requests + 1
                self.send_response(200)
                self.send_header("Content-Type", "application/vnd.apple.mpegurl")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        return f"{servers.enter_context(http_server(Handler))}/drive.m3u8"

    with ExitStack() as servers:
        yield start


def read(source: LiveSource) -> list[tuple[float, Frame]]:
    """Return all frames of a source with the time at which they arrived; there is no error."""
    frames = []
    for item in source.frames():
        assert not isinstance(item, DataError), item
        if not isinstance(item, Pause):
            frames.append((time.monotonic(), item))
    return frames


def times_s(frames: list[tuple[float, Frame]]) -> list[float]:
    return [float(f.pts * f.time_base) for _, f in frames if f.pts is not None and f.time_base]


def test_a_recording_loses_no_frame_and_is_read_once(
    playlist: Path, serve: Callable[..., str]
) -> None:
    text = playlist.read_text()
    source = LiveSource(serve(lambda _: text))
    frames = read(source)
    assert [frame.index for _, frame in frames] == [*range(FRAMES)]
    np.testing.assert_allclose(np.diff(times_s(frames)), 1 / RATE, atol=1e-4)
    assert source.counters == StreamCounters()


def test_a_live_playlist_has_the_pace_of_its_frames_and_ends_with_the_broadcast(
    playlist: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments arrive at once; a fast consumer gets all of their frames, one after the other."""
    monkeypatch.setattr(stream_reader, "_FIRST_DELAY_S", 0.05)
    recording = playlist.read_text()
    live = recording.replace(END, "").replace("#EXT-X-PLAYLIST-TYPE:VOD\n", "")
    # The broadcast ends while it is read.
    address = serve(lambda request: recording if request > 2 else live)
    # This machine may be too slow for every frame.
    source = LiveSource(address, LiveOptions("wait"))
    frames = read(source)
    assert len(frames) == FRAMES and source.counters.dropped == 0
    np.testing.assert_allclose(np.diff(times_s(frames)), 1 / RATE, atol=1e-4)
    # A segment arrives within a moment.
    assert frames[-1][0] - frames[0][0] > 0.95 * (FRAMES - 1) / RATE


def test_the_pace_begins_again_after_a_pause_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    pacer = Pacer()
    for timestamp in (7.0, 7.04, 7.3):
        pacer.wait_for(timestamp, lambda: False)
    assert sum(slept) == pytest.approx(0.3) and max(slept) <= 0.1
    # A late frame does not wait, and the pace goes on from there.
    now[0] += 2
    pacer.wait_for(8.0, lambda: False)
    assert sum(slept) == pytest.approx(0.3)
    pacer.wait_for(8.2, lambda: False)
    assert sum(slept) == pytest.approx(0.5)
    # The timestamps jump by an hour: the next frame comes at once, and the one after it in time.
    pacer.wait_for(3608.0, lambda: False)
    pacer.wait_for(3608.1, lambda: False)
    assert sum(slept) == pytest.approx(0.6)
    pacer.wait_for(3618.1, lambda: True)
    assert sum(slept) == pytest.approx(0.6)
