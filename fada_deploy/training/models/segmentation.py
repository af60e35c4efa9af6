"""The network that is trained, exported and compared with: frames in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.training.models import pidnet, vgg
from fada_deploy.training.models.blocks import NORMS, Norm
from fada_deploy.training.models.ddrnet import ddrnet23_slim
from fada_deploy.training.models.deeplab import ASPPClassifier, PointClassifier, SegmentHead
from fada_deploy.training.models.efficientnet import efficientnet_lite0
from fada_deploy.training.models.resnet import resnet18, resnet50, resnet101
from fada_deploy.training.models.segformer import segformer_b0


@dataclass(frozen=True)
class Architecture:
    """A backbone with the classifier it is published with.

    `multiple`: what height and width must be multiples of. `not_pretrained`: beginnings of the names that its
    ImageNet weights leave out; `renames`: beginnings they have → ours; `init_norm`: how their input is
    normalized, a name in `init.INPUT_NORMALIZATIONS`, or None where the names do not tell.
    """

    backbone: Callable[[Norm], Any]
    classifier: Callable[[int, int, Norm], nn.Module]
    multiple: int = 8
    not_pretrained: tuple[str, ...] = ()
    renames: Mapping[str, str] = field(default_factory=dict)
    init_norm: str | None = "torchvision"
    has_norms: bool = True

    @property
    def fully_pretrained(self) -> bool:
        """Whether ImageNet weights fill all of it, so that its normalization can be frozen."""
        return not self.not_pretrained


BACKBONES = {
    "resnet101": Architecture(resnet101, ASPPClassifier),
    "resnet50": Architecture(resnet50, ASPPClassifier),
    "resnet18": Architecture(resnet18, ASPPClassifier),
    "vgg16": Architecture(
        vgg.vgg16, ASPPClassifier,
        not_pretrained=vgg.NOT_PRETRAINED, renames=vgg.RENAMES, init_norm=None, has_norms=False,
    ),
    "ddrnet23-slim": Architecture(ddrnet23_slim, SegmentHead, not_pretrained=("spp.",)),
    "pidnet-s": Architecture(
        pidnet.pidnet_s, partial(SegmentHead, hidden=128), not_pretrained=pidnet.NOT_PRETRAINED
    ),
    "efficientnet-lite0": Architecture(
        efficientnet_lite0, SegmentHead, not_pretrained=("pyramid.",), init_norm="efficientnet-lite"
    ),
    "segformer-b0": Architecture(segformer_b0, PointClassifier, not_pretrained=("decode_head.",)),
}  # fmt: skip

# torchvision's ImageNet statistics, RGB in 0…1; the normalization of most weights that a backbone starts from.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a network into which its weights fit."""

    backbone: str
    space: LabelSpace
    size_hw: tuple[int, int]
    norm: str = "frozen"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description; `from_dict` reads it back."""
        return {
            "backbone": self.backbone,
            "label_space": self.space.to_dict(),
            "size_hw": list(self.size_hw),
            "norm": self.norm,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_dict` wrote; raise `KeyError` or `ValueError` on anything else."""
        height, width = (int(v) for v in data["size_hw"])
        mean, std = (
            cast("tuple[float, float, float]", tuple(map(float, data[k]))) for k in ("mean", "std")
        )
        space = LabelSpace.from_dict(data["label_space"])
        return cls(str(data["backbone"]), space, (height, width), str(data["norm"]), mean, std)


class Normalize(nn.Module):
    """uint8 RGB frames (B, H, W, 3) → (B, 3, H, W) float, with the statistics the weights were born with."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # One multiplication and one addition per value: (x / 255 − mean) / std.
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)), persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std), persistent=False)

    def forward(self, frames_bhwc: Tensor) -> Tensor:
        """Normalize; the cast comes before the permutation, which TensorRT cannot do on uint8."""
        buffers = cast("dict[str, Tensor]", self._buffers)
        x = frames_bhwc.float().permute(0, 3, 1, 2)
        return x * buffers["scale"][:, None, None] + buffers["shift"][:, None, None]


class SegmentationModel(nn.Module):
    """Normalization, feature extractor F and classifier G.

    `forward`: uint8 RGB (B, H, W, 3) → logits (B, K, h, w) at the network's own resolution, to be
    upsampled with align_corners, as it was trained.
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
        # The released checkpoints name the extractor's parameters backbone.*
        self.feature_extractor = nn.ModuleDict({"backbone": backbone})
        self.classifier = architecture.classifier(self.channels, spec.space.num_classes, norm)

    def features(self, frames_bhwc: Tensor) -> Tensor:
        """Return F's features (B, C, h, w)."""
        features: Tensor = self.feature_extractor["backbone"](self.normalize(frames_bhwc))
        return features

    def forward(self, frames_bhwc: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.features(frames_bhwc))
        return logits


def find_backbone(name: str) -> Architecture:
    """Return an architecture by name; raise `UsageError` listing the names."""
    if name not in BACKBONES:
        raise UsageError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    return BACKBONES[name]


def check_size(backbone: str, size_hw: tuple[int, int]) -> None:
    """Raise `UsageError` for an input size the network cannot take."""
    multiple = find_backbone(backbone).multiple
    height, width = size_hw
    if height % multiple or width % multiple or min(size_hw) < 8 * multiple:
        near = [max(8 * multiple, round(v / multiple) * multiple) for v in size_hw]
        raise UsageError(
            f"{backbone} cannot take {width}x{height}: width and height must be multiples of {multiple} and at "
            f"least {8 * multiple}; the nearest is {near[1]}x{near[0]}"
        )
