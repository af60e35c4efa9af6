"""The pipeline keeps the order, bounds its memory, and ends cleanly at every failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from fada_deploy import Segmenter
from fada_deploy.common.errors import DataError
from fada_deploy.runtime.overlay import renderer as look
from fada_deploy.runtime.pipeline import Timings, read_frames, resize_frames
from fada_deploy.runtime.sources.base import Frame, SourceEnd
from fada_deploy.runtime.writers import images as image_writers
from fada_deploy.runtime.writers.save import SaveOptions, save_results


class SceneSource:
    """A source of `count` scenes that can fail and counts how many frames were read."""

    is_video = False
    is_live = False
    pixel_aspect = None
    rate = None
    audio = None

    def __init__(self, name: str = "fake", count: int = 50, fails_at: int | None = None) -> None:
        self.name, self._count, self._fails_at = name, count, fails_at
        self.given = 0
        self.closed = False

    def count(self) -> int | None:
        return self._count

    def frames(self) -> Generator[Frame | DataError, None, None]:
        try:
            for i in range(self._count):
                if i == self._fails_at:
                    raise RuntimeError("camera failed")
                self.given += 1
                yield Frame(toy.scene(i)[0], self.name, i, str(i), time.monotonic())
        finally:
            self.closed = True


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert not [t.name for t in threading.enumerate() if t.name.startswith("fada-")]


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    return Segmenter(toy.color_model(tmp_path / "m.onnx"))


def test_failing_source_keeps_finished_images(segmenter: Segmenter, tmp_path: Path) -> None:
    source = SceneSource(fails_at=5)
    with pytest.raises(RuntimeError, match="camera failed"):
        list(save_results(segmenter, [source], SaveOptions(tmp_path / "out", ("mask", "json"))))
    assert source.closed
    # What is per frame is done; the document of the whole source is not there at all.
    assert len(list((tmp_path / "out/mask/fake").iterdir())) == 5
    assert not list((tmp_path / "out/json").iterdir())


def test_failing_network_ends_the_stream(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = segmenter.backend.submit, 0

    def submit(frames: np.ndarray) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("out of memory")
        return real(frames)

    monkeypatch.setattr(segmenter.backend, "submit", submit)
    source = SceneSource(count=10_000)
    found = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for result in segmenter.stream(source):
            found.append(result.index)
    assert found == [0, 1, 2] and source.closed and source.given < 20


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_parallel_requests_keep_the_order(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy.color_model(tmp_path / "p.onnx")
    with Segmenter(model, backend=backend) as alone:
        expected = [result.labels for result in alone.stream(SceneSource())]
    with Segmenter(model, backend=backend, parallel=3) as segmenter:
        assert segmenter.backend.parallel == 3
        submit, together, most, count = segmenter.backend.submit, 0, 0, 0
        lock = threading.Lock()

        def slow(frames: np.ndarray) -> Any:
            nonlocal together, most, count
            with lock:
                together, count = together + 1, count + 1
                most, first = max(most, together), count % 3 == 1
            # The first of each three is the last to be done.
            time.sleep(0.03 if first else 0.005)
            prediction = submit(frames)
            with lock:
                together -= 1
            return prediction

        monkeypatch.setattr(segmenter.backend, "submit", slow)
        results = list(segmenter.stream(SceneSource()))
    assert [r.index for r in results] == list(range(50)) and 2 <= most <= 3
    for result, labels in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.labels, labels)


@pytest.mark.parametrize("part", ["overlay", "write_png"])
def test_failing_drawing_or_writing_is_raised(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{part} is broken")

    monkeypatch.setattr(look if part == "overlay" else image_writers, part, fail)
    source = SceneSource(count=10_000)
    with pytest.raises(RuntimeError, match=f"{part} is broken"):
        list(save_results(segmenter, [source], SaveOptions(tmp_path / "out", ("overlay", "mask"))))
    assert source.closed and source.given < 20


def test_full_disk_is_a_data_error(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _: np.ndarray) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(image_writers, "write_png", full)
    with pytest.raises(DataError, match=r"0\.png.*No space left on device"):
        list(save_results(segmenter, [SceneSource()], SaveOptions(tmp_path / "out", ("mask",))))


def test_batches_span_sources_and_keep_the_order() -> None:
    timings = Timings()
    sources = [SceneSource("a", 3), SceneSource("b", 0), SceneSource("c", 4)]
    batches = list(resize_frames(read_frames(sources, timings), (64, 128), 3, timings))
    assert [len(b.images) for b in batches if b.images] == [3, 3, 1]
    flat = [item for b in batches for item in b.items]
    order = [
        f"{i.source}{i.index}" if isinstance(i, Frame) else f"end {i.source.name}" for i in flat
    ]  # type: ignore[union-attr]
    assert order == ["a0", "a1", "a2", "end a", "end b", "c0", "c1", "c2", "c3", "end c"]
    assert set(timings.seconds) == {"decode", "resize"}


@pytest.mark.parametrize("batch", [1, 4])
def test_source_ends_follow_the_last_result(tmp_path: Path, batch: int) -> None:
    segmenter = Segmenter(toy.color_model(tmp_path / "m.onnx"), batch=batch)
    sources = [SceneSource("a", 3), SceneSource("b", 2)]
    timings = Timings()
    items = list(save_results(segmenter, sources, SaveOptions(tmp_path / "out"), timings=timings))
    order = ["end" if isinstance(i, SourceEnd) else f"{i.source}{i.index}" for i in items]  # type: ignore[union-attr]
    assert order == ["a0", "a1", "a2", "end", "b0", "b1", "end"]
    assert set(timings.seconds) == set(["decode", "resize", "network", "upsample", "draw", "write"])
