"""A trained network → one ONNX file that says all about itself.

The only module of the export, with `exporter`, that imports torch.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fada_deploy.common.metadata import ModelMetadata
from fada_deploy.export.onnx_metadata import save_onnx
from fada_deploy.training.interpolation import upsample
from fada_deploy.training.models.segmentation import SegmentationModel

OPSET = 18
INPUT = "frames"


class LabelsHead(nn.Module):
    """The network with upsampling and arg max in the graph, for callers without our runtime."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, H, W, 3) uint8 RGB to labels (B, H, W) uint8."""
        logits = self.model(frames)
        winner = upsample(logits, (frames.shape[1], frames.shape[2])).argmax(1)
        # Integers do not cast to uint8 in every TensorRT; floats do.
        return winner.float().to(torch.uint8)


class LogitsHead(nn.Module):
    """The network as it is, with the published name of its input."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames (B, H, W, 3) uint8 RGB to logits (B, K, h, w)."""
        logits: Tensor = self.model(frames)
        return logits


HEADS: dict[str, type[LogitsHead | LabelsHead]] = {"logits": LogitsHead, "labels": LabelsHead}


def write_onnx(model: SegmentationModel, metadata: ModelMetadata, path: Path) -> None:
    """Export `model` (on the CPU) as `metadata` describes it and check the file; `path` is overwritten."""
    height, width = metadata.input_size_hw
    # An example of two images, since a batch of one would be taken for a constant.
    frames = torch.zeros(metadata.batch or 2, height, width, 3, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch", min=1)} if metadata.batch is None else None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns about its own deprecations.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            HEADS[metadata.head](model).eval(),
            (frames,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[metadata.head],
            dynamic_shapes=(batch,),
            verbose=False,
        )
    assert program is not None, "torch.onnx.export(dynamo=True) returns the program"
    document = program.model_proto
    save_onnx(document, metadata, path)
