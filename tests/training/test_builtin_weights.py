"""The built-in model as a network that can be trained: its labels, and where it starts a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import fada_deploy
from fada_deploy.common.errors import MissingExtraError, ModelError
from fada_deploy.common.label_space import DRIVING_11
from fada_deploy.common.runs import BUILTIN, BUILTIN_FILE, final_weights
from fada_deploy.synth.scene import render
from fada_deploy.training.adapt import adaptation_config
from fada_deploy.training.predict import Predictor
from fada_deploy.training.weights import builtin
from fada_deploy.training.weights.checkpoints import load_model, read_provenance

Run = Callable[..., tuple[int, str, str]]
# Input size of the model.
SIZE_HW = (288, 480)


def scenes(count: int) -> list[np.ndarray]:
    """Return rendered scenes that are not those of the normalization statistics."""
    return [render("random", 800_000 + i, SIZE_HW)[0] for i in range(count)]


def test_network_and_file_give_the_same_labels() -> None:
    model, provenance = load_model(final_weights(BUILTIN))
    assert model.spec.space == DRIVING_11 and model.spec.norm == "batch" and not model.training
    assert provenance == read_provenance(BUILTIN_FILE) and provenance["config"]["src"] == "rendered"
    frames = scenes(6)
    ours = Predictor(model, torch.device("cpu")).labels(frames)
    with fada_deploy.Segmenter("builtin", backend="onnxruntime") as segmenter:
        theirs = segmenter.labels(frames, color="rgb")
    # The file also rounds activations to int8.
    assert np.mean([np.mean(a == b) for a, b in zip(ours, theirs, strict=True)]) > 0.98


def test_weights_are_those_that_onnx_dequantizes() -> None:
    """ONNX Runtime dequantizes one convolution's weights and one bias: an independent reading."""
    model, _ = load_model(BUILTIN_FILE)
    graph = onnx.load(BUILTIN_FILE)
    names = [
        "model.classifier.conv2.bias",
        "model.feature_extractor.backbone._blocks.3._expand_conv.weight_DequantizeLinear_Output",
    ]
    for name in names:
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    frame = {session.get_inputs()[0].name: np.zeros((1, *SIZE_HW, 3), np.uint8)}
    bias, weight = session.run(names, frame)
    network = dict(model.named_parameters())
    np.testing.assert_allclose(network["classifier.conv2.bias"].detach(), bias, rtol=1e-6)
    ours = network["feature_extractor.backbone._blocks.3._expand_conv.weight"].detach()
    np.testing.assert_allclose(ours, weight, rtol=1e-6)


def test_batch_statistics_change_little() -> None:
    """In training mode the network normalizes with the statistics of the batch.

    On rendered scenes these are close to the measured ones, so the labels are mostly equal. With
    the statistics of an untrained layer (mean 0, variance 1) they are not.
    """
    model, _ = load_model(BUILTIN_FILE)
    frames = torch.from_numpy(np.stack(scenes(8)))
    with torch.no_grad():
        labels = model(frames).argmax(1)
        equal = (model.train()(frames).argmax(1) == labels).float().mean()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.ones_(module.weight)
        untrained = (model(frames).argmax(1) == labels).float().mean()
    assert equal > 0.85 > untrained


def test_a_damaged_file_and_a_missing_package_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builtin._load_once.cache_clear()
    document = onnx.load(BUILTIN_FILE)
    name = next(t.name for t in document.graph.initializer if t.name.endswith("weight_quantized"))
    kept = [t for t in document.graph.initializer if t.name != name]
    del document.graph.initializer[:]
    document.graph.initializer.extend(kept)
    onnx.save(document, tmp_path / "damaged.onnx")
    monkeypatch.setattr(builtin, "BUILTIN_FILE", tmp_path / "damaged.onnx")
    with pytest.raises(ModelError, match="damaged"):
        builtin.load_builtin()
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="onnx"):
        builtin.load_builtin()


def test_adapt_settings_of_the_built_in_model_name_no_path() -> None:
    config = adaptation_config(BUILTIN, tgt="drive.mp4")
    assert config.start == "builtin" and config.stages == ("selftrain",)
    assert (config.src, config.label_space, config.tgt) == ("rendered", "driving-11", "drive.mp4")
    assert "/" not in json.dumps([config.start, config.label_space, config.src])


def test_adapt_the_built_in_model_to_a_folder(
    fada: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    drives = tmp_path / "drives"
    drives.mkdir()
    for i, frame in enumerate(scenes(3)):
        cv2.imwrite(str(drives / f"{i}.png"), frame[..., ::-1])
    code, out, err = fada(
        "adapt", "builtin", "--tgt", drives, "--source-free", "--iterations", "2", "--set",
        "size=96x64", "--set", "selftrain.batch=2", "--out", "run", "--json",
    )  # fmt: skip
    assert code == 0, err
    (comparison,) = json.loads(out)["targets"]
    assert comparison["target"] == str(drives) and 0 < comparison["agreement"] <= 1
    assert json.loads(Path("run/config.json").read_text())["start"] == "builtin"
    assert load_model(final_weights(Path("run")))[0].spec.space == DRIVING_11
