"""Write ONNX files that contain their metadata. Needs the `onnx` package but not torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fada_deploy.common.metadata import PROPERTY, ModelMetadata

if TYPE_CHECKING:
    import onnx


def save_onnx(document: onnx.ModelProto, metadata: ModelMetadata, path: Path) -> None:
    """Check `document` and write it to `path` with `metadata`, replacing an existing file.

    Raise `onnx.checker.ValidationError` if the graph is invalid.
    """
    import onnx

    _remove_source_lines(document.graph)
    # The exporter's own `onnx.` properties describe Python source lines.
    other_properties = [
        p for p in document.metadata_props if p.key != PROPERTY and not p.key.startswith("onnx.")
    ]
    del document.metadata_props[:]
    document.metadata_props.extend(other_properties)
    document.metadata_props.add(key=PROPERTY, value=metadata.to_json())
    onnx.checker.check_model(document, full_check=True)
    onnx.save(document, str(path))


def _remove_source_lines(graph: onnx.GraphProto) -> None:
    """Remove the descriptions of Python source lines, which contain the paths of this machine."""
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for element in (graph, *graph.node, *values):
        del element.metadata_props[:]
        element.ClearField("doc_string")


def replace_metadata(path: Path, metadata: ModelMetadata) -> None:
    """Replace the metadata of an ONNX file."""
    import onnx

    save_onnx(onnx.load(str(path)), metadata, path)
