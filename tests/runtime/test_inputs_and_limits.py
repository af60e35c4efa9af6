"""Inputs that cannot be read or written, and resources that must not grow with the input."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import toy

from fada_deploy.common.errors import DataError, ModelError
from fada_deploy.common.files import walk_files
from fada_deploy.common.runs import FINISHED, MANIFEST
from fada_deploy.common.video import open_video, upright_rgb
from fada_deploy.runtime import backend_selection
from fada_deploy.runtime.backends.gpu import Gpu
from fada_deploy.runtime.backends.tensorrt import TensorRtBackend
from fada_deploy.runtime.overlay.renderer import OverlayRenderer
from fada_deploy.runtime.pipeline import Timings
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.sources.streams import LiveSource
from fada_deploy.runtime.writers import audio, finished, save
from fada_deploy.runtime.writers.finished import FinishedSources
from fada_deploy.runtime.writers.output import DrawnResult
from fada_deploy.runtime.writers.save import SaveOptions, check_outputs, save_results

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return toy.color_model(tmp_path / "toy.onnx")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Return the files of twenty images, each of which is a source of its own."""
    return [toy.write_image(tmp_path / f"{i:02d}.png", toy.scene(i)[0]) for i in range(20)]


def test_finished_sources_leave_nothing_in_memory(
    model: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    made = list[int]()
    initialize = save._SourceFiles.__init__

    def register(self: Any, *arguments: Any, **options: Any) -> None:
        initialize(self, *arguments, **options)
        alive.add(self)
        made.append(id(self))

    monkeypatch.setattr(save._SourceFiles, "__init__", register)
    options = SaveOptions(tmp_path / "out", kinds=("mask", "json"))
    most = 0
    with Segmenter(model) as segmenter:
        for _ in save_results(segmenter, open_sources(images), options):
            if len(alive) > 3:
                gc.collect()
            most = max(most, len(alive))
    assert len(made) == 20 and 1 <= most <= 3
    assert len(list((tmp_path / "out/mask").iterdir())) == 20


def test_an_interrupted_run_removes_the_files_of_every_open_source(
    model: Path, images: list[Path], tmp_path: Path
) -> None:
    video = toy.write_video(tmp_path / "v.mp4", [toy.scene(i)[0] for i in range(6)])
    with Segmenter(model) as segmenter:
        results = save_results(
            segmenter, open_sources([images[0], video]), SaveOptions(tmp_path / "out")
        )
        for _ in range(3):  # the image, its end, and a frame of the video
            next(results)
        results.close()
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["00.jpg"]


def test_a_camera_whose_output_cannot_be_written_is_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def full(_: object) -> Iterator[Callable[[DrawnResult], None]]:
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setitem(save.OUTPUTS, "json", full)
    cameras = [LiveSource("rtsp://a/1"), LiveSource("rtsp://a/2")]
    with Segmenter(model) as segmenter:
        result = segmenter.predict(toy.scene(0)[0], color="rgb")
    object.__setattr__(result, "source", cameras[1].name)
    items = save._write(
        iter([DrawnResult(result, None)] * 2), cameras, SaveOptions(tmp_path, kinds=("json",)),
        Timings(), set(),
    )  # fmt: skip
    (error,) = items
    assert isinstance(error, DataError) and "No space left" in str(error)
    assert [camera._stopped.is_set() for camera in cameras] == [False, True]


@pytest.mark.parametrize("matrix", range(16))
def test_frames_of_every_color_matrix_are_converted(matrix: int) -> None:
    """FFmpeg refuses some, which are read as unspecified."""
    frame = av.VideoFrame(64, 48, "yuv420p")
    for plane, value in zip(frame.planes, (120, 128, 128), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace = matrix
    rgb = upright_rgb(frame)
    assert rgb.shape == (48, 64, 3)
    if matrix != 0:  # planes of green, blue and red
        assert np.ptp(rgb) <= 2 and abs(int(rgb[0, 0, 0]) - 121) < 4


def test_audio_whose_layout_and_rate_change_is_encoded_to_its_end() -> None:
    def frame(layout: str, rate: int, start: int) -> av.AudioFrame:
        channels = 1 if layout == "mono" else 2
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 1152 * channels), np.int16), "s16", layout
        )
        samples.sample_rate, samples.pts, samples.time_base = rate, start, Fraction(1, rate)
        return samples

    frames = [frame("stereo", 48000, 1152 * i) for i in range(8)]
    frames += [frame("mono", 48000, 1152 * (8 + i)) for i in range(8)]
    frames += [frame("stereo", 24000, 576 * (16 + i)) for i in range(8)]
    packets = [SimpleNamespace(decode=lambda f=f: [f]) for f in frames]
    source = SimpleNamespace(demux=lambda track: iter(packets))
    with av.open(BytesIO(), "w", format="nut") as container:
        stream = container.add_stream("aac", rate=48000, layout="stereo")
        encoded = list(audio._encoded(source, None, stream, 48000, "stereo"))
    seconds = sum(float(p.duration * p.time_base) for p in encoded if p.duration)
    assert seconds == pytest.approx((16 * 1152 + 8 * 1152 * 2) / 48000, abs=0.1)


def test_a_folder_without_permission_costs_only_itself(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "drives" / "private"
    private.mkdir(parents=True)
    toy.write_image(tmp_path / "drives" / "a.png", toy.scene(0)[0])
    scandir, is_dir = os.scandir, Path.is_dir

    def refuse(path: Any) -> Any:
        if Path(path) == private:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    errors: list[OSError] = []
    assert [p.name for p in walk_files(tmp_path / "drives", {".png"}, errors.append)] == ["a.png"]
    assert [e.filename for e in errors] == [str(private)]
    readable, unreadable = open_sources([tmp_path / "drives"], recursive=True)
    assert readable.name == str(tmp_path / "drives")
    (error,) = unreadable.frames()
    assert isinstance(error, DataError) and str(error).startswith(f"{private} cannot be read")

    def refuse_below(path: Path) -> bool:
        if private in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse_below)
    good, bad = open_sources([images[0], private / "b.mp4"])
    assert good.name == str(images[0])
    assert "Permission denied" in str(next(iter(bad.frames())))
    with pytest.raises(DataError, match="Permission denied"):
        open_sources([private / "b.mp4"])


def test_images_of_a_folder_have_different_names(tmp_path: Path) -> None:
    for name in ("x.jpg", "x.png", "x.jpg.webp", "y.png"):
        (tmp_path / name).touch()
    (source,) = open_sources([tmp_path])
    assert {name: path.name for name, path in source.items.items()} == {  # type: ignore[attr-defined]
        "x.jpg": "x.jpg", "x.jpg.webp": "x.jpg.webp", "x.png": "x.png", "y": "y.png",
    }  # fmt: skip


def test_the_list_of_finished_sources_is_written_at_intervals_and_at_the_end(
    model: Path, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / MANIFEST).write_text("{}")
    sources, now = open_sources(images), [100.0]
    monkeypatch.setattr(finished.time, "monotonic", lambda: now[0])

    def listed() -> int:
        return len(json.loads((out / FINISHED).read_text())["sources"])

    with Segmenter(model) as segmenter:
        done = FinishedSources(segmenter, SaveOptions(out), sources, resume=False)
    assert not (out / MANIFEST).exists(), "the records of a job on a cluster do not apply any more"
    with pytest.raises(KeyboardInterrupt), done.written():
        for source, (seconds, count) in zip(
            sources, ((0, 1), (1, 1), (3, 3), (3.5, 3)), strict=False
        ):
            now[0] = 100 + seconds
            done.add(source)
            assert listed() == count
        raise KeyboardInterrupt
    assert listed() == 4


def test_a_named_output_file_may_have_a_source_in_a_folder_called_overlay(tmp_path: Path) -> None:
    (tmp_path / "overlay").mkdir()
    video = toy.write_video(tmp_path / "overlay" / "a.mp4", [toy.scene(0)[0]])
    check_outputs(open_sources([video]), SaveOptions(tmp_path, file=tmp_path / "new.mp4"))


@pytest.mark.parametrize("gpu", [False, True])
def test_a_remembered_cpu_backend_does_not_replace_the_gpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr(backend_selection, "installed_version", lambda name: "1.31.1")
    found = Gpu("a GPU", "8.9") if gpu else None
    monkeypatch.setattr(backend_selection, "find_gpu", lambda: found)
    monkeypatch.setattr(backend_selection, "fastest_backend", lambda metadata: "openvino")
    expected = "onnxruntime" if gpu else "openvino"
    assert backend_selection._preferred_backend(model, "auto") == expected
    assert backend_selection._preferred_backend(model, "cpu") == "openvino"
    assert backend_selection.runnable_backends(model, "cuda:1") == ["onnxruntime"]
    assert set(backend_selection.runnable_backends(model)) == {"onnxruntime", "openvino"}


def test_a_closed_engine_is_an_error_of_the_package() -> None:
    backend = object.__new__(TensorRtBackend)
    backend._runner = SimpleNamespace(is_closed=True)  # type: ignore[assignment]
    backend._where = "model.engine"  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"model\.engine"):
        backend.submit(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_video_without_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = toy.write_video(tmp_path / "v.mp4", [toy.scene(0)[0]])
    monkeypatch.setattr(
        "fada_deploy.common.video.best_stream",
        lambda container: SimpleNamespace(codec_context=None),
    )
    with pytest.raises(DataError, match=r"v\.mp4: FFmpeg has no decoder"):
        open_video(video)


def test_options_without_effect_are_named(
    fada: Run, model: Path, images: list[Path], tmp_path: Path
) -> None:
    code, _, err = fada(
        "infer", images[0], "--model", model, "--x264-preset", "medium", "--allow-unverified",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    for option in ("--x264-preset", "--allow-unverified"):
        assert f"warning: {option} has no effect" in err
    code, _, err = fada("infer", tmp_path, "--watch", "--recursive", "--model", model)
    assert code == 2 and "--recursive" in err


@pytest.mark.parametrize("stopped", [False, True])
def test_the_window_of_a_stopped_run_is_not_kept_open(
    monkeypatch: pytest.MonkeyPatch, model: Path, images: list[Path], tmp_path: Path, stopped: bool
) -> None:
    from fada_deploy.cli.infer_display import overlay_window

    waited: list[bool] = []
    forgotten: list[str] = []

    class Window:
        is_ready, closed, failure = True, False, ""

        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Window:
            return self

        def __exit__(self, *_: object) -> None: ...
        def show(self, image: np.ndarray) -> None: ...
        def wait(self) -> None:
            waited.append(True)

    monkeypatch.setattr("fada_deploy.runtime.viewer.Viewer", Window)
    monkeypatch.setattr(OverlayRenderer, "forget", lambda self, name: forgotten.append(name))
    sources, options = open_sources(images[:3]), SaveOptions(tmp_path)
    with Segmenter(model) as segmenter:
        window = overlay_window(True, lambda: None, options, segmenter, sources, lambda: stopped)
        with window as show:
            assert show is not None
            for path, result in zip(images, segmenter.predict(images[:3]), strict=False):
                object.__setattr__(result, "source", str(path))
                show(result)
    assert waited == [] if stopped else [True]
    assert forgotten == [str(path) for path in images[:2]]
