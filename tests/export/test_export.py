"""An exported file is the network, on a trained network and frames it has something to say about.

Equality counts only where many classes are at stake, and the gate must see each way to go wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from fada_deploy.common.errors import DataError, ToleranceError, UsageError
from fada_deploy.common.files import sha256
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.evaluation import evaluate
from fada_deploy.export.exporter import Exported, export, make_reference_outputs
from fada_deploy.export.verify import Frame, own_size, verify
from fada_deploy.runtime.parity import ReferenceOutputs, Tolerance, require_parity
from fada_deploy.runtime.segmenter import Segmenter as Runtime
from fada_deploy.training.predict import Predictor
from fada_deploy.training.weights.checkpoints import load_model

BACKENDS = ("onnxruntime", "openvino")
pytestmark = pytest.mark.slow


def quiet(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def weights(trained: Path) -> Path:
    return trained / "source" / "weights.safetensors"


@pytest.fixture(scope="module")
def logits_file(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(weights, tmp_path_factory.mktemp("export") / "model.onnx", say=quiet)


@pytest.fixture(scope="module")
def frames(streets: Path) -> list[Frame]:
    """Return source frames, on which the network is at its best and names most classes."""
    dataset = open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19)
    return [dataset.image(i) for i in range(0, 64, 8)]


def test_the_frames_put_many_classes_at_stake(weights: Path, frames: list[Frame]) -> None:
    reference, _ = make_reference_outputs(load_model(weights)[0], frames)
    assert reference.classes(0.01) >= 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_equal_the_networks_from_the_frame_on(
    logits_file: Exported, weights: Path, frames: list[Frame], backend: str
) -> None:
    """Frames of other sizes than the input too: resizing and upsampling are part of the promise."""
    import cv2

    odd = [cv2.resize(f, (251, 133), interpolation=cv2.INTER_CUBIC) for f in frames[:3]]
    want = Predictor(load_model(weights)[0], torch.device("cpu")).labels([*frames, *odd])
    with Runtime(logits_file.model, backend=backend) as runtime:
        got = runtime.labels([*frames, *odd], color="rgb")
    equal = sum(int((a == b).sum()) for a, b in zip(want, got, strict=True))
    assert equal / sum(a.size for a in want) >= 0.9999
    assert [g.shape for g in got] == [f.shape[:2] for f in [*frames, *odd]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [None, 2])
def test_the_labels_head_is_the_network_too(
    weights: Path, tmp_path: Path, frames: list[Frame], backend: str, batch: int | None
) -> None:
    made = export(weights, tmp_path / "labels.onnx", head="labels", batch=batch, say=quiet)
    reference, _ = make_reference_outputs(load_model(weights)[0], frames)
    with Runtime(made.model, backend=backend, batch=2) as runtime:
        got = runtime.labels(frames, color="rgb")
        assert runtime.metadata.head == "labels" and runtime.metadata.batch == batch
    assert np.mean([(a == b).mean() for a, b in zip(reference.labels, got, strict=True)]) >= 0.9999


def test_another_input_size_is_proven_at_that_size(weights: Path, tmp_path: Path) -> None:
    made = export(weights, tmp_path / "wide.onnx", size_hw=(96, 256), say=quiet)
    assert made.metadata.input_size_hw == (96, 256)
    assert ReferenceOutputs.load(made.reference).frames.shape[1:] == (96, 256, 3)
    with pytest.raises(UsageError, match="100x96.*multiples of 8"):
        export(weights, tmp_path / "bad.onnx", size_hw=(96, 100), say=quiet)


def test_the_file_says_all_about_itself(logits_file: Exported, weights: Path) -> None:
    document = onnx.load(str(logits_file.model))
    onnx.checker.check_model(document, full_check=True)
    said = json.loads(next(p.value for p in document.metadata_props if p.key == "fada"))
    assert said["hashes"] == {
        "weights": sha256(weights),
        "reference": sha256(logits_file.reference),
    }
    assert said["provenance"]["config"]["seed"] == 1 and said["provenance"]["stage"] == "source"
    assert set(said["verification"]) == set(BACKENDS)
    assert said["input"]["height"] == 128 and said["align_corners"] is True
    (graph_input,) = document.graph.input
    dims = graph_input.type.tensor_type.shape.dim
    assert graph_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [128, 192, 3]


def one_weight(document: onnx.ModelProto) -> None:
    kernel = max(document.graph.initializer, key=lambda t: np.prod(t.dims))
    values = numpy_helper.to_array(kernel).copy()
    values.flat[np.abs(values).argmax()] *= -1
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))


def swapped_colors(document: onnx.ModelProto) -> None:
    """Turn the first kernel's input channels round, as if frames were BGR."""
    kernel = next(t for t in document.graph.initializer if len(t.dims) == 4 and t.dims[1] == 3)
    values = numpy_helper.to_array(kernel)[:, ::-1].copy()
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))


def flipped_corners(document: onnx.ModelProto) -> None:
    (entry,) = [p for p in document.metadata_props if p.key == "fada"]
    entry.value = json.dumps(json.loads(entry.value) | {"align_corners": False})


@pytest.mark.parametrize("damage", [one_weight, swapped_colors, flipped_corners])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gate_sees_the_damage(
    logits_file: Exported,
    weights: Path,
    frames: list[Frame],
    tmp_path: Path,
    damage: Callable[..., None],
    backend: str,
) -> None:
    document = onnx.load(str(logits_file.model))
    damage(document)
    onnx.save(document, str(tmp_path / "damaged.onnx"))
    reference, labels = make_reference_outputs(load_model(weights)[0], frames)

    def prove(model: Path) -> None:
        found = verify(model, reference, frames=frames, labels=labels, backend=backend)
        require_parity({backend: found}, Tolerance())

    prove(logits_file.model)
    with pytest.raises(ToleranceError, match="nothing was written"):
        prove(tmp_path / "damaged.onnx")


def test_a_refused_export_leaves_nothing(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ToleranceError, match=r"labels equal the network's, 200\.00% are needed"
    ) as caught:
        export(weights, tmp_path / "model.onnx", thresholds=Tolerance(equal_labels=2.0), say=quiet)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_without_frames_to_prove_on_nothing_is_written(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        DataError, match="no frames for the reference, so nothing is written; give --frames"
    ):
        export(weights, tmp_path / "model.onnx", frames=tmp_path / "empty", say=quiet)
    assert not (tmp_path / "model.onnx").exists()


def test_given_frames_are_the_reference(
    weights: Path, streets: Path, tmp_path: Path, logits_file: Exported
) -> None:
    made = export(weights, tmp_path / "model.onnx", frames=streets / "clip" / "clip.mp4", say=quiet)
    with av.open(str(streets / "clip" / "clip.mp4")) as clip:
        first = next(clip.decode(video=0)).to_ndarray(format="rgb24")
    frames = ReferenceOutputs.load(made.reference).frames
    np.testing.assert_array_equal(frames[0], first)
    assert not np.array_equal(frames[0], ReferenceOutputs.load(logits_file.reference).frames[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "colors"}, "no head 'colors'; there are logits, labels"),
        ({}, "an ONNX file ends in .onnx"),
    ],
)
def test_what_cannot_be_exported_is_said(
    weights: Path, tmp_path: Path, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export(weights, tmp_path / "model.trt", **arguments, say=quiet)  # type: ignore[arg-type]


def test_the_file_scores_as_the_network_does(
    logits_file: Exported, weights: Path, streets: Path
) -> None:
    dataset = open_dataset("cityscapes", streets / "cityscapes", split="val", space=CITYSCAPES_19)
    network = Predictor(load_model(weights)[0], torch.device("cpu"))
    want = evaluate(network.labels, dataset).scores
    with Runtime(logits_file.model) as runtime:
        got = evaluate(partial(runtime.labels, color="rgb"), dataset, batch=3).scores
    assert got.miou == pytest.approx(want.miou, abs=1e-4)


def test_own_size_is_nearest(frames: list[Frame]) -> None:
    small = np.array([[0, 1], [2, 3]], np.uint8)
    (got,) = own_size([small], [np.zeros((4, 4, 3), np.uint8)])
    assert got.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_resnet101_from_init_weights_is_frozen_and_exports(blocks: Path, tmp_path: Path) -> None:
    """The paper's network through all of the road; a few steps show that it runs, not that it is good."""
    from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
    from fada_deploy.training.run import train
    from fada_deploy.training.settings import make_config

    torch.manual_seed(0)
    fresh = SegmentationModel(ModelSpec("resnet101", CITYSCAPES_19, (64, 96), "batch"))
    torch.save(fresh.feature_extractor["backbone"].state_dict(), tmp_path / "resnet101.pth")
    settings = [f"{s}.{k}" for s in ("source", "adversarial") for k in ("iterations=2", "batch=1")]
    options = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "stages": "source,adversarial",
    }
    config = make_config(
        preset="paper",
        file=None,
        settings=[*settings, "size=96x64", "src_size=104x64"],
        options=options | {"init": str(tmp_path / "resnet101.pth")},
    )
    train(config, tmp_path / "run", device=torch.device("cpu"), say=quiet)
    weights = tmp_path / "run" / "adversarial" / "weights.safetensors"
    model, _ = load_model(weights)
    backbone = model.feature_extractor["backbone"]
    assert model.spec.norm == "frozen" and torch.equal(backbone.bn1.running_var, torch.ones(64))
    assert not torch.equal(backbone.conv1.weight, fresh.feature_extractor["backbone"].conv1.weight)
    made = export(weights, tmp_path / "model.onnx", say=quiet)
    assert set(made.verification) == set(BACKENDS)
