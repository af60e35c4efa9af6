"""A model repository for NVIDIA's Triton Inference Server: `fada export --head labels --triton DIR`.

Triton knows no upsampling of ours, so it serves files with head `labels` alone.
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

# A frame waits this long for others to share a batch with: little beside the 33 ms of a camera.
QUEUE_DELAY_US = 2000


@dataclass(frozen=True)
class _Served:
    """What Triton is told: the backend, its name for the file, and the batch that the file takes.

    `fixed_batch` is the one that the file insists on; else `max_batch` is the largest, None when any.
    """

    metadata: ModelMetadata
    backend: str
    file: str
    fixed_batch: int | None
    max_batch: int | None


def write_repository(
    model: Path,
    folder: Path,
    *,
    name: str = "segmenter",
    max_batch: int = 8,
    instances: int = 1,
    gpu: bool | None = None,
    preferred: Sequence[int] = (),
) -> Path:
    """Write the model repository `folder` with one model `name`, and return `folder`.

    `model` is an .onnx or a TensorRT .engine with head `labels`. Requests are batched up to `max_batch`, by
    preference to sizes in `preferred`, unless the file's batch is fixed. `gpu` None leaves it to Triton: a GPU
    where there is one; engines always take one. Raise `UsageError` for what cannot be asked, `ModelError` for a
    file that Triton cannot serve; then nothing is written.
    """
    served = _served(model)
    if "/" in name or name in ("", ".", ".."):
        raise UsageError(f"{name!r} is no name of a model; it becomes a folder's name")
    if max_batch < 1 or instances < 1:
        raise UsageError(f"max_batch {max_batch} and instances {instances} must each be 1 or more")
    if served.backend == "tensorrt" and gpu is False:
        raise UsageError(f"{model}: an engine runs on a GPU alone; serve the .onnx to do without")
    if folder.exists():
        raise UsageError(f"{folder}: is there already; name another folder, or remove it")
    largest = max_batch if served.max_batch is None else min(max_batch, served.max_batch)
    if bad := [size for size in preferred if not 1 <= size <= largest]:
        raise UsageError(f"preferred batch {bad[0]} is not within 1 to {largest}")
    kind = (
        "KIND_GPU"
        if gpu or served.backend == "tensorrt"
        else "KIND_AUTO"
        if gpu is None
        else "KIND_CPU"
    )
    text = _config(served, name, largest, f"count: {instances}\n    kind: {kind}", preferred)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        (draft / name / "1").mkdir(parents=True)
        shutil.copyfile(model, draft / name / "1" / served.file)
        (draft / name / "config.pbtxt").write_text(text, "utf-8")
        (draft / name / "labels.txt").write_text(
            "\n".join(served.metadata.label_space.names) + "\n", "utf-8"
        )
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _served(model: Path) -> _Served:
    """Read what is to be served; raise `ModelError` with the remedy for what Triton cannot."""
    if model.suffix in ENGINE_SUFFIXES:
        sidecar = read_engine(model)
        if sidecar.flavor != "tensorrt":
            raise ModelError(
                f"{model}: is an engine of {sidecar.flavor}, and Triton runs those of TensorRT; build one: "
                "`fada export MODEL.onnx --trt --trt-flavor tensorrt`, or serve the .onnx"
            )
        largest = sidecar.profile[2] if sidecar.profile else None
        served = _Served(
            sidecar.metadata, "tensorrt", "model.plan", sidecar.metadata.batch, largest
        )
        if sidecar.profile and sidecar.profile[0] > 1:
            raise ModelError(
                f"{model}: takes no fewer than {sidecar.profile[0]} frames at once, and Triton sends single ones "
                f"too; build it with --trt-batch 1,{sidecar.profile[1]},{largest}"
            )
    elif model.suffix == ".onnx":
        metadata = read_model(model)
        if read_graph(model).external:
            raise ModelError(
                f"{model}: keeps weights in other files; export it again, which keeps them inside"
            )
        if metadata.precision == "bf16":
            raise ModelError(
                f"{model}: is bf16, which ONNX Runtime has no kernels for; build an engine of it, "
                f"`fada export {model.name} --trt`, or serve the fp32 file"
            )
        served = _Served(metadata, "onnxruntime", "model.onnx", metadata.batch, None)
    else:
        raise UsageError(f"{model}: Triton serves .onnx and .engine; `fada export` makes them")
    if served.metadata.head != "labels":
        raise ModelError(
            f"{model}: has head `{served.metadata.head}`, which needs this package's upsampling after it; for "
            "Triton export it with --head labels"
        )
    return served


def _config(
    served: _Served, name: str, max_batch: int, group: str, preferred: Sequence[int]
) -> str:
    """Return config.pbtxt: inference.ModelConfig in protobuf's text format."""
    metadata, batch = served.metadata, served.fixed_batch
    size = list(metadata.input_size_hw)
    # Triton's own batching wants a free first dimension, which it adds by itself. A file with a fixed batch is
    # therefore served unbatched, max_batch_size 0, with its whole shape written out, the batch in it too.
    first = [] if batch is None else [batch]
    names = ",".join(metadata.label_space.names)
    parts = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(served.backend)}",
        f"default_model_filename: {_quoted(served.file)}",
        f"max_batch_size: {max_batch if batch is None else 0}",
        _tensor("input", "frames", [*first, *size, 3]),
        _tensor("output", "labels", [*first, *size]),
        f"instance_group [\n  {{\n    {group}\n  }}\n]",
    ]
    if batch is None and max_batch > 1:
        sizes = f"  preferred_batch_size: {sorted(set(preferred))}\n" if preferred else ""
        parts.append(
            f"dynamic_batching {{\n{sizes}  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}"
        )
    # No optimization block: TensorRT inside ONNX Runtime would build an engine of its own, proven by nobody.
    contract = json.dumps(json.loads(metadata.to_json()), separators=(",", ":"), sort_keys=True)
    parts += [_parameter("label_names", names), _parameter("fada", contract)]
    return "\n".join(parts) + "\n"


def _tensor(side: str, name: str, dims: Sequence[int]) -> str:
    fields = f"name: {_quoted(name)}\n    data_type: TYPE_UINT8\n    dims: {list(dims)}"
    return f"{side} [\n  {{\n    {fields}\n  }}\n]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{\n  key: {_quoted(key)}\n  value {{\n    string_value: {_quoted(value)}\n  }}\n}}"


def _quoted(text: str) -> str:
    """Return a string of protobuf's text format, its bytes beyond ASCII escaped in octal."""
    plain = {ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n"}
    return (
        '"'
        + "".join(plain.get(b, chr(b) if 32 <= b < 127 else f"\\{b:03o}") for b in text.encode())
        + '"'
    )
