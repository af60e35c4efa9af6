"""Checkpoints of the released FADA code, converted to weights of this package.

Used by `fada import CHECKPOINT.pth`. Such a file contains a dictionary with the keys
`feature_extractor` and `classifier`, whose parameter names may start with `module.`; it may also
contain a discriminator, optimizer states and the iteration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_16, CITYSCAPES_19, LabelSpace
from fada_deploy.common.runs import PAPER_STAGES
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.weights.checkpoints import read_checkpoint
from fada_deploy.training.weights.input_normalizations import INPUT_NORMALIZATIONS
from fada_deploy.training.weights.pretrained import swap_input_channels

_SPACES = {space.num_classes: space for space in (CITYSCAPES_19, CITYSCAPES_16, CITYSCAPES_13)}
# Input size (height, width) at which the authors evaluate each stage.
_EVALUATION_SIZES = {"source": (512, 1024), "adversarial": (512, 1024), "distill": (1024, 2048)}
# Number of blocks in `layer3`, which differs between the ResNets, → backbone.
_RESNETS = {6: "resnet50", 23: "resnet101"}


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A network read from a released checkpoint.

    Attributes:
        model: The network, in evaluation mode.
        stage: The training stage that produced it.
        reason: How the stage was determined.
        init_norm: Name of the input normalization, a key of `INPUT_NORMALIZATIONS`.
        iteration: Number of finished iterations; None if the file does not contain it.
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
) -> ReleasedCheckpoint:
    """Read a checkpoint of the released FADA code.

    Args:
        path: The checkpoint file.
        space: Label space [determined from the number of classes].
        stage: Training stage [determined from the contents of the file].
        size_hw: Network input size [the evaluation size of the stage].
        init_norm: Input normalization of the weights [`caffe` for VGG-16, else `torchvision`].

    Raises:
        UsageError: `stage` or `init_norm` is unknown.
        ModelError: The file is not such a checkpoint, or does not match the network.
    """
    if stage is not None and stage not in PAPER_STAGES:
        raise UsageError(f"unknown stage {stage!r}; choose from {', '.join(PAPER_STAGES)}")
    content = read_checkpoint(path)
    parts = {name: _tensors(content, name, path) for name in ("feature_extractor", "classifier")}
    features, classifier = parts["feature_extractor"], parts["classifier"]
    backbone = _detect_backbone(features, path)
    # Only trainable batch normalization stores a batch counter. Frozen layers have no eps either.
    trainable_norm = any(name.endswith("num_batches_tracked") for name in features)
    reason = "given by --stage"
    if stage is None:
        stage, reason = _detect_stage("model_D" in content, trainable_norm)
    init_norm = init_norm or ("caffe" if backbone == "vgg16" else "torchvision")
    if init_norm not in INPUT_NORMALIZATIONS:
        raise UsageError(
            f"--init-norm must be one of {', '.join(INPUT_NORMALIZATIONS)}, got {init_norm!r}"
        )
    normalization = INPUT_NORMALIZATIONS[init_norm]
    spec = ModelSpec(
        backbone,
        space or _detect_space(classifier, path),
        size_hw or _EVALUATION_SIZES[stage],
        "batch" if trainable_norm else "frozen",
        normalization.mean,
        normalization.std,
    )
    model = SegmentationModel(spec)
    weights = {
        f"{part}.{name}": tensor for part, names in parts.items() for name, tensor in names.items()
    }
    _check_parameters(weights, model, path)
    if normalization.bgr:
        swap_input_channels(weights, model)
    model.load_state_dict(weights)
    iteration = content.get("iteration")
    return ReleasedCheckpoint(
        model.eval(), stage, reason, init_norm, iteration if isinstance(iteration, int) else None
    )


def _check_parameters(weights: dict[str, Tensor], model: SegmentationModel, path: Path) -> None:
    """Raise `ModelError` unless the weights have exactly the parameters of the model."""
    expected = model.state_dict()
    mismatched = [n for n in expected if n in weights and weights[n].shape != expected[n].shape]
    missing = [n for n in expected if n not in weights]
    unexpected = [n for n in weights if n not in expected]
    if not (missing or mismatched or unexpected):
        return
    first = (mismatched + missing + unexpected)[0]
    actual_shape, expected_shape = (
        tuple(t[first].shape) if first in t else "absent" for t in (weights, expected)
    )
    raise ModelError(
        f"{path} does not match {model.spec.backbone} with {model.spec.space.num_classes} "
        f"classes: {len(missing)} of {len(expected)} parameters missing, {len(mismatched)} with a "
        f"different shape, {len(unexpected)} unexpected; first: {first}, shape {actual_shape}, "
        f"expected {expected_shape}"
    )


def _tensors(content: dict[str, object], part: str, path: Path) -> dict[str, Tensor]:
    """Return the tensors of one part of a checkpoint, without the prefix `module.`."""
    tensors = content.get(part)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        keys = ", ".join(sorted(map(str, content))[:5]) or "nothing"
        raise ModelError(
            f"{path}: not a checkpoint of the released FADA code; it must contain "
            f"feature_extractor and classifier, but contains {keys}"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


def _detect_backbone(features: dict[str, Tensor], path: Path) -> str:
    if "backbone.29.weight" in features:
        return "vgg16"
    blocks = {
        m.group(1) for name in features if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))
    }
    if len(blocks) not in _RESNETS or "backbone.layer3.0.conv3.weight" not in features:
        raise ModelError(
            f"{path}: unknown feature extractor; supported are VGG-16, ResNet-50 and ResNet-101"
        )
    return _RESNETS[len(blocks)]


def _detect_stage(has_discriminator: bool, trainable_norm: bool) -> tuple[str, str]:
    """Return the training stage and the reason for it."""
    if has_discriminator:
        return "adversarial", "it contains a discriminator"
    if trainable_norm:
        return "distill", "its batch normalization is trainable"
    return "source", "it contains neither a discriminator nor trainable batch normalization"


def _detect_space(classifier: dict[str, Tensor], path: Path) -> LabelSpace:
    weight = classifier.get("conv2d_list.0.weight", torch.empty(0))
    num_classes = weight.shape[0] if weight.ndim == 4 else 0
    if num_classes not in _SPACES:
        raise ModelError(
            f"{path}: no built-in label space has {num_classes} classes; use --label-space"
        )
    return _SPACES[num_classes]
