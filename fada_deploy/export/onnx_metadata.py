"""Writing ONNX files that say all about themselves. Knows the `onnx` package and no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fada_deploy.common.metadata import PROPERTY, ModelMetadata

if TYPE_CHECKING:
    import onnx


def save_onnx(document: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    """Write a checked model with its metadata; `path` is overwritten."""
    import onnx

    kept = [
        p for p in document.metadata_props if p.key != PROPERTY and not p.key.startswith("onnx.")
    ]
    del document.metadata_props[:]
    document.metadata_props.extend(kept)
    document.metadata_props.add(key=PROPERTY, value=metadata.to_json())
    onnx.checker.check_model(document, full_check=True)
    onnx.save(document, str(path))


def stamp(path: Path, metadata: ModelMetadata) -> None:
    """Replace the metadata inside an ONNX file."""
    import onnx

    save_onnx(onnx.load(str(path)), metadata, path)
