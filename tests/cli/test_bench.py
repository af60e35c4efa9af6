"""`fada bench`: what it counts is what ran, and its figures agree with one another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from toy import color_model, scene, write_image, write_video

from fada_deploy.runtime import benchmark as bench
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.benchmark import Percentiles, measure

Fada = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return color_model(tmp_path / "toy.onnx")


def test_percentiles_by_hand() -> None:
    found = Percentiles.of([i / 1000 for i in range(1, 102)])
    assert (found.p50, found.p95, found.p99) == (51.0, 96.0, 100.0)


def test_every_backend_is_measured_and_the_road_beside_it(
    fada: Fada, model: Path, tmp_path: Path
) -> None:
    film = write_video(tmp_path / "film.mp4", [scene(i)[0] for i in range(12)])
    plot = tmp_path / "speed.png"
    code, out, err = fada(
        "bench", model, "--source", film, "--seconds", 0.2, "--plot", plot, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert [each["backend"] for each in document] == ["onnxruntime", "openvino"]
    for each in document:
        bare, road = each["model_only"], each["end_to_end"]
        assert bare["runs"] >= 10 and bare["ms"]["p50"] <= bare["ms"]["p95"] <= bare["ms"]["p99"]
        assert road["frames"] == 12 and set(road["ms"]) == set(bench.STAGES)
        assert each["ratio"] == pytest.approx(road["fps"] / bare["fps"])
        assert each["device"] == "cpu" and each["memory_mib"] > 20
    assert cv2.imread(str(plot)).shape[1] > 300


def test_a_part_of_the_film_and_a_batch(model: Path, tmp_path: Path) -> None:
    from fada_deploy.runtime.sources.open import open_sources

    (film,) = open_sources([write_video(tmp_path / "film.mp4", [scene(i)[0] for i in range(12)])])
    found = measure(model, backend="onnxruntime", batch=2, source=film, frames=5, seconds=0.1)
    assert (
        found.model_only.batch == 2
        and found.end_to_end is not None
        and found.end_to_end.frames == 5
    )


def test_the_fastest_is_chosen_for_auto(
    fada: Fada, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = fada("bench", model, "--seconds", 0.2, "--choose", "--json")
    speeds = {each["backend"]: each["model_only"]["fps"] for each in json.loads(out)}
    best = max(speeds, key=lambda name: speeds[name])
    assert code == 0 and f"--backend auto takes {best} from now on" in err
    assert open_backend(model).name == best


def test_the_table_names_what_was_measured(fada: Fada, model: Path) -> None:
    code, out, _ = fada("bench", model, "--seconds", 0.1, "--backend", "onnxruntime")
    assert code == 0 and "toy.onnx, onnxruntime" in out and "whole road" not in out


def test_what_cannot_be_measured_is_one_line(fada: Fada, model: Path, tmp_path: Path) -> None:
    picture = write_image(tmp_path / "a.png", scene(0)[0])
    for arguments, message in (
        ((model, "--backend", "magic"), "no backend 'magic'; there are all, onnxruntime"),
        ((model, "--source", picture), "takes one video"),
        ((model, "--source", "-"), "takes one video"),
        ((model, "--plot", "speed.bmp"), "writes .png, .svg or .pdf"),
        ((), "no model under runs/"),
    ):
        code, _, err = fada("bench", *arguments)
        assert code == 2 and message in err.splitlines()[-1]
