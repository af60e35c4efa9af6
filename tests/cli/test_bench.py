"""`fada bench`: it measures what it reports, and the figures are consistent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from toy import color_model, scene, write_image, write_video

from fada_deploy.common.errors import DataError
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.benchmark import Percentiles, benchmark
from fada_deploy.runtime.pipeline import STAGES
from fada_deploy.runtime.sources.open import open_sources

Fada = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return color_model(tmp_path / "toy.onnx")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "video.mp4", [scene(i)[0] for i in range(12)])


def test_percentiles_by_hand() -> None:
    percentiles = Percentiles.from_seconds([i / 1000 for i in range(1, 102)])
    assert (percentiles.p50, percentiles.p95, percentiles.p99) == (51.0, 96.0, 100.0)


def test_measures_every_backend_model_only_and_end_to_end(
    fada: Fada, model: Path, video: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "speed.png"
    code, out, err = fada(
        "bench", model, "--video", video, "--seconds", 0.2, "--plot", plot, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert [result["backend"] for result in document] == ["onnxruntime", "openvino"]
    for result in document:
        alone, pipeline = result["model_only"], result["end_to_end"]
        assert alone["runs"] >= 10
        assert alone["ms"]["p50"] <= alone["ms"]["p95"] <= alone["ms"]["p99"]
        assert pipeline["frames"] == 12 and set(pipeline["ms"]) == set(STAGES)
        stage_sum = sum(pipeline["stage_cpu_ms"].values())
        assert stage_sum == pytest.approx(pipeline["cpu_ms"], abs=0.05)
        assert result["ratio"] == pytest.approx(pipeline["fps"] / alone["fps"])
        assert result["device"] == "cpu" and result["memory_mib"] > 20
    assert cv2.imread(str(plot)).shape[1] > 300


def test_limits_frames_and_uses_the_batch(model: Path, video: Path) -> None:
    (source,) = open_sources([video])
    result = benchmark(model, backend="onnxruntime", batch=2, video=source, frames=5, seconds=0.1)
    assert result.model_only.batch == 2
    assert result.end_to_end is not None and result.end_to_end.frames == 5


def test_video_without_frames_is_an_error(model: Path, tmp_path: Path) -> None:
    (source,) = open_sources([write_video(tmp_path / "v.mp4", [scene(0)[0]])])
    source.frames = lambda: (item for item in ())  # type: ignore[method-assign, assignment]
    with pytest.raises(DataError, match=r"v\.mp4"):
        benchmark(model, backend="onnxruntime", video=source, seconds=0.1)


def test_remember_makes_auto_use_the_fastest_backend(
    fada: Fada, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = fada("bench", model, "--seconds", 0.2, "--remember", "--json")
    speeds = {result["backend"]: result["model_only"]["fps"] for result in json.loads(out)}
    fastest = max(speeds, key=lambda name: speeds[name])
    last = err.splitlines()[-1]
    assert code == 0 and "toy.onnx" in last and f"uses {fastest}" in last
    assert open_backend(model).name == fastest


def test_table_lists_model_only_and_end_to_end(fada: Fada, model: Path, video: Path) -> None:
    arguments = ("bench", "--model", model, "--seconds", 0.1, "--backend", "onnxruntime")
    code, out, _ = fada(*arguments)
    assert code == 0 and "end-to-end" not in out
    header, row = out.splitlines()
    assert header.startswith("model-only") and row.startswith("toy.onnx, onnxruntime")
    assert {"frames/s", "CPU", "warm-up"} <= set(header.split())
    code, out, _ = fada(*arguments, "--video", video, "--frames", 3)
    lines = out.splitlines()
    assert code == 0 and lines[2] == "" and lines[3].startswith("end-to-end")
    assert lines[3].split()[-7:] == [*STAGES, "others"]
    assert lines[4].startswith("toy.onnx, onnxruntime") and "p50" in lines[4]
    # No stage named "others" has a wall time, but it has a CPU time.
    assert "CPU" in lines[5] and len(lines[5].split()) == len(lines[3].split()) - 4


def test_model_option_and_argument_can_be_combined(fada: Fada, model: Path, tmp_path: Path) -> None:
    other = color_model(tmp_path / "other.onnx")
    arguments = ("--seconds", 0.1, "--backend", "onnxruntime", "--json")
    code, out, _ = fada("bench", model, "--model", other, *arguments)
    assert code == 0
    assert [result["model"] for result in json.loads(out)] == [str(model), str(other)]


def test_frames_without_video_have_no_effect(fada: Fada, model: Path) -> None:
    arguments = ("bench", model, "--seconds", 0.1, "--backend", "onnxruntime")
    code, _, err = fada(*arguments, "--frames", 3)
    (warning,) = (line for line in err.splitlines() if line.startswith("warning: "))
    assert code == 0 and "--frames" in warning and "--video" in warning
    assert "warning" not in fada(*arguments)[2]


def test_usage_errors_are_one_line(fada: Fada, model: Path, tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", scene(0)[0])
    for arguments, facts in (
        ((model, "--backend", "magic"), ("--backend", "magic", "onnxruntime")),
        ((model, "--device", "gpu"), ("gpu", "cuda:N")),
        ((model, "--video", image), ("--video", "a.png")),
        ((model, "--video", "-"), ("--video",)),
        ((model, "--plot", "speed.bmp"), ("--plot", ".png", "speed.bmp")),
        ((), ("runs/", "fada export")),
    ):
        code, _, err = fada("bench", *arguments)
        # A model that is not there is an error of the input, as in the other commands.
        assert code == (2 if arguments else 1)
        assert all(fact in err.splitlines()[-1] for fact in facts), err


def test_remember_needs_two_backends(fada: Fada, model: Path, tmp_path: Path) -> None:
    code, _, err = fada(
        "bench", model, "--seconds", 0.1, "--backend", "onnxruntime", "--remember", "--json"
    )
    assert code == 0 and "--remember has no effect" in err and "remembered" not in err
