"""NaN in weights and outputs is named by every command that would use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import toy
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import save_file

from fada_deploy.common.errors import ModelError
from fada_deploy.runtime.segmenter import Segmenter

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_infer_and_eval_of_an_exported_file(
    fada: Run, tmp_path: Path, streets: Path, value: float
) -> None:
    path = toy.color_model(tmp_path / "toy.onnx")
    model = onnx.load(path)
    changed = 0
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim:
            array = array.copy()
            array.flat[0] = value
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            changed += 1
    assert changed
    onnx.save(model, path)
    with Segmenter(path) as segmenter, pytest.raises(ModelError, match="not finite"):
        segmenter.labels([np.full((64, 128, 3), 7, np.uint8)], color="rgb")
    video = toy.write_video(tmp_path / "v.mp4", [toy.scene(0)[0]] * 2)
    code, _, err = fada("infer", video, "--model", path, "--out", "out")
    assert code == 1 and "not finite" in err and not list(Path("out").rglob("*.mp4"))
    code, _, err = fada("eval", path, "--data", "cityscapes", "--data-root", streets / "cityscapes")
    assert code == 1 and "not finite" in err


def test_commands_that_read_weights(
    fada: Run, trained: Path, tmp_path: Path, streets: Path
) -> None:
    with safe_open(str(trained / "source/weights.safetensors"), "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].view(-1)[0] = float("nan")
    path = tmp_path / "damaged.safetensors"
    save_file(weights, path, metadata)
    root = streets / "cityscapes"
    for command in (
        ("export", path, "--out", "x.onnx"),
        ("eval", path, "--data", "cityscapes", "--data-root", root),
        ("adapt", path, "--tgt", root / "leftImg8bit"),
    ):
        code, _, err = fada(*command)
        assert code == 1 and "NaN" in err and name in err, err
    assert not Path("x.onnx").exists()
