"""Engines are raced beside the first film; its answers stay those of the engine it began with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy

from fada_deploy.common.errors import ModelError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.runtime import autotune as racing
from fada_deploy.runtime.autotune import Autotuner, backends_to_measure
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import BACKENDS, Backend
from fada_deploy.runtime.backends.preference import fastest_backend

PROVEN: dict[str, Any] = {name: {} for name in ("onnxruntime", "openvino")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    metadata = ModelMetadata(
        toy.SPACE, (64, 128), "logits", align_corners=False, verification=PROVEN
    )
    return toy.color_model(tmp_path / "m.onnx", metadata=metadata.to_json())


class Slowed:
    """A backend that takes so many seconds longer, and counts."""

    def __init__(self, backend: Backend, seconds: float, error: Exception | None = None) -> None:
        self._backend, self._seconds, self._error = backend, seconds, error
        self.calls = 0
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def submit(self, frames: np.ndarray) -> Any:
        self.calls += 1
        if self._error:
            raise self._error
        time.sleep(self._seconds)
        return self._backend.submit(frames)

    def close(self) -> None:
        self.closed = True
        self._backend.close()


def run(race: Autotuner, count: int) -> Iterator[np.ndarray]:
    """Give a film's frames until the race is over, `count` at the most."""
    for i in range(count):
        yield race.submit(toy.scene(i)[0][None]).labels((64, 128))[0]
        if race._opening is not None:
            race._opening.join()


def race_between(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_s: float,
    rival_s: float,
    error: Exception | None = None,
) -> tuple[Autotuner, Slowed, list[Slowed]]:
    rivals: list[Slowed] = []

    def opened(path: Path, **options: Any) -> Slowed:
        rivals.append(Slowed(open_backend(path, backend="openvino"), rival_s, error))
        return rivals[-1]

    own = Slowed(open_backend(model, backend="onnxruntime"), own_s)
    monkeypatch.setattr(racing, "BACKENDS", BACKENDS | {"openvino": opened})
    return Autotuner(model, own, backends_to_measure(model, own)), own, rivals


@pytest.mark.parametrize(
    ("own_s", "rival_s", "fastest"), [(0.0, 0.03, "onnxruntime"), (0.03, 0.0, "openvino")]
)
def test_the_fastest_is_taken_from_the_next_run_on(
    model: Path, monkeypatch: pytest.MonkeyPatch, own_s: float, rival_s: float, fastest: str
) -> None:
    race, own, rivals = race_between(model, monkeypatch, own_s, rival_s)
    labels = list(run(race, 40))
    assert race.fastest == fastest and set(race.seconds) == {"onnxruntime", "openvino"}
    assert fastest_backend(race.metadata) == fastest and race.kept
    # Nothing more is measured, and this run goes on as it began.
    assert (
        own.calls == 40
        and rivals[0].calls == racing._WARM_UP + racing._MEASURED
        and race.name == "onnxruntime"
    )
    alone = open_backend(model, backend="onnxruntime")
    for i, found in enumerate(labels):
        np.testing.assert_array_equal(
            found, alone.submit(toy.scene(i)[0][None]).labels((64, 128))[0]
        )
    race.close()
    assert own.closed and rivals[0].closed
    assert backends_to_measure(model, open_backend(model, backend="onnxruntime")) == []


def test_a_cache_that_cannot_be_written_costs_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "no-folder").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    race, own, rivals = race_between(model, monkeypatch, 0.0, 0.01)
    assert len(list(run(race, 40))) == 40
    assert race.fastest == "onnxruntime" and not race.kept
    race.close()
    assert own.closed and rivals[0].closed


def test_the_first_frames_are_run_alone_and_a_short_film_decides_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race, _, rivals = race_between(model, monkeypatch, 0.0, 0.0)
    assert len(list(run(race, racing._BEFORE - 1))) == racing._BEFORE - 1 and not rivals
    list(run(race, 4))
    race.close()
    assert not race.fastest and fastest_backend(race.metadata) is None


def test_an_engine_that_fails_is_no_rival(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    race, own, rivals = race_between(model, monkeypatch, 0.0, 0.0, ModelError("no kernel"))
    assert len(list(run(race, 40))) == own.calls == 40
    assert rivals[0].calls == 1 and not race.fastest
    race.close()


def test_what_is_not_proven_is_not_raced(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    assert backends_to_measure(path, open_backend(path, backend="onnxruntime")) == []
