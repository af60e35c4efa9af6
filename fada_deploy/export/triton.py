"""Write a model repository for NVIDIA's Triton Inference Server.

Triton cannot run our upsampling, so only files with head `labels` can be served.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.inspection.onnx_graph import read_graph
from fada_deploy.runtime.backends.engine_file import ENGINE_SUFFIXES, read_engine
from fada_deploy.runtime.backends.onnx_file import read_model

# Name of the model in the repository.
NAME = "segmenter"
# Largest batch that Triton forms of several requests.
MAX_BATCH = 8
# How long Triton may delay a request to form a batch; a video frame lasts 33 ms.
QUEUE_DELAY_US = 2000


@dataclass(frozen=True)
class _ServedModel:
    """A file as Triton sees it.

    `file` is its name in the repository. `fixed_batch` is None for a dynamic batch size, which is
    then limited by `max_batch` (None: unlimited).
    """

    metadata: ModelMetadata
    backend: str
    file: str
    fixed_batch: int | None
    max_batch: int | None


def write_repository(model: Path, folder: Path) -> Path:
    """Write the model repository `folder`, which must not exist, and return its path.

    `model` is an ONNX file or a TensorRT engine with head `labels`. Triton runs an engine on a GPU,
    and an ONNX file on a GPU if it has one. Further settings, such as the number of instances, can
    be added to the file `config.pbtxt`.

    Raise `UsageError` if the folder exists, `ModelError` if Triton cannot serve the file; nothing
    is written then.
    """
    served = _read_model(model)
    if folder.exists():
        raise UsageError(f"{folder} already exists; choose another folder, or remove it")
    config = _config(served)
    label_names = "\n".join(served.metadata.label_space.names) + "\n"
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (draft / NAME / "1").mkdir(parents=True)
        shutil.copyfile(model, draft / NAME / "1" / served.file)
        (draft / NAME / "config.pbtxt").write_text(config, "utf-8")
        (draft / NAME / "labels.txt").write_text(label_names, "utf-8")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _read_model(model: Path) -> _ServedModel:
    """Read the metadata of a file; raise `ModelError` if Triton cannot serve it."""
    if model.suffix in ENGINE_SUFFIXES:
        served = _read_engine(model)
    elif model.suffix == ".onnx":
        served = _read_onnx(model)
    else:
        raise UsageError(f"{model}: Triton serves .onnx and .engine files; make one: `fada export`")
    if served.metadata.head != "labels":
        raise ModelError(
            f"{model} has head `{served.metadata.head}`, which Triton cannot upsample; export it "
            "with --head labels"
        )
    return served


def _read_engine(model: Path) -> _ServedModel:
    sidecar = read_engine(model)
    if sidecar.flavor != "tensorrt":
        raise ModelError(
            f"{model} was built by {sidecar.flavor}, but Triton runs TensorRT engines only; build "
            "one with `fada export MODEL.onnx --trt --trt-flavor tensorrt`, or serve the ONNX file"
        )
    metadata, profile = sidecar.metadata, sidecar.profile
    if profile and profile[0] > 1:
        raise ModelError(
            f"{model} needs at least {profile[0]} frames per batch, but Triton also sends single "
            f"frames; build it with --trt-batch 1,{profile[1]},{profile[2]}"
        )
    return _ServedModel(
        metadata, "tensorrt", "model.plan", metadata.batch, profile[2] if profile else None
    )


def _read_onnx(model: Path) -> _ServedModel:
    metadata = read_model(model)
    if read_graph(model).external:
        raise ModelError(
            f"{model} has weights in other files; export it again with `fada export`, which "
            "writes a single file"
        )
    if metadata.precision == "bf16":
        raise ModelError(
            f"{model} is bf16, which ONNX Runtime cannot run; build an engine with `fada export "
            f"{model.name} --trt`, or serve the fp32 file"
        )
    return _ServedModel(metadata, "onnxruntime", "model.onnx", metadata.batch, None)


def _config(served: _ServedModel) -> str:
    """Return the content of config.pbtxt: inference.ModelConfig in protobuf's text format."""
    metadata, batch = served.metadata, served.fixed_batch
    max_batch = min(MAX_BATCH, served.max_batch or MAX_BATCH)
    kind = "KIND_GPU" if served.backend == "tensorrt" else "KIND_AUTO"
    size = list(metadata.input_size_hw)
    # With batching, Triton adds a dynamic first dimension itself. A file with a fixed batch size is
    # therefore served without batching (max_batch_size 0), and its dims include the batch size.
    batch_dim = [] if batch is None else [batch]
    parts = [
        f"name: {_quoted(NAME)}",
        f"backend: {_quoted(served.backend)}",
        f"default_model_filename: {_quoted(served.file)}",
        f"max_batch_size: {max_batch if batch is None else 0}",
        _tensor("input", "frames", [*batch_dim, *size, 3]),
        _tensor("output", "labels", [*batch_dim, *size]),
        f"instance_group [\n  {{\n    count: 1\n    kind: {kind}\n  }}\n]",
    ]
    if batch is None and max_batch > 1:
        parts.append(f"dynamic_batching {{\n  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}")
    # There is no `optimization` block: ONNX Runtime's TensorRT provider would build an engine that
    # was never compared with the network.
    document = json.dumps(json.loads(metadata.to_json()), separators=(",", ":"), sort_keys=True)
    parts += [
        _parameter("label_names", ",".join(metadata.label_space.names)),
        _parameter("fada", document),
    ]
    return "\n".join(parts) + "\n"


def _tensor(side: str, name: str, dims: Sequence[int]) -> str:
    fields = f"name: {_quoted(name)}\n    data_type: TYPE_UINT8\n    dims: {list(dims)}"
    return f"{side} [\n  {{\n    {fields}\n  }}\n]"


def _parameter(key: str, value: str) -> str:
    entry = f"key: {_quoted(key)}\n  value {{\n    string_value: {_quoted(value)}\n  }}"
    return f"parameters {{\n  {entry}\n}}"


def _quoted(text: str) -> str:
    """Return a string literal of protobuf's text format; non-ASCII bytes are escaped in octal."""
    escapes = {ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n"}
    characters = (
        escapes.get(byte, chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}")
        for byte in text.encode()
    )
    return f'"{"".join(characters)}"'
