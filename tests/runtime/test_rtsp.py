"""RTSP from a real server: complete delivery, reconnecting, and errors when it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from rtsp_server import AccessUnit, Play, RtspServer, encode, fragments, split
from toy import SPACE, TIMEOUT_S, color_model, read_video, scene, wait_until

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.sources import stream_input, stream_reader
from fada_deploy.runtime.sources.base import Frame, Pause
from fada_deploy.runtime.sources.stream_reader import LiveOptions
from fada_deploy.runtime.sources.streams import LiveSource

SIZE = (96, 160)
# Twice the number of classes: the class of an image's first band is its index modulo 13.
COUNT = 26


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Return bands of class colors that shift by one per image, with noise to fill many packets."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-6, 7, (COUNT, *SIZE, 3))
    return [(scene(i, SIZE)[0] + noise[i]).clip(0, 255).astype(np.uint8) for i in range(COUNT)]


@pytest.fixture(scope="module")
def units(images: list[np.ndarray]) -> list[AccessUnit]:
    return encode(images)


@pytest.fixture(autouse=True)
def short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_reader, "_FIRST_DELAY_S", 0.05)


def image_number(rgb: np.ndarray) -> int:
    """Return the index modulo 13 of an image; fail if its bands are inconsistent (corruption)."""
    bands = np.array_split(rgb.astype(int), 4, axis=1)
    colors = [np.median(band[:, 8:-8].reshape(-1, 3), axis=0) for band in bands]
    classes = [int(((SPACE.palette.astype(int) - color) ** 2).sum(1).argmin()) for color in colors]
    assert classes == [(classes[0] + i) % SPACE.num_classes for i in range(4)]
    return classes[0]


def take(source: LiveSource, count: int | None = None) -> tuple[list[Frame], list[str]]:
    """Return the frames and errors of a source, stopped after `count` frames."""
    frames: list[Frame] = []
    errors: list[str] = []
    for item in source.frames():
        if isinstance(item, Frame):
            frames.append(item)
            if len(frames) == count:
                source.stop()
        elif not isinstance(item, Pause):
            assert isinstance(item, DataError)
            errors.append(str(item))
    return frames, errors


def numbers(frames: list[Frame]) -> list[int]:
    return [image_number(f.rgb) for f in frames]


ALL = [i % 13 for i in range(COUNT)]


def test_server_sends_valid_packets(units: list[AccessUnit]) -> None:
    kinds = [[unit[0] & 0x1F for unit in image] for image in units]
    # Parameter sets precede each key frame.
    assert (
        kinds[0][:2] == [7, 8] and kinds[0][-1] == 5 and kinds[5][:2] == [7, 8] and kinds[1] == [1]
    )
    assert split(b"\0\0\0\1abc\0\0\1d") == [b"abc", b"d"]
    unit = units[0][-1]
    parts = fragments(unit, 100)
    assert len(parts) > 50 and fragments(unit[:100], 100) == [unit[:100]]
    assert {part[0] for part in parts} == {unit[0] & 0xE0 | 28} and {
        part[1] & 0x1F for part in parts
    } == {5}
    assert [part[1] >> 6 for part in parts] == [2, *[0] * (len(parts) - 2), 1]
    assert unit[:1] + b"".join(part[2:] for part in parts) == unit


def test_every_image_arrives_unchanged(units: list[AccessUnit], images: list[np.ndarray]) -> None:
    with RtspServer([Play(units)]) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source, COUNT)
    assert not errors and source.counters.dropped == 0
    assert server.methods[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(frame.rgb.astype(int) - image).mean() < 8
    assert numbers(frames) == ALL and [f.index for f in frames] == list(range(COUNT))
    times = [f.pts for f in frames if f.pts is not None]
    assert len(times) == COUNT and times == sorted(times)


def test_probing_loses_no_key_frame() -> None:
    """The stream has a single key frame: if probing discarded it, nothing could be decoded."""
    units = encode([scene(i, SIZE)[0] for i in range(COUNT)], keyframes=1000)
    with RtspServer([Play(units, rate=50), Play(status="404 Not Found")]) as server:
        source = LiveSource(server.address, LiveOptions(reconnect_timeout_s=0.5))
        frames, _ = take(source)
    assert frames and len(frames) + source.counters.dropped == COUNT
    assert numbers(frames)[-1] == ALL[-1]


def test_reconnects_after_a_cut_connection(units: list[AccessUnit]) -> None:
    plays = [Play(units[:10], drop=True), Play(units[10:20], drop=True), Play(units[20:])]
    with RtspServer(plays) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source, COUNT)
    assert not errors and source.counters.reconnects >= 2
    # Indices and timestamps continue over the reconnects.
    assert numbers(frames) == ALL and [f.index for f in frames] == list(range(COUNT))
    times = [f.pts for f in frames if f.pts is not None]
    assert times == sorted(times) and times[-1] > times[9]


def test_reconnects_if_the_announced_length_was_not_reached(units: list[AccessUnit]) -> None:
    with RtspServer([Play(units[:10], drop=True, seconds=60), Play(units[10:])]) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source, COUNT)
    assert not errors and source.counters.reconnects >= 1 and numbers(frames) == ALL


def test_ends_when_the_announced_length_is_reached(units: list[AccessUnit]) -> None:
    with RtspServer([Play(units, seconds=COUNT / 100)]) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source)
    assert not errors and source.counters.reconnects == 0 and numbers(frames) == ALL


def test_gives_up_when_the_server_dies(units: list[AccessUnit]) -> None:
    server = RtspServer([Play(units[:10])])
    frames: list[Frame] = []
    errors: list[str] = []
    with server:
        source = LiveSource(server.address, LiveOptions("wait", reconnect_timeout_s=3.0))
        for item in source.frames():
            if isinstance(item, Frame):
                frames.append(item)
            elif isinstance(item, DataError):
                errors.append(str(item))
            if len(frames) == 5:
                server.close()
    assert numbers(frames)[:5] == ALL[:5] and source.counters.reconnects >= 1
    assert errors == [f"{server.address}: no frame for 3 s (Connection refused)"]


@pytest.mark.parametrize("status", ["404 Not Found", "401 Unauthorized", "503 Service Unavailable"])
def test_gives_up_when_the_server_refuses(status: str) -> None:
    with RtspServer([Play(status=status)]) as server:
        frames, (error,) = take(LiveSource(server.address, LiveOptions(reconnect_timeout_s=0.3)))
    assert not frames and error.startswith(f"{server.address}: ") and "\n" not in error
    if status[0] == "4":
        assert status in error


def test_gives_up_when_the_server_is_silent(
    units: list[AccessUnit], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (stream_reader, stream_input):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 2.0)
    with RtspServer([Play(units, hold=True)]) as server:
        frames, errors = take(
            LiveSource(server.address, LiveOptions("wait", reconnect_timeout_s=0.3))
        )
    assert frames and numbers(frames) == ALL[: len(frames)]
    assert errors == [f"{server.address}: no frame for 0.3 s (no packet for 2 s)"]


def test_stop_ends_a_silent_stream(units: list[AccessUnit]) -> None:
    before = set(threading.enumerate())
    with RtspServer([Play(units[:10], hold=True)]) as server:
        source = LiveSource(server.address, LiveOptions("wait", reconnect_timeout_s=TIMEOUT_S))
        frames = source.frames()
        assert any(isinstance(item, Frame) for item in frames)
        threading.Timer(0.5, source.stop).start()
        assert not [item for item in frames if isinstance(item, DataError)]
    assert source.counters.reconnects == 0
    wait_until(
        lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("fada")]
    )


def test_infer_reconnects_and_reports_the_end(units: list[AccessUnit], tmp_path: Path) -> None:
    model = color_model(tmp_path / "toy.onnx")
    with RtspServer(
        [Play(units[:10], drop=True), Play(units[10:]), Play(status="404 Not Found")]
    ) as server:
        command = [
            sys.executable,
            "-m",
            "fada_deploy",
            "infer",
            server.address,
            "--model",
            model,
            "--json",
        ]
        command += [
            "--out",
            tmp_path / "out",
            "--save",
            "overlay,mask",
            "--drop-policy",
            "wait",
            "--reconnect-timeout",
            "0.5",
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    # All frames were processed; the failure to reconnect at the end is reported.
    assert done.returncode == 1 and "Traceback" not in done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == COUNT and summary["live"][server.address]["reconnects"] >= 2
    assert summary["failed"] == [
        f"{server.address}: no frame for 0.5 s (Server returned 404 Not Found)"
    ]
    assert len(read_video(tmp_path / "out/overlay/video.mp4")) == COUNT
    for index in range(COUNT):
        mask = cv2.imread(str(tmp_path / f"out/mask/video/{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        expected = SPACE.to_train_ids[scene(index, SIZE)[1]]
        assert mask is not None and (mask == expected).mean() > 0.85
