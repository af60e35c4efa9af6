"""The metadata of a weights file: the network, and how its weights were trained."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fada_deploy.common.documents import read_json
from fada_deploy.common.label_space import LabelSpaceDocument


class ModelSpecDocument(msgspec.Struct, frozen=True):
    """The JSON form of a `ModelSpec`."""

    backbone: str
    label_space: LabelSpaceDocument
    size_hw: tuple[int, int]
    norm: Literal["batch", "frozen"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class WeightsDocument(msgspec.Struct, frozen=True):
    """What is needed to build the network, and a record of the training."""

    model: ModelSpecDocument
    provenance: dict[str, Any]


def read_weights_document(text: str, where: str) -> WeightsDocument:
    """Decode the metadata of the weights file `where`; raise `ModelError` if they are damaged."""
    return read_json(
        text,
        WeightsDocument,
        where=where,
        remedy="use weights written by `fada train` or `fada import`",
        file_names=True,
    )
