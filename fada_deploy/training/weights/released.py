"""Checkpoints of the released FADA code → our weights, so that published networks can be deployed.

`fada import CHECKPOINT.pth`. A file is a dictionary with `feature_extractor` and `classifier`, whose
keys may begin with `module.`; a discriminator, optimizers and an iteration may lie beside them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_16, CITYSCAPES_19, LabelSpace
from fada_deploy.training.config import STAGES
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.weights.checkpoints import read_checkpoint
from fada_deploy.training.weights.pretrained import INPUT_NORMALIZATIONS, swap_input_channels

SPACES = {space.num_classes: space for space in (CITYSCAPES_19, CITYSCAPES_16, CITYSCAPES_13)}
# What the authors tested each stage at, (height, width).
TESTED_AT = {"source": (512, 1024), "adversarial": (512, 1024), "distill": (1024, 2048)}
# ResNets differ in the blocks of their third layer.
_RESNETS = {6: "resnet50", 23: "resnet101"}


@dataclass(frozen=True)
class Released:
    """A network read from a released checkpoint, the stage it comes from, and how that was told.

    `init_norm` names the normalization of its input, `iteration` is None where the file does not tell.
    """

    model: SegmentationModel
    stage: str
    reason: str
    init_norm: str
    iteration: int | None


def read_released(
    path: Path,
    *,
    space: LabelSpace | None = None,
    stage: str | None = None,
    size_hw: tuple[int, int] | None = None,
    init_norm: str | None = None,
) -> Released:
    """Read a released checkpoint; what is None is told by the file.

    `init_norm` is the input normalization of the weights: by default torchvision's for ResNets and
    the Caffe one for VGG-16, as released. Raise `ModelError` for a file of another layout.
    """
    if stage is not None and stage not in STAGES:
        raise UsageError(f"no stage {stage!r}; there are {', '.join(STAGES)}")
    content = read_checkpoint(path)
    parts = {name: _tensors(content, name, path) for name in ("feature_extractor", "classifier")}
    features, classifier = parts["feature_extractor"], parts["classifier"]
    backbone = _backbone(features, path)
    # A frozen layer has nothing to count and no eps; batch normalization counts its batches.
    counts = any(name.endswith("num_batches_tracked") for name in features)
    told, reason = _stage("model_D" in content, counts)
    if stage is not None:
        told, reason = stage, "as you say"
    kind = init_norm or ("caffe" if backbone == "vgg16" else "torchvision")
    if kind not in INPUT_NORMALIZATIONS:
        raise UsageError(f"no --init-norm {kind!r}; there are {', '.join(INPUT_NORMALIZATIONS)}")
    normalization = INPUT_NORMALIZATIONS[kind]
    spec = ModelSpec(
        backbone,
        space or _space(classifier, path),
        size_hw or TESTED_AT[told],
        "batch" if counts else "frozen",
        normalization.mean,
        normalization.std,
    )
    model = SegmentationModel(spec)
    weights = {
        f"{part}.{name}": tensor for part, names in parts.items() for name, tensor in names.items()
    }
    _check_fit(weights, model, path)
    if normalization.bgr:
        swap_input_channels(weights, model)
    model.load_state_dict(weights)
    iteration = content.get("iteration")
    return Released(
        model.eval(), told, reason, kind, iteration if isinstance(iteration, int) else None
    )


def _check_fit(weights: dict[str, Tensor], model: SegmentationModel, path: Path) -> None:
    wanted = model.state_dict()
    odd = [n for n in wanted if n in weights and weights[n].shape != wanted[n].shape]
    missing = [n for n in wanted if n not in weights]
    extra = [n for n in weights if n not in wanted]
    if not (missing or odd or extra):
        return
    first = (odd + missing + extra)[0]
    found, needed = (tuple(t[first].shape) if first in t else "nothing" for t in (weights, wanted))
    raise ModelError(
        f"{path}: does not fit {model.spec.backbone} with {model.spec.space.num_classes} classes: {len(missing)} "
        f"parameters missing, {len(odd)} of another shape, {len(extra)} too many; {first} is {found}, "
        f"{needed} is needed"
    )


def _tensors(content: dict[str, object], part: str, path: Path) -> dict[str, Tensor]:
    found = content.get(part)
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        have = ", ".join(sorted(map(str, content))[:5]) or "nothing"
        raise ModelError(
            f"{path}: not a checkpoint of the released FADA code: it needs feature_extractor and classifier, "
            f"and holds {have}"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}


def _backbone(features: dict[str, Tensor], path: Path) -> str:
    if "backbone.29.weight" in features:
        return "vgg16"
    blocks = {
        m.group(1) for name in features if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))
    }
    if len(blocks) not in _RESNETS or "backbone.layer3.0.conv3.weight" not in features:
        raise ModelError(f"{path}: its feature extractor is neither VGG-16 nor ResNet-50 or -101")
    return _RESNETS[len(blocks)]


def _stage(has_discriminator: bool, counts_batches: bool) -> tuple[str, str]:
    if has_discriminator:
        return "adversarial", "it holds a discriminator"
    if counts_batches:
        return "distill", "its batch normalization is trainable"
    return "source", "it holds neither a discriminator nor trainable normalization"


def _space(classifier: dict[str, Tensor], path: Path) -> LabelSpace:
    weight = classifier.get("conv2d_list.0.weight", torch.empty(0))
    classes = weight.shape[0] if weight.ndim == 4 else 0
    if classes not in SPACES:
        raise ModelError(
            f"{path}: its classifier tells {classes} classes apart, for which no label space is known; "
            "give --label-space"
        )
    return SPACES[classes]
