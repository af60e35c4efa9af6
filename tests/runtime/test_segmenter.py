"""The front door: color order, mixed sizes, batches, threads, the newest export, clean streams."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toy
from test_backends import inner

from fada_deploy import Result, Segmenter
from fada_deploy.common.errors import DataError, MissingExtraError, ModelError, UsageError
from fada_deploy.common.runs import exported_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.color_model(tmp_path / "m.onnx")


def fada_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("fada-")]


def test_predict_in_both_color_orders(model: Path) -> None:
    frame, truth = toy.scene(3, (96, 256))
    with Segmenter(model) as segmenter:
        rgb = segmenter.predict(frame, confidence=True)
        bgr = segmenter.predict(np.ascontiguousarray(frame[..., ::-1]), color="bgr")
        wrong = segmenter.predict(frame, color="bgr")
    assert isinstance(rgb, Result) and rgb.labels.shape == (96, 256)
    np.testing.assert_array_equal(inner(rgb.labels), inner(truth))
    np.testing.assert_array_equal(rgb.labels, bgr.labels)
    assert (wrong.labels != rgb.labels).any()
    assert (
        rgb.confidence is not None and rgb.confidence.shape == (96, 256) and bgr.confidence is None
    )
    np.testing.assert_array_equal(rgb.overlay(), bgr.overlay()[..., ::-1])
    assert rgb.overlay(1.0, legend=True, contours=True).shape == frame.shape
    assert rgb.fractions.sum() == pytest.approx(1) and rgb.time_s is None and rgb.latency_s > 0


@pytest.mark.parametrize("fixed", [None, 2])
@pytest.mark.parametrize("batch", [None, 1, 2, 5])
def test_labels_of_mixed_sizes_are_the_same_in_any_batch(
    tmp_path: Path, fixed: int | None, batch: int | None
) -> None:
    sizes = [(64, 128), (50, 90), (200, 333), (1, 1), (64, 128)]
    frames = [toy.scene(i, size)[0] for i, size in enumerate(sizes)]
    segmenter = Segmenter(toy.color_model(tmp_path / "m.onnx", batch=fixed), batch=batch)
    assert segmenter.batch == min(batch or fixed or 1, fixed or 99)
    labels = segmenter.labels(frames)
    assert [m.shape for m in labels] == sizes
    for one, many in zip(frames, labels, strict=True):
        np.testing.assert_array_equal(segmenter.labels([one])[0], many)
    assert segmenter.logits(frames).shape == (5, 13, 8, 16)
    results = segmenter.predict(frames)
    assert [r.index for r in results] == [0, 1, 2, 3, 4]


def test_frames_that_are_none(model: Path) -> None:
    segmenter = Segmenter(model)
    good = toy.scene(0)[0]
    with pytest.raises(UsageError, match="there are rgb and bgr"):
        segmenter.predict(good, color="yuv")
    with pytest.raises(UsageError, match="no frame to label"):
        segmenter.predict([])
    for bad in (good[..., 0], good.astype(np.float32), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UsageError, match="a frame is uint8 of shape"):
            segmenter.labels([bad])
    with pytest.raises(UsageError, match="at least 1"):
        Segmenter(model, batch=0)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_shared_between_threads(model: Path, backend: str) -> None:
    segmenter = Segmenter(model, backend=backend)
    scenes = [toy.scene(i, (64 + i, 128)) for i in range(12)]
    expected = [segmenter.labels([frame])[0] for frame, _ in scenes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: segmenter.labels([s[0]])[0], scenes * 4))
    for labels, truth in zip(found, expected * 4, strict=True):
        np.testing.assert_array_equal(labels, truth)


def test_stream_keeps_order_and_clock(tmp_path: Path, model: Path) -> None:
    scenes = [toy.scene(i, (64, 128)) for i in range(9)]
    pts = [0, 3000, 3100, 9000, 9001, 20000, 29999, 40000, 90000]
    film = toy.write_video(tmp_path / "v.mp4", [f for f, _ in scenes], pts=pts)
    picture = toy.write_image(tmp_path / "p.png", toy.scene(4)[0])
    with Segmenter(model, batch=4) as segmenter:
        results = list(segmenter.stream(film, picture, confidence=True))
    assert [r.source for r in results] == [str(film)] * 9 + [str(picture)]
    assert [r.index for r in results] == [*range(9), 0]
    assert [r.pts * r.time_base * 90_000 for r in results[:9]] == pts  # type: ignore[operator]
    assert results[-1].time_s is None and results[3].time_s == pytest.approx(0.1)
    for result, (_, truth) in zip(results, scenes, strict=False):
        np.testing.assert_array_equal(inner(result.labels), inner(truth))
        assert result.confidence is not None
    assert not fada_threads()


def test_stream_ends_cleanly_when_abandoned(tmp_path: Path, model: Path) -> None:
    film = toy.write_video(tmp_path / "v.mp4", [toy.scene(i)[0] for i in range(30)])
    segmenter = Segmenter(model)
    stream = segmenter.stream(film)
    next(stream)
    assert fada_threads()
    stream.close()  # type: ignore[attr-defined]
    assert not fada_threads()
    for _ in segmenter.stream(film):
        break
    assert not fada_threads()


def test_stream_and_a_bad_picture(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "in"
    for i in range(3):
        toy.write_image(folder / f"{i}.png", toy.scene(i)[0])
    (folder / "1.png").write_bytes(b"rubbish")
    segmenter = Segmenter(model)
    errors: list[DataError] = []
    results = list(segmenter.stream(folder, on_error=errors.append))
    assert (
        [r.item for r in results] == ["0", "2"] and len(errors) == 1 and "1.png" in str(errors[0])
    )
    with pytest.raises(DataError, match=r"1\.png"):
        list(segmenter.stream(folder))
    assert not fada_threads()
    with pytest.raises(DataError, match="no such file"):
        segmenter.stream("nowhere.mp4")


def newest(monkeypatch: pytest.MonkeyPatch, models: list[Path]) -> None:
    monkeypatch.setattr("fada_deploy.common.runs.newest_models", lambda: models)


def test_the_newest_model_that_runs_here(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"rubbish")
    newest(monkeypatch, [broken, model, tmp_path / "older.onnx"])
    with Segmenter() as segmenter:
        assert segmenter.path == model
        assert len(segmenter.skipped) == 1
        assert segmenter.skipped[0].startswith(f"{broken}: is no ONNX file")
    newest(monkeypatch, [broken, broken])
    with pytest.raises(ModelError, match="none of the 2 models"):
        Segmenter()
    newest(monkeypatch, [])
    with pytest.raises(ModelError, match="type `fada export` first, or give --model PATH"):
        Segmenter()
    newest(monkeypatch, [model])
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError):
        Segmenter(backend="openvino")


def test_engines_of_other_machines_are_passed_over(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = tmp_path / "runs" / "a" / "export"
    export.mkdir(parents=True)
    (export / "model.onnx").write_bytes(model.read_bytes())
    engine = export / "model.engine"
    engine.write_bytes(b"plan")
    os.utime(engine, (2e9, 2e9))
    monkeypatch.chdir(tmp_path)
    with Segmenter() as segmenter:
        assert segmenter.path == Path("runs/a/export/model.onnx")
        assert "model.engine.json is not beside it" in segmenter.skipped[0]
    with Segmenter(backend="openvino") as segmenter:
        assert segmenter.skipped == ("runs/a/export/model.engine: is not for backend openvino",)
    with pytest.raises(ModelError, match=r"model\.engine\.json is not beside it"):
        Segmenter(backend="tensorrt")
    assert exported_model(Path("runs/a")) == Path("runs/a/export/model.onnx")
    (export / "model.onnx").unlink()
    assert exported_model(Path("runs/a")) == Path("runs/a/export/model.engine")
    with pytest.raises(ModelError, match="no model under runs/ is for backend openvino"):
        Segmenter(backend="openvino")


def test_import_costs_nothing() -> None:
    heavy = "torch onnx onnxruntime openvino av matplotlib tqdm"
    code = f"import sys, fada_deploy.runtime; print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_running_imports_no_torch(model: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom fada_deploy import Segmenter\n"
        "for backend in ('onnxruntime', 'openvino'):\n"
        f"    Segmenter({str(model)!r}, backend=backend).predict(np.zeros((9, 9, 3), np.uint8))\n"
        "print(*[m for m in ('torch', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "" and done.stderr.strip() == ""


def test_what_is_no_frame_is_said_as_it_was_given(model: Path) -> None:
    with Segmenter(model) as segmenter:
        with pytest.raises(UsageError, match=r"not uint8 \(9, 12\)"):
            segmenter.predict(np.zeros((9, 12), np.uint8))
        with pytest.raises(UsageError, match="not NoneType; was it read"):
            segmenter.predict(None)  # type: ignore[call-overload]
