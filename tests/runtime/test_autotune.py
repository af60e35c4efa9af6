"""Backends are measured during the first video; its predictions stay those of its own backend."""

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
from fada_deploy.runtime import autotune
from fada_deploy.runtime.autotune import Autotuner, backends_to_measure
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import BACKENDS, Backend
from fada_deploy.runtime.backends.preference import fastest_backend

VERIFIED: dict[str, Any] = {name: {} for name in ("onnxruntime", "openvino")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    metadata = ModelMetadata(
        toy.SPACE, (64, 128), "logits", align_corners=False, verification=VERIFIED
    )
    return toy.color_model(tmp_path / "m.onnx", metadata=metadata.to_json())


class Slowed:
    """A backend that takes `seconds` longer per call, or raises, and counts its calls."""

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


def run(tuner: Autotuner, count: int) -> Iterator[np.ndarray]:
    """Run `count` frames; yield their labels."""
    for i in range(count):
        yield tuner.submit(toy.scene(i)[0][None]).labels((64, 128))[0]
        if tuner._opener is not None:
            tuner._opener.join()


def autotuner_with(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_s: float,
    other_s: float,
    error: Exception | None = None,
) -> tuple[Autotuner, Slowed, list[Slowed]]:
    others: list[Slowed] = []

    def open_slowed(path: Path, **options: Any) -> Slowed:
        others.append(Slowed(open_backend(path, backend="openvino"), other_s, error))
        return others[-1]

    own = Slowed(open_backend(model, backend="onnxruntime"), own_s)
    monkeypatch.setattr(autotune, "BACKENDS", BACKENDS | {"openvino": open_slowed})
    return Autotuner(model, own, backends_to_measure(model, own)), own, others


@pytest.mark.parametrize(
    ("own_s", "other_s", "fastest"), [(0.0, 0.03, "onnxruntime"), (0.03, 0.0, "openvino")]
)
def test_remembers_the_fastest_for_the_next_run(
    model: Path, monkeypatch: pytest.MonkeyPatch, own_s: float, other_s: float, fastest: str
) -> None:
    tuner, own, others = autotuner_with(model, monkeypatch, own_s, other_s)
    labels = list(run(tuner, 40))
    assert tuner.fastest == fastest and set(tuner.seconds) == {"onnxruntime", "openvino"}
    assert fastest_backend(tuner.metadata) == fastest and tuner.is_remembered
    # Nothing more is measured, and this run keeps its backend.
    assert (
        own.calls == 40
        and others[0].calls == autotune._WARM_UP_BATCHES + autotune._MEASURED_BATCHES
        and tuner.name == "onnxruntime"
    )
    alone = open_backend(model, backend="onnxruntime")
    for i, own_labels in enumerate(labels):
        np.testing.assert_array_equal(
            own_labels, alone.submit(toy.scene(i)[0][None]).labels((64, 128))[0]
        )
    tuner.close()
    assert own.closed and others[0].closed
    assert backends_to_measure(model, open_backend(model, backend="onnxruntime")) == []


def test_unwritable_cache_does_not_end_the_run(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "no-folder").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    tuner, own, others = autotuner_with(model, monkeypatch, 0.0, 0.01)
    assert len(list(run(tuner, 40))) == 40
    assert tuner.fastest == "onnxruntime" and not tuner.is_remembered
    tuner.close()
    assert own.closed and others[0].closed


def test_short_video_decides_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner, _, others = autotuner_with(model, monkeypatch, 0.0, 0.0)
    assert (
        len(list(run(tuner, autotune._BATCHES_BEFORE - 1))) == autotune._BATCHES_BEFORE - 1
        and not others
    )
    list(run(tuner, 4))
    tuner.close()
    assert not tuner.fastest and fastest_backend(tuner.metadata) is None


def test_failing_backend_is_not_a_candidate(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner, own, others = autotuner_with(model, monkeypatch, 0.0, 0.0, ModelError("no kernel"))
    assert len(list(run(tuner, 40))) == own.calls == 40
    assert others[0].calls == 1 and not tuner.fastest
    tuner.close()


def test_unverified_backends_are_not_measured(tmp_path: Path) -> None:
    path = toy.color_model(tmp_path / "m.onnx")
    assert backends_to_measure(path, open_backend(path, backend="onnxruntime")) == []
