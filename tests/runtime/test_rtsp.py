"""RTSP from a real server: every picture arrives, broken connections are opened again, ends are said."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from rtsp_server import Play, RtspServer, Unit, encode, pieces, split
from toy import PATIENCE, SPACE, color_model, read_video, scene, until

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.sources import stream_input
from fada_deploy.runtime.sources import streams as live
from fada_deploy.runtime.sources.base import Frame, Pause
from fada_deploy.runtime.sources.streams import LiveOptions, LiveSource

SIZE = (96, 160)
# Twice round the classes: a picture's first band is its number modulo 13.
COUNT = 26


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Return bands in the classes' colors that move on by one a picture, noisy, so as to fill many packets."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-6, 7, (COUNT, *SIZE, 3))
    return [(scene(i, SIZE)[0] + noise[i]).clip(0, 255).astype(np.uint8) for i in range(COUNT)]


@pytest.fixture(scope="module")
def units(pictures: list[np.ndarray]) -> list[Unit]:
    return encode(pictures)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_FIRST_PAUSE", 0.05)


def number(rgb: np.ndarray) -> int:
    """Return which of 13 pictures this is; fail for one whose bands do not belong together."""
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
    return [number(f.rgb) for f in frames]


ALL = [i % 13 for i in range(COUNT)]


def test_what_the_server_sends(units: list[Unit]) -> None:
    kinds = [[unit[0] & 0x1F for unit in picture] for picture in units]
    # Parameter sets and a key frame, then others.
    assert (
        kinds[0][:2] == [7, 8] and kinds[0][-1] == 5 and kinds[5][:2] == [7, 8] and kinds[1] == [1]
    )
    assert split(b"\0\0\0\1abc\0\0\1d") == [b"abc", b"d"]
    unit = units[0][-1]
    parts = pieces(unit, 100)
    assert len(parts) > 50 and pieces(unit[:100], 100) == [unit[:100]]
    assert {part[0] for part in parts} == {unit[0] & 0xE0 | 28} and {
        part[1] & 0x1F for part in parts
    } == {5}
    assert [part[1] >> 6 for part in parts] == [2, *[0] * (len(parts) - 2), 1]
    assert unit[:1] + b"".join(part[2:] for part in parts) == unit


def test_every_picture_arrives_as_it_was_sent(
    units: list[Unit], pictures: list[np.ndarray]
) -> None:
    with RtspServer([Play(units)]) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source, COUNT)
    assert not errors and source.dropped == 0
    assert server.seen[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.abs(frame.rgb.astype(int) - picture).mean() < 8
    assert numbers(frames) == ALL and [f.index for f in frames] == list(range(COUNT))
    clock = [f.pts for f in frames if f.pts is not None]
    assert len(clock) == COUNT and clock == sorted(clock)


def test_nothing_is_lost_before_the_first_picture() -> None:
    """With one key frame in all, nothing could be decoded if that one had been read for its header alone."""
    lone = encode([scene(i, SIZE)[0] for i in range(COUNT)], keyframes=1000)
    with RtspServer([Play(lone, rate=50), Play(status="404 Not Found")]) as server:
        source = LiveSource(server.address, LiveOptions(give_up_s=0.5))
        frames, _ = take(source)
    assert frames and len(frames) + source.dropped == COUNT
    assert numbers(frames)[-1] == ALL[-1]


def test_a_connection_that_is_cut_is_opened_again(units: list[Unit]) -> None:
    plays = [Play(units[:10], drop=True), Play(units[10:20], drop=True), Play(units[20:])]
    with RtspServer(plays) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source, COUNT)
    assert not errors and source.reconnects >= 2
    # The film goes on: the numbers run through, and so does the clock.
    assert numbers(frames) == ALL and [f.index for f in frames] == list(range(COUNT))
    clock = [f.pts for f in frames if f.pts is not None]
    assert clock == sorted(clock) and clock[-1] > clock[9]


def test_a_film_of_known_length_that_is_cut_has_not_ended(units: list[Unit]) -> None:
    with RtspServer([Play(units[:10], drop=True, seconds=60), Play(units[10:])]) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source, COUNT)
    assert not errors and source.reconnects >= 1 and numbers(frames) == ALL


def test_a_film_of_known_length_ends_by_itself(units: list[Unit]) -> None:
    with RtspServer([Play(units, seconds=COUNT / 100)]) as server:
        source = LiveSource(server.address, LiveOptions("wait"))
        frames, errors = take(source)
    assert not errors and source.reconnects == 0 and numbers(frames) == ALL


def test_a_server_that_dies_is_given_up_in_one_line(units: list[Unit]) -> None:
    server = RtspServer([Play(units[:10])])
    found: tuple[list[Frame], list[str]] = ([], [])
    with server:
        source = LiveSource(server.address, LiveOptions("wait", give_up_s=0.5))
        frames = source.frames()
        for item in frames:
            if isinstance(item, Frame):
                found[0].append(item)
            elif isinstance(item, DataError):
                found[1].append(str(item))
            if len(found[0]) == 5:
                server.close()
    assert numbers(found[0])[:5] == ALL[:5] and source.reconnects >= 1
    assert found[1] == [f"{server.address}: gave no frame for 0.5 s (Connection refused)"]


@pytest.mark.parametrize("status", ["404 Not Found", "401 Unauthorized", "503 Service Unavailable"])
def test_a_server_that_refuses_is_given_up_in_one_line(status: str) -> None:
    with RtspServer([Play(status=status)]) as server:
        frames, (error,) = take(LiveSource(server.address, LiveOptions(give_up_s=0.3)))
    assert (
        not frames
        and error.startswith(f"{server.address}: gave no frame for 0.3 s (")
        and "\n" not in error
    )
    if status[0] == "4":
        assert status in error


def test_a_server_that_falls_silent_is_given_up_in_one_line(
    units: list[Unit], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (live, stream_input):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 2.0)
    with RtspServer([Play(units, hold=True)]) as server:
        frames, errors = take(LiveSource(server.address, LiveOptions("wait", give_up_s=0.3)))
    assert frames and numbers(frames) == ALL[: len(frames)]
    assert errors == [f"{server.address}: gave no frame for 0.3 s (no packet for 2 s)"]


def test_stop_ends_a_silent_stream(units: list[Unit]) -> None:
    before = set(threading.enumerate())
    with RtspServer([Play(units[:10], hold=True)]) as server:
        source = LiveSource(server.address, LiveOptions("wait", give_up_s=PATIENCE))
        frames = source.frames()
        assert any(isinstance(item, Frame) for item in frames)
        threading.Timer(0.5, source.stop).start()
        assert not [item for item in frames if isinstance(item, DataError)]
    assert source.reconnects == 0
    until(lambda: not [t for t in set(threading.enumerate()) - before if t.name.startswith("fada")])


def test_a_film_with_a_cut_is_labeled_to_its_end(units: list[Unit], tmp_path: Path) -> None:
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
            "--policy",
            "wait",
            "--reconnect-s",
            "0.5",
        ]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    # All that came is there; that no more comes is a failure, and said.
    assert done.returncode == 1 and "Traceback" not in done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == COUNT and summary["live"][server.address]["reconnects"] >= 2
    assert summary["failed"] == [
        f"{server.address}: gave no frame for 0.5 s (Server returned 404 Not Found)"
    ]
    assert len(read_video(tmp_path / "out/overlay/film.mp4")) == COUNT
    for index in range(COUNT):
        mask = cv2.imread(str(tmp_path / f"out/mask/film/{index:06d}.png"), cv2.IMREAD_UNCHANGED)
        want = SPACE.to_train_ids[scene(index, SIZE)[1]]
        assert mask is not None and (mask == want).mean() > 0.85
