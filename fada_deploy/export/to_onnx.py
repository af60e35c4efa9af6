"""Convert a trained network to an ONNX file. Needs torch, as does `exporter`."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.training.interpolation import upsample
from fada_deploy.training.models.blocks import FrozenBatchNorm2d
from fada_deploy.training.models.segmentation import SegmentationModel

OPSET = 18
INPUT = "frames"


class LabelsHead(nn.Module):
    """The network followed by upsampling and argmax, for runtimes other than ours."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, H, W, 3) uint8 RGB to labels (B, H, W) uint8."""
        logits = self.model(frames)
        labels = upsample(logits, (frames.shape[1], frames.shape[2])).argmax(1)
        # Not every TensorRT version can cast integers to uint8; all can cast floats.
        return labels.float().to(torch.uint8)


class LogitsHead(nn.Module):
    """The network alone."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, H, W, 3) uint8 RGB to logits (B, K, h, w)."""
        logits: Tensor = self.model(frames)
        return logits


class Affine(nn.Module):
    """A scale and a shift per channel: a frozen batch normalization with its factors computed."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale[:, None, None])
        self.register_buffer("shift", shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift features (B, C, H, W)."""
        return x * self.scale + self.shift


HEADS: dict[str, type[LogitsHead | LabelsHead]] = {"logits": LogitsHead, "labels": LabelsHead}


def write_onnx(model: SegmentationModel, metadata: ModelMetadata, path: Path) -> None:
    """Write `model`, which must be on the CPU, as the ONNX file that `metadata` describes.

    An existing file is replaced.
    """
    height, width = metadata.input_size_hw
    # torch.export treats a dimension of size 1 in the example as a constant.
    frames = torch.zeros(metadata.batch or 2, height, width, 3, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch", min=1)} if metadata.batch is None else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns about deprecations in its own code.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            HEADS[metadata.head](_with_computed_norms(model)).eval(),
            (frames,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[metadata.head],
            dynamic_shapes=(batch,),
            verbose=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns a program"
    save_onnx(program.model_proto, metadata, path)


def _with_computed_norms(model: SegmentationModel) -> SegmentationModel:
    """Return a copy in which the frozen norms are scales and shifts.

    The exporter folds the arithmetic of a frozen norm into the same constants, but tracing and
    decomposing its fourteen operations takes half of the time of an export.
    """
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, FrozenBatchNorm2d):
                setattr(parent, name, Affine(*child.affine()))
    return model
