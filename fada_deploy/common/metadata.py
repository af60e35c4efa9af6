"""What a model file says of itself: one JSON document, all that the runtime needs.

It travels inside an ONNX file as the property `fada`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fada_deploy.common.errors import ModelError
from fada_deploy.common.label_space import LabelSpace

PROPERTY = "fada"
SCHEMA = 1
HEADS = ("logits", "labels")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
# CPUs and TensorRT want different int8; everything else runs anywhere.
HARDWARE_TARGETS = ("any", "cpu", "tensorrt")


@dataclass(frozen=True)
class TargetStatistics:
    """What a model said of frames of its target when it was exported: what drift is measured from.

    Over `frames` frames the mean and the sample standard deviation of each class's share of the picture, (K,) in
    0 … 1, and of the picture's mean confidence, in 1/K … 1; None for a head that gives labels alone.
    """

    frames: int
    fraction_mean: tuple[float, ...]
    fraction_std: tuple[float, ...]
    confidence_mean: float | None = None
    confidence_std: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], classes: int) -> TargetStatistics:
        """Read `to_dict`'s description of a network with so many classes; raise `ValueError` for another."""
        mean, std = (tuple(map(float, data[key])) for key in ("fraction_mean", "fraction_std"))
        if not len(mean) == len(std) == classes:
            raise ValueError(
                f"target_statistics fractions of {len(mean)} and {len(std)} classes, not of {classes}"
            )
        sure, spread = (data[key] for key in ("confidence_mean", "confidence_std"))
        if sure is None or spread is None:
            return cls(int(data["frames"]), mean, std)
        return cls(int(data["frames"]), mean, std, float(sure), float(spread))


@dataclass(frozen=True)
class ModelMetadata:
    """Contract of an exported segmenter.

    Input: uint8 RGB (B, H, W, 3) at `input_size_hw`, made from a frame by
    `common.images.resize_frame`. Output: head `logits` float (B, K, h, w) at the network's own
    resolution, to be upsampled with `align_corners`; head `labels` uint8 (B, H, W) indices.
    `precision` is what the network computes in, `hardware_target` whom an int8 file is quantized for, `quantization`
    how. `verification` has a backend's findings under its name; empty where nothing here could run the file.
    `target_statistics` is what the fp32 file said of target frames, None in files of before it was written.
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

    def to_json(self) -> str:
        """Serialize; `from_json` reads it back."""
        height, width = self.input_size_hw
        document = {
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
            "target_statistics": None
            if self.target_statistics is None
            else self.target_statistics.to_dict(),
        }
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None, where: str) -> ModelMetadata:
        """Read `to_json`'s document; raise `ModelError` naming `where` if it is missing or strange."""
        if not text:
            raise ModelError(
                f"{where}: has no `{PROPERTY}` metadata, so its classes and input are unknown; "
                "export it with `fada export`"
            )
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise ModelError(
                    f"{where}: metadata schema {data['schema']}, this version reads {SCHEMA}; export it again"
                )
            source = data["input"]
            batch, target_statistics = source["batch"], data.get("target_statistics")
            space = LabelSpace.from_dict(data["label_space"])
            metadata = cls(
                label_space=space,
                input_size_hw=(int(source["height"]), int(source["width"])),
                head=str(data["head"]),
                align_corners=bool(data["align_corners"]),
                batch=None if batch is None else int(batch),
                precision=str(data["precision"]),
                # Files of before these were written are fp32, for any engine.
                hardware_target=str(data.get("hardware_target", "any")),
                quantization=data.get("quantization"),
                geometry=str(source["geometry"]),
                resize=str(source["resize"]),
                hashes=data["hashes"],
                provenance=data["provenance"],
                versions=data["versions"],
                verification=data["verification"],
                target_statistics=None
                if target_statistics is None
                else TargetStatistics.from_dict(target_statistics, space.num_classes),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{where}: metadata is malformed ({error!r}); export it again"
            ) from None
        if metadata.head not in HEADS or (metadata.geometry, metadata.resize) != (
            "stretch",
            "area",
        ):
            raise ModelError(
                f"{where}: head {metadata.head!r}, geometry {metadata.geometry!r}, resize {metadata.resize!r} "
                "are not known to this version; export it again"
            )
        return metadata
