"""Inference on a GPU: the kernels and ONNX Runtime's CUDA provider against the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fada_deploy.common.runs import BUILTIN_FILE
from fada_deploy.runtime.backends.cuda_labels import DevicePrediction
from fada_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from fada_deploy.runtime.kernels.upsample import labels_from_logits


@pytest.mark.parametrize("align_corners", [True, False])
def test_labels_of_the_kernels_are_those_of_the_cpu(
    device: torch.device, align_corners: bool
) -> None:
    cupy = pytest.importorskip("cupy")
    from fada_deploy.runtime.backends.cuda_labels import CudaLabeler
    from fada_deploy.runtime.backends.cuda_stream import CudaStream

    stream = CudaStream(cupy, device.index)
    labeler = CudaLabeler(stream)
    rng = np.random.default_rng(0)
    for shape, size_hw in (((2, 19, 32, 64), (256, 512)), ((1, 11, 28, 48), (480, 853))):
        logits = rng.normal(size=shape).astype(np.float32)
        with stream.entered():
            on_device = cupy.asarray(logits)
        got = labeler.labels(on_device, size_hw, align_corners=align_corners)
        assert got is not None
        for labels, frame_logits in zip(got, logits, strict=True):
            want = labels_from_logits(frame_logits, size_hw, align_corners=align_corners)
            np.testing.assert_array_equal(labels, want)


def test_cuda_provider_has_the_labels_of_the_cpu(device: torch.device, tmp_path: Path) -> None:
    """The built-in model; its int8 sums are rounded differently, so a few labels may differ."""
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider (pip install onnxruntime-gpu)")
    frames = np.random.default_rng(0).integers(0, 256, (2, 288, 480, 3), np.uint8)
    labels = []
    for name in ("cpu", f"cuda:{device.index}"):
        backend = OnnxRuntimeBackend(BUILTIN_FILE, device=name)
        assert backend.device == name
        labels.append(backend.submit(frames).labels((480, 640)))
        backend.close()
    assert (labels[0] == labels[1]).mean() > 0.99


def test_cuda_provider_computes_label_maps_on_the_gpu(device: torch.device) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("cupy")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider (pip install onnxruntime-gpu)")
    backend = OnnxRuntimeBackend(BUILTIN_FILE, device=f"cuda:{device.index}")
    rng = np.random.default_rng(0)
    for count in (2, 1, 3):
        prediction = backend.submit(rng.integers(0, 256, (count, 288, 480, 3), np.uint8))
        assert isinstance(prediction, DevicePrediction)
        labels = prediction.labels((480, 640))
        for logits, got in zip(prediction.logits(), labels, strict=True):
            want = labels_from_logits(logits, (480, 640), align_corners=True)
            np.testing.assert_array_equal(got, want)
    backend.close()
