"""Model metadata: what is written is read back, and invalid documents are refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fada_deploy.common.errors import ModelError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.common.metadata import ModelMetadata, TargetStatistics

FRACTIONS = tuple(i / 100 for i in range(13))


def metadata(target_statistics: TargetStatistics | None = None) -> ModelMetadata:
    return ModelMetadata(
        CITYSCAPES_13, (64, 128), "logits", align_corners=False, target_statistics=target_statistics
    )


@pytest.mark.parametrize(
    "target_statistics",
    [
        None,
        TargetStatistics(32, FRACTIONS, FRACTIONS[::-1], 0.9, 0.02),
        TargetStatistics(1, FRACTIONS, (0.0,) * 13),
    ],
)
def test_reads_back_what_it_wrote(target_statistics: TargetStatistics | None) -> None:
    written = metadata(target_statistics)
    assert ModelMetadata.from_json(written.to_json(), "here") == written
    assert ModelMetadata.from_dict(written.to_dict(), "here") == written


def test_all_fields_survive() -> None:
    written = ModelMetadata(
        CITYSCAPES_13, (64, 128), "labels", align_corners=True, batch=4, precision="int8",
        hardware_target="cpu", hashes={"weights": "ab"}, provenance={"config": {"seed": 3}},
        versions={"torch": "2"}, verification={"onnxruntime": {"equal_labels": 1.0}},
        quantization={"method": "percentile"},
    )  # fmt: skip
    assert ModelMetadata.from_json(written.to_json(), "here") == written


def test_optional_keys_have_defaults() -> None:
    document = json.loads(metadata().to_json())
    for key in ("target_statistics", "hardware_target", "quantization"):
        del document[key]
    assert ModelMetadata.from_json(json.dumps(document), "here") == metadata()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"fraction_mean": [0.5]}, "fraction_mean"),
        ({"fraction_mean": [0.5], "fraction_std": [0.5]}, "found 1 class fractions, expected 13"),
        ({"fraction_std": None}, "target_statistics.fraction_std: found None"),
        ({"frames": "many"}, "target_statistics.frames: found 'many'"),
        ({"frames": 0}, "target_statistics.frames: found 0, expected a whole number of at least 1"),
        ({"confidence_mean": "sure"}, "target_statistics.confidence_mean: found 'sure'"),
        ({"confidence_mean": None}, "confidence_mean and confidence_std"),
    ],
)
def test_invalid_target_statistics_are_refused(change: dict[str, Any], key: str) -> None:
    document = json.loads(metadata(TargetStatistics(32, FRACTIONS, FRACTIONS, 0.9, 0.02)).to_json())
    document["target_statistics"] |= change
    with pytest.raises(ModelError, match=r"^model\.onnx \(metadata\): .*fada export") as caught:
        ModelMetadata.from_json(json.dumps(document), "model.onnx")
    assert key in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "fact"),
    [
        ("schema", 2, "schema version must be 1, got 2"),
        ("schema", "1", "schema: found '1'"),
        ("head", "boxes", "head: found 'boxes', expected one of 'labels', 'logits'"),
        ("precision", "fp8", "precision: found 'fp8'"),
        ("hashes", None, "hashes: found None"),
        ("hashes", {"weights": 3}, "hashes"),
        ("align_corners", 1, "align_corners: found 1, expected true or false"),
        ("input.geometry", "crop", "input.geometry: found 'crop'"),
        ("input.height", 0, "input.height: found 0"),
        ("input.batch", "4", "input.batch: found '4'"),
        ("label_space.classes", [], "label_space.classes: found length 0"),
        ("label_space", "road", "label_space: found 'road'"),
        ("target_statistics", "none", "target_statistics: found 'none'"),
        ("surprise", 1, "unknown key surprise"),
        ("input.surprise", 1, "unknown key input.surprise"),
    ],
)
def test_invalid_metadata_is_refused_with_its_key(path: str, value: Any, fact: str) -> None:
    document = json.loads(metadata().to_json())
    *parents, key = path.split(".")
    table = document
    for parent in parents:
        table = table[parent]
    table[key] = value
    with pytest.raises(ModelError, match=r"^model\.onnx \(metadata\): ") as caught:
        ModelMetadata.from_json(json.dumps(document), "model.onnx")
    assert fact in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["schema", "label_space", "input", "head", "hashes", "verification"]
)
def test_missing_key_is_named(key: str) -> None:
    document = json.loads(metadata().to_json())
    del document[key]
    with pytest.raises(ModelError, match=f"the key '{key}' is missing"):
        ModelMetadata.from_json(json.dumps(document), "model.onnx")


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "{}"])
def test_text_that_is_not_metadata_is_refused(text: str | None) -> None:
    with pytest.raises(ModelError, match=r"model\.onnx.*export the model again"):
        ModelMetadata.from_json(text, "model.onnx")
