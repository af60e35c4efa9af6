"""The segmentation network that is trained and exported: uint8 frames in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.weights_document import ModelSpecDocument
from fada_deploy.training.models import pidnet, vgg
from fada_deploy.training.models.blocks import NORMS, Norm
from fada_deploy.training.models.ddrnet import ddrnet23_slim
from fada_deploy.training.models.deeplab import ASPPClassifier, PointClassifier, SegmentHead
from fada_deploy.training.models.efficientnet import efficientnet_lite0
from fada_deploy.training.models.resnet import resnet18, resnet50, resnet101
from fada_deploy.training.models.segformer import segformer_b0


@dataclass(frozen=True)
class Architecture:
    """A backbone and the segmentation head it is published with.

    Attributes:
        backbone: Builds the backbone from a constructor of norm layers.
        classifier: Builds the head from (input channels, number of classes, norm constructor).
        multiple: Input height and width must be multiples of this.
        not_pretrained: Prefixes of the parameters that the ImageNet weights do not contain.
        renames: Prefixes of parameter names in ImageNet weights → prefixes in this package.
        init_norm: Input normalization of the ImageNet weights, a key of
            `input_normalizations.INPUT_NORMALIZATIONS`; None if files of several kinds exist.
        has_norms: Whether the backbone has normalization layers.
        auxiliary: Name of the layer of the backbone whose output an auxiliary classifier reads, in
            methods with two levels; "" if there is none.
    """

    backbone: Callable[[Norm], Any]
    classifier: Callable[[int, int, Norm], nn.Module]
    multiple: int = 8
    not_pretrained: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    init_norm: str | None = "torchvision"
    has_norms: bool = True
    auxiliary: str = ""

    @property
    def fully_pretrained(self) -> bool:
        """Whether ImageNet weights cover the entire backbone, so that its norms can be frozen."""
        return not self.not_pretrained


BACKBONES = {
    "resnet101": Architecture(resnet101, ASPPClassifier, auxiliary="layer3"),
    "resnet50": Architecture(resnet50, ASPPClassifier, auxiliary="layer3"),
    "resnet18": Architecture(resnet18, ASPPClassifier, auxiliary="layer3"),
    "vgg16": Architecture(
        vgg.vgg16, ASPPClassifier,
        not_pretrained=vgg.NOT_PRETRAINED, renames=vgg.RENAMES, init_norm=None, has_norms=False,
    ),
    "ddrnet23-slim": Architecture(
        ddrnet23_slim, SegmentHead, not_pretrained=("spp.",), auxiliary="layer3_"
    ),
    "pidnet-s": Architecture(
        pidnet.pidnet_s, partial(SegmentHead, hidden=128), not_pretrained=pidnet.NOT_PRETRAINED
    ),
    "efficientnet-lite0": Architecture(
        efficientnet_lite0, SegmentHead, not_pretrained=("pyramid.",),
        init_norm="efficientnet-lite", auxiliary="_blocks.10",
    ),
    "segformer-b0": Architecture(segformer_b0, PointClassifier, not_pretrained=("decode_head.",)),
}  # fmt: skip

# Channel statistics of ImageNet as in torchvision, RGB in 0…1. Most pretrained weights expect them.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build the network for a weights file.

    Attributes:
        backbone: A key of `BACKBONES`.
        space: Label space; its classes are the output channels.
        size_hw: Input height and width in pixels.
        norm: Normalization layers, a key of `blocks.NORMS`.
        mean: Mean of the input channels, RGB in 0…1.
        std: Standard deviation of the input channels, RGB in 0…1.
    """

    backbone: str
    space: LabelSpace
    size_hw: tuple[int, int]
    norm: str = "frozen"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable description, in the form of a `ModelSpecDocument`."""
        return {
            "backbone": self.backbone,
            "label_space": self.space.to_dict(),
            "size_hw": list(self.size_hw),
            "norm": self.norm,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_document(cls, document: ModelSpecDocument) -> ModelSpec:
        """Return the description that a weights file contains."""
        space = document.label_space.to_label_space()
        return cls(
            document.backbone, space, document.size_hw, document.norm, document.mean, document.std
        )


class Normalize(nn.Module):
    """Normalize uint8 RGB frames: (B, H, W, 3) to (B, 3, H, W) float, (x / 255 − mean) / std."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # One multiplication and one addition per value.
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std), persistent=False)

    def forward(self, frames_bhwc: Tensor) -> Tensor:
        """Return the normalized frames."""
        buffers = cast("dict[str, Tensor]", self._buffers)
        # Cast first: TensorRT cannot permute uint8.
        x = frames_bhwc.float().permute(0, 3, 1, 2)
        return x * buffers["scale"][:, None, None] + buffers["shift"][:, None, None]


class SegmentationModel(nn.Module):
    """A segmentation network: input normalization, feature extractor F and classifier G.

    Maps uint8 RGB frames (B, H, W, 3) to logits (B, K, h, w) at the resolution of the features. To
    get labels, upsample the logits bilinearly with `align_corners`, as in training. Raise
    `UsageError` for an unknown backbone or an unsupported input size.
    """

    align_corners = True

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        check_size(spec.backbone, spec.size_hw)
        architecture, norm = find_backbone(spec.backbone), NORMS[spec.norm]
        self.spec = spec
        self.normalize = Normalize(spec.mean, spec.std)
        backbone = architecture.backbone(norm)
        self.channels: int = backbone.out_channels
        # In the released checkpoints, parameters of the extractor are named backbone.*
        self.feature_extractor = nn.ModuleDict({"backbone": backbone})
        self.classifier = architecture.classifier(self.channels, spec.space.num_classes, norm)

    def features(self, frames_bhwc: Tensor) -> Tensor:
        """Return the features F(x), (B, C, h, w)."""
        features: Tensor = self.feature_extractor["backbone"](self.normalize(frames_bhwc))
        return features

    def forward(self, frames_bhwc: Tensor) -> Tensor:
        """Return the logits G(F(x)), (B, K, h, w)."""
        logits: Tensor = self.classifier(self.features(frames_bhwc))
        return logits


def find_backbone(name: str) -> Architecture:
    """Return the architecture of a backbone name; raise `UsageError` if it is unknown."""
    if name not in BACKBONES:
        raise UsageError(f"unknown backbone {name!r}; choose from {', '.join(BACKBONES)}")
    return BACKBONES[name]


def check_size(backbone: str, size_hw: tuple[int, int]) -> None:
    """Raise `UsageError` if the network does not support an input size."""
    multiple = find_backbone(backbone).multiple
    height, width = size_hw
    if height % multiple or width % multiple or min(size_hw) < 8 * multiple:
        nearest = [max(8 * multiple, round(v / multiple) * multiple) for v in size_hw]
        raise UsageError(
            f"{backbone} does not support the input size {width}x{height}; width and height must "
            f"be multiples of {multiple} and at least {8 * multiple}; the nearest size is "
            f"{nearest[1]}x{nearest[0]}"
        )
