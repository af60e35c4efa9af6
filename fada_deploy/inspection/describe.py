"""All that a file says of itself, as one JSON-ready document: `fada inspect`.

Exports, engines, reference outputs, weights and runs; needs neither torch nor the `onnx` package, and runs nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import FadaError, ModelError
from fada_deploy.common.files import sha256
from fada_deploy.common.metadata import PROPERTY, ModelMetadata
from fada_deploy.common.runs import CHECKPOINTS, CONFIG, MODEL_SUFFIXES, STAGES, WEIGHTS
from fada_deploy.inspection.onnx_graph import read_graph
from fada_deploy.runtime.backend_selection import metadata_of
from fada_deploy.runtime.backends.engine_file import read_engine
from fada_deploy.runtime.backends.onnx_file import check_external_data, read_metadata
from fada_deploy.runtime.parity import ReferenceOutputs, reference_path

Document = dict[str, Any]

REFERENCE = ".reference.npz"
# A safetensors header longer than this is none of ours.
_LONGEST = 1 << 24
# What each precision's weights are stored in: the promise that the graph is held against.
_STORED = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def describe(path: Path) -> Document:
    """Return what a file or folder says of itself; `problems` lists what does not hold.

    Keys common to all: path, kind, problems. A model has its contract, as it was written, under `metadata`.
    Raise `ModelError` for what is no file of this package's, or cannot be read.
    """
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    kind, reader = _reader(path)
    problems: list[str] = []
    facts = reader(path, problems)
    if path.is_file():
        facts = {"bytes": path.stat().st_size, "sha256": sha256(path), **facts}
    return {"path": str(path), "kind": kind, **facts, "problems": problems}


def _reader(path: Path) -> tuple[str, Callable[[Path, list[str]], Document]]:
    if path.is_dir():
        if (path / CONFIG).is_file():
            return "run", _run
        if (path / WEIGHTS).is_file():
            return "stage", _stage
    elif path.name.endswith(REFERENCE):
        return "reference", _reference
    elif path.suffix in _READERS:
        return _READERS[path.suffix]
    raise ModelError(
        f"{path}: not a file that `fada` writes; it describes {', '.join(sorted(_READERS))}, *{REFERENCE}, and the "
        "folder of a run or a stage (a checkpoint of another code becomes one by `fada import`)"
    )


def _onnx(path: Path, problems: list[str]) -> Document:
    graph = read_graph(path)
    document: Document = {"metadata": None, "graph": graph.to_dict()}
    _try(problems, check_external_data, path)
    metadata = _try(problems, read_metadata, path)
    if metadata is None:
        return document
    inside = [(p.name, p.dtype, p.shape[1:]) for p in graph.inputs]
    if inside != [("frames", "uint8", (*metadata.input_size_hw, 3))]:
        problems.append("the graph's input is not the one that the metadata tells of")
    if metadata.head not in [p.name for p in graph.outputs]:
        problems.append(f"the graph has no output `{metadata.head}`")
    stored: Counter[str] = sum(graph.layers.values(), Counter())
    if stored and _STORED.get(metadata.precision) not in stored:
        problems.append(
            f"the metadata says {metadata.precision}, the graph's weights are {', '.join(stored)}"
        )
    return {
        **_model(path, metadata, problems),
        **{k: v for k, v in document.items() if k != "metadata"},
    }


def _engine(path: Path, problems: list[str]) -> Document:
    # Refused unless it is the very file that its sidecar speaks of.
    sidecar = read_engine(path)
    about = {
        k: v for k, v in json.loads(sidecar.to_json()).items() if k not in ("metadata", "engine")
    }
    onnx = path.with_name(sidecar.onnx_name)
    about["onnx"]["state"] = _state(onnx, sidecar.onnx_sha256)
    return {**_model(path, sidecar.metadata, problems), "engine": about}


def _model(path: Path, metadata: ModelMetadata, problems: list[str]) -> Document:
    """Return the contract, and how the files that it names stand beside it."""
    pack = reference_path(path)
    state = _state(pack, metadata.hashes.get("reference"))
    if state == "another":
        problems.append(
            f"{pack.name} beside it is not the reference outputs that it was exported with"
        )
    document = {
        "metadata": json.loads(metadata.to_json()),
        "reference": {"path": str(pack), "state": state},
    }
    weights = [w for stage in STAGES if (w := path.parent.parent / stage / WEIGHTS).is_file()]
    # Only in a run's own folder are there weights to be compared with.
    if path.parent.name == "export" and weights:
        equal = [w for w in weights if sha256(w) == metadata.hashes.get("weights")]
        document["weights"] = {
            "path": str(equal[0]) if equal else None,
            "state": "equal" if equal else "another",
        }
    return document


def _state(path: Path, known: str | None) -> str:
    """Say how a file stands to the hash that is known of it: equal, another, missing or unknown."""
    if not path.is_file():
        return "missing"
    if known is None:
        return "unknown"
    return "equal" if sha256(path) == known else "another"


def _reference(path: Path, problems: list[str]) -> Document:
    reference, digest = ReferenceOutputs.load(path), sha256(path)
    models = []
    for model in sorted(p for p in path.parent.glob("[!.]*") if p.suffix in MODEL_SUFFIXES):
        if reference_path(model) == path and (metadata := _try([], metadata_of, model)) is not None:
            state = "equal" if metadata.hashes.get("reference") == digest else "another"
            models.append(
                {"path": str(model), "state": state, "classes": metadata.label_space.num_classes}
            )
            if state == "another":
                problems.append(f"{model.name} was exported with another pack")
    count, classes, height, width = reference.logits.shape
    return {
        "frames": count,
        "size": {"height": reference.frames.shape[1], "width": reference.frames.shape[2]},
        "logits": {"classes": classes, "height": height, "width": width},
        "classes_seen": reference.classes(),
        "models": models,
    }


def _weights(path: Path, problems: list[str]) -> Document:
    header = _safetensors_header(path)
    tensors = {name: t for name, t in header.items() if name != "__metadata__"}
    stored: Counter[str] = Counter()
    for tensor in tensors.values():
        count = 1
        for size in tensor["shape"]:
            count *= size
        stored[tensor["dtype"]] += count
    try:
        said = json.loads(header["__metadata__"][PROPERTY])
        model, provenance = said["model"], said["provenance"]
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"{path}: not weights written by `fada train`; they say nothing of their network"
        ) from None
    return {
        "model": model,
        "tensors": len(tensors),
        "values": dict(stored.most_common()),
        "provenance": provenance,
    }


def _safetensors_header(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        text = handle.read(length) if length <= _LONGEST else b""
    try:
        header: dict[str, Any] = json.loads(text)
        end = max(
            (t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(f"{path}: not a safetensors file, or one cut short") from None
    if 8 + length + end != path.stat().st_size:
        raise ModelError(
            f"{path}: is {path.stat().st_size} bytes long and should be {8 + length + end}; copy it again"
        )
    return header


def _stage(path: Path, problems: list[str]) -> Document:
    weights = path / WEIGHTS
    document = {"stage": path.name, "weights": str(weights), **_weights(weights, problems)}
    document["checkpoints"] = [
        p.stem for p in sorted((path / CHECKPOINTS).glob("[!.]*.safetensors"))
    ]
    document["scores"] = _json(path / "scores.json", problems)
    return document


def _run(path: Path, problems: list[str]) -> Document:
    config = _json(path / CONFIG, problems) or {}
    stages: dict[str, Any] = {}
    for name in STAGES:
        if (path / name / WEIGHTS).is_file():
            stage = _try(problems, _stage, path / name, problems)
            stages[name] = stage and {
                key: stage[key] for key in ("weights", "model", "checkpoints", "scores")
            }
    exports = []
    for model in sorted((path / "export").glob("[!.]*")):
        if model.suffix in MODEL_SUFFIXES:
            metadata = _try(problems, metadata_of, model)
            precision = None if metadata is None else metadata.precision
            exports.append(
                {"path": str(model), "precision": precision, "bytes": model.stat().st_size}
            )
    planned = [str(name) for name in config.get("stages", ())]
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
        problems.append(f"{path}: cannot be read ({error})")
        return None


def _try(problems: list[str], read: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `read` gives, None where it refuses, which is then a problem."""
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
