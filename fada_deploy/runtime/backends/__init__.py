"""Backends that run an exported model: one protocol and a dict of constructors."""

from __future__ import annotations

from collections.abc import Callable

from fada_deploy.runtime.backends.base import Backend, Prediction
from fada_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fada_deploy.runtime.backends.openvino import OpenVinoBackend
from fada_deploy.runtime.backends.tensorrt import TensorRtBackend

__all__ = ["BACKENDS", "ONNX_BACKENDS", "Backend", "Prediction"]

# Name of the backend → constructor(path, device=…). The order is what `auto` prefers.
BACKENDS: dict[str, Callable[..., Backend]] = {
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
    "tensorrt": TensorRtBackend,
}
# Those that run an ONNX file; the name is also the package that each needs.
ONNX_BACKENDS = ("onnxruntime", "openvino")
