"""The metadata of an exported model: one JSON document with all that the runtime needs.

An ONNX file holds it as the property `fada`; the sidecar of a TensorRT engine holds it as well. Its
JSON Schema is docs/schemas/metadata.schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from fada_deploy.common.documents import convert, read_json
from fada_deploy.common.errors import ModelError
from fada_deploy.common.label_space import LabelSpace

PROPERTY = "fada"
SCHEMA = 1
HEADS = ("logits", "labels")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

_REMEDY = "export the model again with `fada export`"
_Positive = Annotated[int, msgspec.Meta(ge=1)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class TargetStatistics:
    """Statistics of the predictions on target frames at export time; drift is measured from them.

    Means and sample standard deviations over `frames` frames: of each class fraction, (K,) in
    0…1, and of the mean confidence of a frame, in 1/K…1. The confidences are None for a model that
    outputs labels only.
    """

    frames: _Positive
    fraction_mean: tuple[_NotNegative, ...]
    fraction_std: tuple[_NotNegative, ...]
    confidence_mean: float | None = None
    confidence_std: float | None = None

    def __post_init__(self) -> None:
        if len(self.fraction_mean) != len(self.fraction_std):
            raise ValueError("fraction_mean and fraction_std must have the same length")
        if (self.confidence_mean is None) != (self.confidence_std is None):
            raise ValueError("confidence_mean and confidence_std must both be set or both be null")

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document."""
        return asdict(self)


class InputDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The input of the network; a null `batch` is dynamic."""

    height: _Positive
    width: _Positive
    batch: _Positive | None
    layout: Literal["NHWC"]
    color: Literal["RGB"]
    dtype: Literal["uint8"]
    geometry: Literal["stretch"]
    resize: Literal["area"]


class MetadataDocument(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of an exported model as it is stored in files."""

    schema: Literal[1]
    label_space: LabelSpace
    input: InputDocument
    head: Literal["logits", "labels"]
    align_corners: bool
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    hardware_target: Literal["any", "cpu", "tensorrt"] = "any"
    quantization: dict[str, Any] | None = None
    hashes: dict[str, str]
    provenance: dict[str, Any]
    versions: dict[str, str]
    verification: dict[str, Any] | None
    target_statistics: TargetStatistics | None = None

    def __post_init__(self) -> None:
        statistics, classes = self.target_statistics, self.label_space.num_classes
        if statistics is not None and len(statistics.fraction_mean) != classes:
            raise ValueError(
                f"target_statistics: found {len(statistics.fraction_mean)} class fractions, "
                f"expected {classes}"
            )


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of an exported model.

    Input: uint8 RGB (B, H, W, 3) at `input_size_hw`, made from a frame by
    `common.images.resize_frame`; `batch` is B, None if dynamic. Output: `head` "logits" is float
    (B, K, h, w) at the network's own resolution, to be upsampled with `align_corners`; `head`
    "labels" is uint8 indices (B, H, W).

    `precision` is the number format of the computation. `hardware_target` is the hardware that an
    int8 file is quantized for, and `quantization` describes how. `verification` maps each backend
    to its parity result; it is empty if no backend could run the file. `target_statistics` are
    measured with the fp32 file.
    """

    label_space: LabelSpace
    input_size_hw: tuple[int, int]
    head: str
    align_corners: bool
    batch: int | None = None
    precision: str = "fp32"
    hardware_target: str = "any"
    geometry: str = "stretch"
    resize: str = "area"
    hashes: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] | None = None
    quantization: Mapping[str, Any] | None = None
    target_statistics: TargetStatistics | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document, as `MetadataDocument` describes it."""
        height, width = self.input_size_hw
        statistics = self.target_statistics
        return {
            "schema": SCHEMA,
            "label_space": self.label_space.to_dict(),
            "input": {
                "height": height,
                "width": width,
                "batch": self.batch,
                "layout": "NHWC",
                "color": "RGB",
                "dtype": "uint8",
                "geometry": self.geometry,
                "resize": self.resize,
            },
            "head": self.head,
            "align_corners": self.align_corners,
            "precision": self.precision,
            "hardware_target": self.hardware_target,
            "quantization": None if self.quantization is None else dict(self.quantization),
            "hashes": dict(self.hashes),
            "provenance": dict(self.provenance),
            "versions": dict(self.versions),
            "verification": None if self.verification is None else dict(self.verification),
            "target_statistics": None if statistics is None else statistics.to_dict(),
        }

    def to_json(self) -> str:
        """Return the document as JSON text; `from_json` reads it back."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_document(cls, document: MetadataDocument) -> ModelMetadata:
        """Return the metadata that a decoded document holds."""
        return cls(
            label_space=document.label_space,
            input_size_hw=(document.input.height, document.input.width),
            head=document.head,
            align_corners=document.align_corners,
            batch=document.input.batch,
            precision=document.precision,
            hardware_target=document.hardware_target,
            quantization=document.quantization,
            geometry=document.input.geometry,
            resize=document.input.resize,
            hashes=document.hashes,
            provenance=document.provenance,
            versions=document.versions,
            verification=document.verification,
            target_statistics=document.target_statistics,
        )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> ModelMetadata:
        """Read a document of `to_dict`; raise `ModelError` naming `where` if it is not one."""
        where = f"{where} (metadata)"
        version = data.get("schema") if isinstance(data, Mapping) else None
        if isinstance(version, int) and version != SCHEMA:
            raise ModelError(
                f"{where}: schema version must be {SCHEMA}, got {version}; {_REMEDY}, or use the "
                "version of fada_deploy that wrote it"
            )
        return cls.from_document(convert(data, MetadataDocument, where=where, remedy=_REMEDY))

    @classmethod
    def from_json(cls, text: str | None, where: str) -> ModelMetadata:
        """Read the text of `to_json`; raise `ModelError` if it is missing or invalid."""
        if not text:
            raise ModelError(
                f"{where} has no `{PROPERTY}` metadata, so its classes and input are unknown; "
                f"{_REMEDY}"
            )
        data = read_json(text, dict[str, Any], where=f"{where} (metadata)", remedy=_REMEDY)
        return cls.from_dict(data, where)
