"""Frames of live sources are new when the caller gets them, however slow the caller is."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_streams import Serve, clip, serve, short_delay  # noqa: F401 -- fixtures
from toy import color_model, wait_until

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.pipeline import Timings, resize_frames
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import BUSY, PAUSE, Frame, SourceEnd
from fada_deploy.runtime.sources.in_flight import InFlight
from fada_deploy.runtime.sources.stream_reader import LiveOptions
from fada_deploy.runtime.sources.streams import LiveSource
from fada_deploy.runtime.writers import save
from fada_deploy.runtime.writers.save import SaveOptions


def frame(source: str, index: int) -> Frame:
    return Frame(np.zeros((1, 1, 3), np.uint8), source, index, "", 0.0)


def result(source: str, index: int) -> Any:
    labels = np.zeros((1, 1), np.uint8)
    space: Any = None
    return Result(labels, frame(source, index).rgb, space, 0.0, 0.0, source=source, index=index)


def test_a_result_frees_its_frame_and_all_before_it() -> None:
    in_flight = InFlight(3)
    for key in (("a", 0), ("b", 0), ("a", 1)):
        assert not in_flight.is_full
        in_flight.add(frame(*key))
    assert in_flight.is_full
    in_flight.finished(result("b", 0))  # frame 0 of a was left out by a later stage
    for index in (1, 2):
        assert not in_flight.is_full
        in_flight.add(frame("b", index))
    assert in_flight.is_full


def test_errors_and_ends_free_frames_that_will_not_come() -> None:
    in_flight = InFlight(2)
    in_flight.finished(DataError("a camera that failed before its first frame"))
    for index in (0, 1):
        in_flight.add(frame("a", index))
    in_flight.finished(DataError("the overlay of frame 0 could not be encoded"))
    assert not in_flight.is_full
    in_flight.add(frame("b", 0))
    source = LiveSource("tcp://a")
    source.name = "a"
    in_flight.finished(SourceEnd(source))
    in_flight.add(frame("b", 1))
    assert in_flight.is_full


def test_a_slow_caller_gets_new_frames(
    tmp_path: Path,
    clip: Path,  # noqa: F811
    serve: Serve,  # noqa: F811
) -> None:
    """While the caller is busy, the reader goes on, and a single result waits."""
    source = LiveSource(serve([clip.read_bytes()], endless=True))
    received: list[float] = []
    with Segmenter(color_model(tmp_path / "m.onnx")) as segmenter:
        for count, each in enumerate(segmenter.stream(source)):
            if count >= 2:
                # It was read when the caller asked for the result before, or later.
                assert each.captured > received[-2]
            received.append(time.monotonic())
            if count == 6:
                break
            dropped = source.counters.dropped
            wait_until(lambda before=dropped: source.counters.dropped > before + 10)


def test_frames_on_their_way_complete_a_batch_and_ends_do_not_wait_for_it() -> None:
    """A batch waits for the next frame while others are on their way, unless a source has ended."""
    end = SourceEnd(LiveSource("tcp://a"))
    items = [
        frame("a", 0), BUSY, frame("a", 1), PAUSE,
        frame("a", 2), end, BUSY,
        frame("b", 0), BUSY, PAUSE,
    ]  # fmt: skip
    batches = [batch.items for batch in resize_frames(items, (8, 8), 4, Timings())]
    assert [[getattr(i, "index", i) for i in batch] for batch in batches] == [[0, 1], [2, end], [0]]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_camera_whose_files_cannot_be_written_does_not_stop_the_other(
    tmp_path: Path,
    clip: Path,  # noqa: F811
    serve: Serve,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    """Its frames do not reach the caller, but its end does, also in an incomplete batch."""
    cameras = [LiveSource(serve([clip.read_bytes()], endless=True)) for _ in range(2)]
    for camera, name in zip(cameras, "ab", strict=True):
        camera.name = name
    write = save._SourceFiles.write

    def failing(files: Any, drawn: Any) -> None:
        if drawn.result.source == "a" and drawn.result.index > 5:
            raise DataError("a disk that has failed")
        write(files, drawn)

    monkeypatch.setattr(save._SourceFiles, "write", failing)
    written = 0
    options = SaveOptions(tmp_path / "out", kinds=("json",))
    with Segmenter(color_model(tmp_path / "m.onnx"), batch=batch) as segmenter:
        for item in save.save_results(segmenter, cameras, options):
            written += isinstance(item, Result) and item.source == "b"
            if written == 20:
                cameras[1].stop()
    assert written >= 20


def test_a_result_that_waited_beyond_the_deadline_is_dropped() -> None:
    source = LiveSource("tcp://a", LiveOptions(deadline_s=0.1))
    now = time.monotonic()
    assert source.refuses(now - 1.0, latency_s=0.05)
    assert source.counters.late == 1
    assert not source.refuses(now - 1.0, latency_s=0.5), "the model is too slow for the deadline"
    assert not source.refuses(now, latency_s=0.0)
    assert not LiveSource("tcp://b").refuses(now - 1.0, latency_s=0.05)
    assert source.counters.late == 1


def test_a_source_that_is_stopped_while_the_caller_is_busy_ends(
    tmp_path: Path,
    clip: Path,  # noqa: F811
    serve: Serve,  # noqa: F811
) -> None:
    source = LiveSource(serve([clip.read_bytes()], endless=True))
    count = 0
    with Segmenter(color_model(tmp_path / "m.onnx")) as segmenter:
        for _ in segmenter.stream(source):
            count += 1
            source.stop()
    assert 1 <= count <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("fada-")]


@pytest.mark.parametrize("address", [True, -1, None, "", "drive.mp4", "camera:x", Path("a.mp4")])
def test_only_live_addresses_are_live_sources(address: Any) -> None:
    from fada_deploy.common.errors import UsageError

    with pytest.raises(UsageError, match="not a live source"):
        LiveSource(address)


def test_a_number_is_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "3").touch()  # the number is that of a camera nevertheless
    assert LiveSource(3).name == LiveSource("3").name == LiveSource("camera:3").name == "camera-3"
