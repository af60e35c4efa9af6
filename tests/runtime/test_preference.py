"""`--backend auto` uses the remembered fastest backend for the same model and machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy import color_model

from fada_deploy.common.files import cache_folder
from fada_deploy.runtime import backend_selection
from fada_deploy.runtime.backend_selection import open_backend
from fada_deploy.runtime.backends import preference
from fada_deploy.runtime.backends.onnx_file import read_metadata
from fada_deploy.runtime.backends.preference import fastest_backend, remember_fastest


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_auto_uses_the_remembered_backend(tmp_path: Path) -> None:
    model = color_model(tmp_path / "toy.onnx")
    metadata = read_metadata(model)
    assert fastest_backend(metadata) is None and open_backend(model).name == "onnxruntime"
    remember_fastest(metadata, "openvino")
    assert fastest_backend(metadata) == "openvino" and open_backend(model).name == "openvino"
    # An explicit backend has precedence.
    assert open_backend(model, backend="onnxruntime").name == "onnxruntime"


def test_other_models_and_machines_are_separate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = read_metadata(color_model(tmp_path / "toy.onnx"))
    remember_fastest(metadata, "openvino")
    assert fastest_backend(replace(metadata, precision="int8")) is None
    assert fastest_backend(replace(metadata, input_size_hw=(128, 128))) is None
    with monkeypatch.context() as patch:
        patch.setattr(preference, "usable_cores", lambda: 999)
        assert fastest_backend(metadata) is None
    with monkeypatch.context() as patch:
        patch.setattr(preference, "installed_version", lambda name: "99")
        assert fastest_backend(metadata) is None
    assert fastest_backend(metadata) == "openvino"


def test_ignores_a_damaged_cache_and_a_missing_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = color_model(tmp_path / "toy.onnx")
    remember_fastest(read_metadata(model), "openvino")
    with monkeypatch.context() as patch:
        patch.setattr(
            backend_selection, "find_spec", lambda name: None if name == "openvino" else object()
        )
        assert open_backend(model).name == "onnxruntime"
    path = cache_folder() / "backends.json"
    for text in ("{", "[]", '{"a": 1}'):
        path.write_text(text)
        assert open_backend(model).name == "onnxruntime"
    # Writing replaces a damaged cache.
    remember_fastest(read_metadata(model), "openvino")
    assert open_backend(model).name == "openvino"
