"""The front door: color order, mixed sizes, batches, threads, the newest export, clean streams."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import toy
from PIL import Image
from test_backends import inner

from fada_deploy import OverlayStyle, Result, Segmenter
from fada_deploy.common.errors import DataError, UsageError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.color_model(tmp_path / "m.onnx")


def fada_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("fada-")]


def test_predict_in_both_color_orders(model: Path) -> None:
    frame, truth = toy.scene(3, (96, 256))
    with Segmenter(model) as segmenter:
        rgb = segmenter.predict(frame, color="RGB", confidence=True)
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
    styled = rgb.overlay(OverlayStyle(1.0, legend="top-left", contours=True))
    assert styled.shape == frame.shape
    assert sum(rgb.fractions.values()) == pytest.approx(1)
    assert rgb.time_s is None and rgb.latency_s > 0


def test_results_of_a_video_can_be_sent_to_another_process(model: Path, tmp_path: Path) -> None:
    video = toy.write_video(tmp_path / "a.mp4", [toy.scene(i)[0] for i in range(2)])
    with Segmenter(model) as segmenter:
        result = next(segmenter.stream(video))
    copy = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(copy.labels, result.labels)
    assert (copy.pts, copy.time_base, copy.decoded) == (result.pts, result.time_base, None)
    assert np.abs(copy.overlay().astype(int) - result.overlay()).max() <= 2


def test_labels_and_logits_take_lists(model: Path) -> None:
    frame = toy.scene(0)[0]
    with Segmenter(model) as segmenter:
        for single in (frame, "a.png", Path("a.png"), segmenter.predict(frame, color="rgb")):
            with pytest.raises(UsageError, match="a list of images"):
                segmenter.labels(single, color="rgb")
        with pytest.raises(UsageError, match="a list of images"):
            segmenter.logits(iter([frame]), color="rgb")
        (labels,) = segmenter.labels(frame[None], color="rgb")
        np.testing.assert_array_equal(labels, segmenter.predict(frame, color="rgb").labels)


def test_images_of_pil_plugins(model: Path) -> None:
    class Plugin(Image.Image):
        pass

    image = Plugin()
    frame = toy.scene(0)[0]
    image.__dict__.update(Image.fromarray(frame).__dict__)
    with Segmenter(model) as segmenter:
        np.testing.assert_array_equal(
            segmenter.predict(image).labels, segmenter.predict(frame, color="rgb").labels
        )


@pytest.mark.parametrize("number", [0, 1.5, "2"])
@pytest.mark.parametrize("name", ["batch", "parallel"])
def test_numbers_of_frames_and_requests(model: Path, name: str, number: object) -> None:
    with pytest.raises(UsageError, match=f"{name} must be a whole number"):
        Segmenter(model, **{name: number})


@pytest.mark.parametrize("fixed", [None, 2])
@pytest.mark.parametrize("batch", [None, 1, 2, 5])
def test_labels_of_mixed_sizes_are_the_same_in_any_batch(
    tmp_path: Path, fixed: int | None, batch: int | None
) -> None:
    sizes = [(64, 128), (50, 90), (200, 333), (1, 1), (64, 128)]
    frames = [toy.scene(i, size)[0] for i, size in enumerate(sizes)]
    segmenter = Segmenter(toy.color_model(tmp_path / "m.onnx", batch=fixed), batch=batch)
    assert segmenter.batch == min(batch or fixed or 1, fixed or 99)
    labels = segmenter.labels(frames, color="rgb")
    assert [m.shape for m in labels] == sizes
    for one, many in zip(frames, labels, strict=True):
        np.testing.assert_array_equal(segmenter.labels([one], color="rgb")[0], many)
    assert segmenter.logits(frames, color="rgb").shape == (5, 13, 8, 16)
    results = segmenter.predict(frames, color="rgb")
    assert [r.index for r in results] == [0, 1, 2, 3, 4]


def test_repr_names_the_model_and_the_latency(model: Path) -> None:
    segmenter = Segmenter(model)
    text = repr(segmenter)
    for part in (str(model), segmenter.backend.name, "cpu", "fp32", "input 128x64"):
        assert part in text
    result = segmenter.predict(toy.scene(0)[0], color="rgb")
    assert f"latency {1000 * result.latency_s:.1f} ms" in repr(result)


def test_rejects_inputs_that_are_not_images(model: Path) -> None:
    segmenter = Segmenter(model)
    good = toy.scene(0)[0]
    with pytest.raises(UsageError, match=r"'rgb' or 'bgr'.*'yuv'"):
        segmenter.predict(good, color="yuv")
    with pytest.raises(UsageError, match="at least one"):
        segmenter.predict([])
    for bad in (good[..., 0], good.astype(np.float32), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UsageError, match=r"uint8.*\(H, W, 3\).*" + re.escape(str(bad.shape))):
            segmenter.labels([bad], color="rgb")
    with pytest.raises(UsageError, match="NoneType"):
        segmenter.predict(None, color="bgr")
    with pytest.raises(UsageError, match="batch must be a whole number of at least 1, got 0"):
        Segmenter(model, batch=0)
    with pytest.raises(UsageError, match="parallel must be a whole number of at least 1, got 0"):
        Segmenter(model, parallel=0)
    with pytest.raises(UsageError, match="NoneType"):
        Segmenter(None)  # type: ignore[arg-type]


def test_color_is_required_for_numpy_images_only(tmp_path: Path, model: Path) -> None:
    frame, truth = toy.scene(3, (96, 256))
    path = toy.write_image(tmp_path / "image.png", frame)
    with Segmenter(model) as segmenter:
        for call in (segmenter.predict, lambda image: segmenter.labels([image])):
            with pytest.raises(UsageError, match=r"color is required.*'bgr'.*'rgb'"):
                call(frame)
        bgr = segmenter.predict(np.ascontiguousarray(frame[..., ::-1]), color="bgr")
        for image in (path, str(path), bgr, Image.fromarray(frame)):
            result = segmenter.predict(image)
            np.testing.assert_array_equal(inner(result.labels), inner(truth))
        first, second = segmenter.predict([path, frame], color="rgb")
        np.testing.assert_array_equal(first.labels, second.labels)
        assert len(segmenter.predict([frame, frame], color="rgb")) == 2
        with pytest.raises(UsageError, match=r"\(2, 96, 256, 3\)"):
            segmenter.predict(np.stack([frame, frame]), color="rgb")
        with pytest.raises(DataError, match=r"missing\.png"):
            segmenter.predict(tmp_path / "missing.png")


def test_a_pil_image_is_read_as_its_file(model: Path, tmp_path: Path) -> None:
    """Upright by its EXIF orientation, and 16 bits become 8."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, deep = tmp_path / "turned.png", tmp_path / "deep.png"
    Image.fromarray(toy.scene(0)[0]).save(turned, exif=exif)
    ramp = np.linspace(0, 65_535, 64 * 128).reshape(64, 128).astype(np.uint16)
    assert cv2.imwrite(str(deep), ramp)
    with Segmenter(model) as segmenter:
        for path in (turned, deep):
            with Image.open(path) as image:
                one, other = segmenter.predict(path), segmenter.predict(image)
            np.testing.assert_array_equal(one.frame, other.frame)
            np.testing.assert_array_equal(one.labels, other.labels)
        assert one.frame.max() == 255 and one.frame.mean() == pytest.approx(127, abs=1)
        with pytest.raises(UsageError, match="mode F"):
            segmenter.predict(Image.new("F", (8, 8)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_shared_between_threads(model: Path, backend: str) -> None:
    segmenter = Segmenter(model, backend=backend)
    scenes = [toy.scene(i, (64 + i, 128)) for i in range(12)]
    expected = [segmenter.labels([frame], color="rgb")[0] for frame, _ in scenes]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: segmenter.labels([s[0]], color="rgb")[0], scenes * 4))
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


def test_import_costs_nothing() -> None:
    heavy = "torch onnx onnxruntime openvino av matplotlib tqdm"
    code = (
        "import sys, fada_deploy, fada_deploy.runtime; "
        f"print(*[m for m in '{heavy}'.split() if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_running_imports_no_torch(model: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom fada_deploy import Segmenter\n"
        "for backend in ('onnxruntime', 'openvino'):\n"
        f"    segmenter = Segmenter({str(model)!r}, backend=backend)\n"
        "    segmenter.predict(np.zeros((9, 9, 3), np.uint8), color='rgb')\n"
        "print(*[m for m in ('torch', 'onnx', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "" and done.stderr.strip() == ""
