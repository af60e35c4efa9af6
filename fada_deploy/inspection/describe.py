"""Describe exported models, engines, reference outputs, weights and runs as JSON-ready documents.

Files are only read, never run. Needs neither torch nor the `onnx` package.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import FadaError, ModelError
from fada_deploy.common.files import sha256
from fada_deploy.common.metadata import PROPERTY, ModelMetadata
from fada_deploy.common.runs import (
    CHECKPOINTS,
    CONFIG,
    EXPORTS,
    MODEL_SUFFIXES,
    REFERENCE_SUFFIX,
    SCORES,
    STAGES,
    WEIGHTS,
    checkpoint_path,
)
from fada_deploy.common.weights_document import read_weights_document
from fada_deploy.inspection.onnx_graph import read_graph
from fada_deploy.runtime.backend_selection import metadata_of
from fada_deploy.runtime.backends.engine_file import read_engine
from fada_deploy.runtime.backends.onnx_file import check_external_data, read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs, reference_path

Document = dict[str, Any]

# Largest safetensors header in bytes; a damaged length must not fill the memory.
_MAX_HEADER = 1 << 24
# Precision → element type of the stored weights.
_WEIGHT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def describe(path: Path) -> Document:
    """Return the description of a file or folder.

    All documents have the keys `path`, `kind` ("onnx", "engine", "reference", "weights", "stage" or
    "run") and `problems`, one line for each check that failed. Documents of models contain the
    metadata exactly as it is stored, under `metadata`. Raise `ModelError` if `path` was not written
    by `fada` or cannot be read.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file or folder")
    kind, reader = _reader(path)
    problems: list[str] = []
    content = reader(path, problems)
    if path.is_file():
        content = {"bytes": path.stat().st_size, "sha256": sha256(path), **content}
    return {"path": str(path), "kind": kind, **content, "problems": problems}


def _reader(path: Path) -> tuple[str, Callable[[Path, list[str]], Document]]:
    if path.is_dir():
        if (path / CONFIG).is_file():
            return "run", _run
        if (path / WEIGHTS).is_file():
            return "stage", _stage
    elif path.name.endswith(REFERENCE_SUFFIX):
        return "reference", _reference
    elif path.suffix in _READERS:
        return _READERS[path.suffix]
    raise ModelError(
        f"{path} was not written by `fada`; use a file of the type "
        f"{', '.join(sorted(_READERS))} or *{REFERENCE_SUFFIX}, or the folder of a run or stage "
        "(convert a checkpoint of other code first: `fada import`)"
    )


def _onnx(path: Path, problems: list[str]) -> Document:
    graph = read_graph(path)
    document: Document = {"metadata": None, "graph": graph.to_dict()}
    _collect_error(problems, check_external_data, path)
    metadata = _collect_error(problems, read_metadata, path)
    if metadata is None:
        return document
    inputs = [(port.name, port.dtype, port.shape[1:]) for port in graph.inputs]
    if inputs != [("frames", "uint8", (*metadata.input_size_hw, 3))]:
        problems.append("the input of the graph differs from the metadata")
    if metadata.head not in [port.name for port in graph.outputs]:
        problems.append(f"the graph has no output `{metadata.head}`")
    weight_types: Counter[str] = sum(graph.layers.values(), Counter())
    if weight_types and _WEIGHT_TYPES.get(metadata.precision) not in weight_types:
        problems.append(
            f"the metadata says {metadata.precision}, but the weights of the graph are "
            f"{', '.join(weight_types)}"
        )
    return {**document, **_model(path, metadata, problems)}


def _engine(path: Path, problems: list[str]) -> Document:
    # `read_engine` refuses an engine whose hash is not the one in its sidecar.
    sidecar = read_engine(path)
    document = json.loads(sidecar.to_json())
    engine = {k: v for k, v in document.items() if k not in ("metadata", "engine")}
    onnx = path.with_name(sidecar.onnx_name)
    engine["onnx"]["state"] = _state(onnx, sidecar.onnx_sha256)
    return {**_model(path, sidecar.metadata, problems), "engine": engine}


def _model(path: Path, metadata: ModelMetadata, problems: list[str]) -> Document:
    """Return the metadata, and whether the files that it names are unchanged."""
    reference = reference_path(path)
    state = _state(reference, metadata.hashes.get("reference"))
    if state == "different":
        problems.append(f"{reference.name} does not belong to {path.name}")
    document: Document = {
        "metadata": json.loads(metadata.to_json()),
        "reference": {"path": str(reference), "state": state},
    }
    run, provenance = path.parent.parent, metadata.provenance
    weights = [w for stage in STAGES if (w := run / stage / WEIGHTS).is_file()]
    if provenance.get("stage") in STAGES and isinstance(provenance.get("iteration"), int):
        checkpoint = checkpoint_path(run / provenance["stage"], provenance["iteration"])
        weights += [checkpoint] if checkpoint.is_file() else []
    # Only an export inside a run can be compared with its weights.
    if path.parent.name == EXPORTS and weights:
        equal = [w for w in weights if sha256(w) == metadata.hashes.get("weights")]
        document["weights"] = {
            "path": str(equal[0]) if equal else None,
            "state": "equal" if equal else "different",
        }
    return document


def _state(path: Path, expected_sha256: str | None) -> str:
    """Compare a file with its recorded hash: "equal", "different", "missing" or "unknown"."""
    if not path.is_file():
        return "missing"
    if expected_sha256 is None:
        return "unknown"
    return "equal" if sha256(path) == expected_sha256 else "different"


def _reference(path: Path, problems: list[str]) -> Document:
    reference, digest = ReferenceOutputs.load(path), sha256(path)
    models = []
    for model in sorted(p for p in path.parent.glob("[!.]*") if p.suffix in MODEL_SUFFIXES):
        if reference_path(model) != path:
            continue
        metadata = _collect_error([], metadata_of, model)
        if metadata is None:
            continue
        state = "equal" if metadata.hashes.get("reference") == digest else "different"
        models.append(
            {"path": str(model), "state": state, "classes": metadata.label_space.num_classes}
        )
        if state == "different":
            problems.append(f"{path.name} does not belong to {model.name}")
    count, classes, height, width = reference.logits.shape
    return {
        "frames": count,
        "size": {"height": reference.frames.shape[1], "width": reference.frames.shape[2]},
        "logits": {"classes": classes, "height": height, "width": width},
        "predicted_classes": reference.count_classes(),
        "models": models,
    }


def _weights(path: Path, problems: list[str]) -> Document:
    header = _safetensors_header(path)
    tensors = {name: t for name, t in header.items() if name != "__metadata__"}
    values: Counter[str] = Counter()
    try:
        for tensor in tensors.values():
            values[tensor["dtype"]] += math.prod(tensor["shape"])
        text = header["__metadata__"][PROPERTY]
        # Only to check it: the document is shown as it was written.
        read_weights_document(text, str(path))
        document = json.loads(text)
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"{path} does not describe its network, so it was not written by `fada train`; "
            "convert it with `fada import`"
        ) from None
    return {
        "model": document["model"],
        "tensors": len(tensors),
        "values": dict(values.most_common()),
        "provenance": document["provenance"],
    }


def _safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(length) if length <= _MAX_HEADER else b""
    try:
        header: dict[str, Any] = json.loads(text)
        end = max(
            (t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(f"{path} is not a safetensors file, or it is incomplete") from None
    if 8 + length + end != path.stat().st_size:
        raise ModelError(
            f"{path} has {path.stat().st_size} bytes where {8 + length + end} are expected; copy "
            "it again"
        )
    return header


def _stage(path: Path, problems: list[str]) -> Document:
    weights = path / WEIGHTS
    document = {"stage": path.name, "weights": str(weights), **_weights(weights, problems)}
    document["checkpoints"] = [
        p.stem for p in sorted((path / CHECKPOINTS).glob("[!.]*.safetensors"))
    ]
    document["scores"] = _json(path / SCORES, problems)
    return document


def _run(path: Path, problems: list[str]) -> Document:
    config = _json(path / CONFIG, problems) or {}
    if not isinstance(config, dict):
        problems.append(f"{path / CONFIG}: expected a JSON object, got {type(config).__name__}")
        config = {}
    stages: dict[str, Any] = {}
    for name in STAGES:
        if (path / name / WEIGHTS).is_file():
            stage = _collect_error(problems, _stage, path / name, problems)
            stages[name] = stage and {
                key: stage[key] for key in ("weights", "model", "checkpoints", "scores")
            }
    exports = []
    for model in sorted((path / EXPORTS).glob("[!.]*")):
        if model.suffix in MODEL_SUFFIXES:
            metadata = _collect_error(problems, metadata_of, model)
            provenance = {} if metadata is None else metadata.provenance
            exports.append(
                {
                    "path": str(model),
                    "precision": None if metadata is None else metadata.precision,
                    "stage": provenance.get("stage"),
                    "iteration": provenance.get("iteration"),
                    "bytes": model.stat().st_size,
                }
            )
    planned = [str(name) for name in config.get("stages") or ()]
    return {
        "config": config,
        "stages": stages,
        "unfinished": [name for name in planned if name not in stages],
        "exports": exports,
    }


def _json(path: Path, problems: list[str]) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path} cannot be read ({error})")
        return None


def _collect_error(problems: list[str], read: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of `read`; if it fails, add the error to `problems` and return None."""
    try:
        return read(*arguments)
    except FadaError as error:
        problems.append(str(error))
        return None


_READERS: Mapping[str, tuple[str, Callable[[Path, list[str]], Document]]] = {
    ".onnx": ("onnx", _onnx),
    ".engine": ("engine", _engine),
    ".plan": ("engine", _engine),
    ".safetensors": ("weights", _weights),
}
