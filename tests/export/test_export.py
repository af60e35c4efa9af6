"""An exported file gives the outputs of its network, and the parity check detects damage.

The network is trained and the frames contain many classes, so that equality means something.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import cv2
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
from fada_deploy.export.exporter import ExportedModel, export_onnx, make_reference_outputs
from fada_deploy.export.verify import Frame, resize_to_frames, verify_on_frames
from fada_deploy.runtime.parity import ReferenceOutputs, Tolerance, require_parity
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.training.predict import Predictor
from fada_deploy.training.weights.checkpoints import load_model

BACKENDS = ("onnxruntime", "openvino")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(trained: Path) -> Path:
    return trained / "source" / "weights.safetensors"


@pytest.fixture(scope="module")
def exported_logits(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportedModel:
    return export_onnx(weights, tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.fixture(scope="module")
def frames(streets: Path) -> list[Frame]:
    """Return source frames, on which the network predicts most classes."""
    dataset = open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19)
    return [dataset.image(i) for i in range(0, 64, 8)]


def test_frames_have_many_classes(weights: Path, frames: list[Frame]) -> None:
    reference, _ = make_reference_outputs(load_model(weights)[0], frames)
    assert reference.count_classes(0.01) >= 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_equal_the_network_at_any_frame_size(
    exported_logits: ExportedModel, weights: Path, frames: list[Frame], backend: str
) -> None:
    """Frames of other sizes than the input also check resizing and upsampling."""
    resized = [cv2.resize(f, (251, 133), interpolation=cv2.INTER_CUBIC) for f in frames[:3]]
    images = [*frames, *resized]
    expected = Predictor(load_model(weights)[0], torch.device("cpu")).labels(images)
    with Segmenter(exported_logits.model, backend=backend) as segmenter:
        labels = segmenter.labels(images, color="rgb")
    equal = sum(int((a == b).sum()) for a, b in zip(expected, labels, strict=True))
    assert equal / sum(a.size for a in expected) >= 0.9999
    assert [m.shape for m in labels] == [f.shape[:2] for f in images]


@pytest.mark.parametrize("batch", [None, 2])
def test_labels_head_equals_the_network(
    weights: Path, tmp_path: Path, frames: list[Frame], batch: int | None
) -> None:
    exported = export_onnx(weights, tmp_path / "labels.onnx", head="labels", batch=batch)
    reference, _ = make_reference_outputs(load_model(weights)[0], frames)
    for backend in BACKENDS:
        with Segmenter(exported.model, backend=backend, batch=2) as segmenter:
            labels = segmenter.labels(frames, color="rgb")
            assert segmenter.metadata.head == "labels" and segmenter.metadata.batch == batch
        equal = [(a == b).mean() for a, b in zip(reference.labels, labels, strict=True)]
        assert np.mean(equal) >= 0.9999, backend


def test_other_input_size(weights: Path, tmp_path: Path) -> None:
    exported = export_onnx(weights, tmp_path / "wide.onnx", size_hw=(96, 256))
    assert exported.metadata.input_size_hw == (96, 256)
    assert ReferenceOutputs.load(exported.reference).frames.shape[1:] == (96, 256, 3)
    with pytest.raises(UsageError, match="100x96"):
        export_onnx(weights, tmp_path / "bad.onnx", size_hw=(96, 100))


def test_file_contains_its_metadata(exported_logits: ExportedModel, weights: Path) -> None:
    document = onnx.load(str(exported_logits.model))
    onnx.checker.check_model(document, full_check=True)
    metadata = json.loads(next(p.value for p in document.metadata_props if p.key == "fada"))
    assert metadata["hashes"] == {
        "weights": sha256(weights),
        "reference": sha256(exported_logits.reference),
    }
    assert metadata["provenance"]["config"]["seed"] == 1
    assert metadata["provenance"]["stage"] == "source"
    assert set(metadata["verification"]) == set(BACKENDS)
    assert metadata["input"]["height"] == 128 and metadata["align_corners"] is True
    (graph_input,) = document.graph.input
    dims = graph_input.type.tensor_type.shape.dim
    assert graph_input.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert dims[0].dim_param and [d.dim_value for d in dims[1:]] == [128, 192, 3]


def negate_one_weight(document: onnx.ModelProto) -> None:
    kernel = max(document.graph.initializer, key=lambda t: np.prod(t.dims))
    values = numpy_helper.to_array(kernel).copy()
    values.flat[np.abs(values).argmax()] *= -1
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))


def swap_color_channels(document: onnx.ModelProto) -> None:
    """Reverse the input channels of the first kernel, as if frames were BGR."""
    kernel = next(t for t in document.graph.initializer if len(t.dims) == 4 and t.dims[1] == 3)
    values = numpy_helper.to_array(kernel)[:, ::-1].copy()
    kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))


def negate_align_corners(document: onnx.ModelProto) -> None:
    (entry,) = [p for p in document.metadata_props if p.key == "fada"]
    entry.value = json.dumps(json.loads(entry.value) | {"align_corners": False})


@pytest.mark.parametrize("damage", [negate_one_weight, swap_color_channels, negate_align_corners])
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity_check_detects_damage(
    exported_logits: ExportedModel,
    weights: Path,
    frames: list[Frame],
    tmp_path: Path,
    damage: Callable[..., None],
    backend: str,
) -> None:
    document = onnx.load(str(exported_logits.model))
    damage(document)
    onnx.save(document, str(tmp_path / "damaged.onnx"))
    reference, labels = make_reference_outputs(load_model(weights)[0], frames)

    def verify(model: Path) -> None:
        result = verify_on_frames(model, reference, frames=frames, labels=labels, backend=backend)
        require_parity({backend: result}, Tolerance())

    verify(exported_logits.model)
    with pytest.raises(ToleranceError, match="nothing was written"):
        verify(tmp_path / "damaged.onnx")


def test_refused_export_leaves_no_file(weights: Path, tmp_path: Path) -> None:
    impossible = Tolerance(equal_labels=2.0)
    with pytest.raises(ToleranceError, match=r"200\.00%") as caught:
        export_onnx(weights, tmp_path / "model.onnx", tolerance=impossible)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_export_without_frames_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no frames for the reference outputs.*--calibration"):
        export_onnx(weights, tmp_path / "model.onnx", frames=tmp_path / "empty")
    assert not (tmp_path / "model.onnx").exists()


def test_reference_frames_come_from_the_given_video(
    weights: Path, streets: Path, tmp_path: Path, exported_logits: ExportedModel
) -> None:
    video = streets / "clip" / "clip.mp4"
    exported = export_onnx(weights, tmp_path / "model.onnx", frames=video)
    with av.open(str(video)) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    frames = ReferenceOutputs.load(exported.reference).frames
    np.testing.assert_array_equal(frames[0], first)
    default_frames = ReferenceOutputs.load(exported_logits.reference).frames
    assert not np.array_equal(frames[0], default_frames[0])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("model.onnx", {"head": "colors"}, "'colors'.* logits, labels"),
        ("model.trt", {}, r"\.onnx.*model\.trt"),
    ],
)
def test_unknown_head_and_suffix_are_refused(
    weights: Path, tmp_path: Path, name: str, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        export_onnx(weights, tmp_path / name, **arguments)  # type: ignore[arg-type]


def test_file_and_network_have_the_same_miou(
    exported_logits: ExportedModel, weights: Path, streets: Path
) -> None:
    dataset = open_dataset("cityscapes", streets / "cityscapes", split="val", space=CITYSCAPES_19)
    network = Predictor(load_model(weights)[0], torch.device("cpu"))
    expected = evaluate(network.labels, dataset).scores
    with Segmenter(exported_logits.model) as segmenter:
        scores = evaluate(partial(segmenter.labels, color="rgb"), dataset, batch=3).scores
    assert scores.miou == pytest.approx(expected.miou, abs=1e-4)


def test_labels_are_resized_to_frames_with_nearest_neighbor() -> None:
    small = np.array([[0, 1], [2, 3]], np.uint8)
    (labels,) = resize_to_frames([small], [np.zeros((4, 4, 3), np.uint8)])
    assert labels.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_deeplab_with_frozen_batch_norm_exports(blocks: Path, tmp_path: Path) -> None:
    """From ImageNet weights to ONNX; the few steps do not train the network well."""
    from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
    from fada_deploy.training.run import train
    from fada_deploy.training.settings import make_config

    torch.manual_seed(0)
    fresh = SegmentationModel(ModelSpec("resnet18", CITYSCAPES_19, (64, 96), "batch"))
    torch.save(fresh.feature_extractor["backbone"].state_dict(), tmp_path / "resnet18.pth")
    settings = [f"{s}.{k}" for s in ("source", "adversarial") for k in ("iterations=2", "batch=1")]
    options = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "stages": ("source", "adversarial"),
        "backbone": "resnet18",
    }
    config = make_config(
        recipe="paper",
        file=None,
        settings=[*settings, "size=96x64", "src_size=104x64"],
        options=options | {"init": str(tmp_path / "resnet18.pth")},
    )
    train(config, tmp_path / "run", device=torch.device("cpu"))
    weights = tmp_path / "run" / "adversarial" / "weights.safetensors"
    model, _ = load_model(weights)
    backbone = model.feature_extractor["backbone"]
    assert model.spec.norm == "frozen" and torch.equal(backbone.bn1.running_var, torch.ones(64))
    assert not torch.equal(backbone.conv1.weight, fresh.feature_extractor["backbone"].conv1.weight)
    exported = export_onnx(weights, tmp_path / "model.onnx")
    assert set(exported.verification) == set(BACKENDS)
