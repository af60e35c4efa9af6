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
from fada_deploy.runtime.result import Result
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.base import Frame, SourceEnd
from fada_deploy.runtime.sources.in_flight import InFlight
from fada_deploy.runtime.sources.stream_reader import LiveOptions
from fada_deploy.runtime.sources.streams import LiveSource


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
    """While the caller is busy, the reader goes on, and at most two frames wait."""
    address = serve([clip.read_bytes()], endless=True)
    source = LiveSource(address, LiveOptions(drop_policy="drop-oldest"))
    indices = []
    with Segmenter(color_model(tmp_path / "m.onnx")) as segmenter:
        for each in segmenter.stream(source):
            indices.append(each.index)
            if len(indices) == 5:
                break
            dropped = source.counters.dropped
            # Nothing is taken from the slot, so every new frame replaces the waiting one.
            wait_until(lambda before=dropped: source.counters.dropped > before + 10)
    # The frames that were read before the caller was busy: one is ready, one in the slot.
    gaps = np.diff(indices)
    assert (gaps[1:] > 10).all(), indices


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


def test_a_number_is_a_camera() -> None:
    assert LiveSource(3).name == LiveSource("3").name == LiveSource("camera:3").name == "camera-3"
