"""Backends that run an exported model: one interface and a dict of constructors."""

from __future__ import annotations

from collections.abc import Callable

from fada_deploy.runtime.backends.base import Backend, Prediction
from fada_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fada_deploy.runtime.backends.openvino import OpenVinoBackend
from fada_deploy.runtime.backends.tensorrt import TensorRtBackend

__all__ = ["BACKENDS", "ONNX_BACKENDS", "Backend", "Prediction"]

# Name → constructor(path, device=…), in the order in which `auto` prefers them.
BACKENDS: dict[str, Callable[..., Backend]] = {
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
    "tensorrt": TensorRtBackend,
}
# The backends that run ONNX files; the names are also those of the packages.
ONNX_BACKENDS = ("onnxruntime", "openvino")
