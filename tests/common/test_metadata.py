"""The contract in a file: what is written is read back, what is missing in older files is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fada_deploy.common.errors import ModelError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.common.metadata import ModelMetadata, TargetStatistics

SHARES = tuple(i / 100 for i in range(13))


def contract(target_statistics: TargetStatistics | None) -> ModelMetadata:
    return ModelMetadata(
        CITYSCAPES_13, (64, 128), "logits", align_corners=False, target_statistics=target_statistics
    )


@pytest.mark.parametrize(
    "target_statistics",
    [
        None,
        TargetStatistics(32, SHARES, SHARES[::-1], 0.9, 0.02),
        TargetStatistics(1, SHARES, (0.0,) * 13),
    ],
)
def test_a_reference_is_read_back(target_statistics: TargetStatistics | None) -> None:
    assert ModelMetadata.from_json(contract(target_statistics).to_json(), "here") == contract(
        target_statistics
    )


def test_files_of_before_there_was_a_reference_still_open() -> None:
    document = json.loads(contract(None).to_json())
    del document["target_statistics"]
    assert ModelMetadata.from_json(json.dumps(document), "here").target_statistics is None


@pytest.mark.parametrize(
    "change",
    [
        {"fraction_mean": [0.5]},
        {"fraction_std": None},
        {"frames": "many"},
        {"confidence_mean": "sure"},
    ],
)
def test_a_reference_that_is_none_is_one_line(change: dict[str, Any]) -> None:
    document = json.loads(contract(TargetStatistics(32, SHARES, SHARES, 0.9, 0.02)).to_json())
    document["target_statistics"] |= change
    with pytest.raises(ModelError, match=r"model\.onnx: metadata is malformed .*; export it again"):
        ModelMetadata.from_json(json.dumps(document), "model.onnx")
    document["target_statistics"] = "none"
    with pytest.raises(ModelError, match="malformed"):
        ModelMetadata.from_json(json.dumps(document), "model.onnx")
