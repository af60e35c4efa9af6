"""What decides a run: one frozen dataclass a stage, and the presets. `settings` fills them.

The defaults are the paper's numbers; `small` is what two CPU cores can do (docs/guide.md lists
every deviation and why).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fada_deploy.common.errors import UsageError

SizeHW = tuple[int, int]
Jitter = tuple[float, float, float, float]
STAGES = ("source", "adversarial", "distill")
METHODS = ("source", "feature", "fada-hard", "fada", "adaptsegnet", "advent")
OPTIMIZERS = ("sgd", "adamw")
BN_STATISTICS = ("target", "source", "both", "frozen")
AMP = ("off", "bf16", "auto")


@dataclass(frozen=True)
class Stage:
    """What every stage has. `max_iterations` is the poly schedule's length; training stops earlier.

    The classifier learns at `lr` × `classifier_lr_factor`. `max_norm` is what the norm of F's and G's
    gradients is clipped to (0: not at all). `accumulate` takes a process's share of a batch in so many equal
    parts and adds up their gradients: less memory, the same step, but that trainable normalization takes its
    statistics over a part. `ema` 0 is off, else the decay of averaged weights.
    `jitter` is brightness, contrast, saturation, hue.
    """

    iterations: int
    max_iterations: int
    batch: int
    lr: float
    optimizer: str = "sgd"
    classifier_lr_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    warmup: int = 0
    max_norm: float = 0.0
    accumulate: int = 1
    ema: float = 0.0
    jitter: Jitter = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SourceStage(Stage):
    """Supervised training on the source; `flip` is the probability of mirroring."""

    iterations: int = 20_000
    max_iterations: int = 31_250
    batch: int = 8
    lr: float = 5e-4
    flip: float = 0.0


@dataclass(frozen=True)
class AdversarialStage(Stage):
    """Adversarial training; `batch` counts the images of each domain. The method is the run's.

    `bn_statistics` says whose pass moves the running statistics of trainable batch normalization:
    "target", "source" or "both" in turn; "frozen" takes those of the stage before for both.
    `full_resolution` takes the domain losses at the input's size, as published, or else at the
    features'.
    """

    iterations: int = 40_000
    max_iterations: int = 62_500
    batch: int = 4
    lr: float = 2.5e-4
    jitter: Jitter = (0.5, 0.5, 0.5, 0.2)
    temperature: float = 1.8
    clip: float = 0.9
    adversarial_weight: float = 0.001
    discriminator_lr: float = 1e-4
    discriminator_betas: tuple[float, float] = (0.9, 0.99)
    bn_statistics: str = "target"
    full_resolution: bool = True


@dataclass(frozen=True)
class DistillStage(Stage):
    """A fresh student on the adapted network's pseudo-labels of the target's training frames.

    Frames and pseudo-labels are scaled by a factor from `scale`, relative to the distilled
    network's input size, and cropped to `crop`. The student's normalization is `norm`: trainable in
    the published GTA5 run with ResNet-101, frozen for SYNTHIA.
    """

    iterations: int = 20_000
    max_iterations: int = 31_250
    batch: int = 8
    lr: float = 5e-4
    jitter: Jitter = (0.5, 0.5, 0.5, 0.2)
    flip: float = 0.5
    scale: tuple[float, float] = (0.5, 1.5)
    size: SizeHW = (1024, 2048)
    crop: SizeHW = (512, 1024)
    norm: str = "batch"


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, written to its `config.json`.

    `method` is what the adversarial stage does (`training.methods.alignment`), or "source" for none.

    `ego_mask` is a picture that is not black where recordings show the car itself. `init` is a file
    of ImageNet weights for the backbone, `start` trained weights that stand in for the stage before
    the first one. `src_size` is what source frames are resized to, `size` what target frames are:
    the network's input. Both are (height, width). `amp` is off, bf16, or auto: bfloat16 where the
    device is made for it. `init_norm` names the input normalization of `init` where the file does
    not tell. Weights are kept for comparison every `checkpoint_every` iterations (0: the last alone).
    `test_scales` and `test_flip` are the views that scores average over; `published` is the mIoU in
    percent that the paper gives for these settings, shown beside the last score. `compile` has torch compile
    the networks.
    """

    src: str
    tgt: str
    src_root: str | None = None
    tgt_root: str | None = None
    ego_mask: str | None = None
    label_space: str = "cityscapes-19"
    backbone: str = "resnet101"
    method: str = "fada"
    preset: str = "paper"
    stages: tuple[str, ...] = STAGES
    init: str = "none"
    init_norm: str | None = None
    start: str | None = None
    norm: str = "auto"
    src_size: SizeHW = (720, 1280)
    size: SizeHW = (512, 1024)
    seed: int = 1
    amp: str = "off"
    compile: bool = False
    save_every: int = 500
    checkpoint_every: int = 0
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    published: float | None = None
    source: SourceStage = field(default_factory=SourceStage)
    adversarial: AdversarialStage = field(default_factory=AdversarialStage)
    distill: DistillStage = field(default_factory=DistillStage)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Read what `to_dict` wrote; raise `UsageError` for settings this version does not know."""
        stages = {"source": SourceStage, "adversarial": AdversarialStage, "distill": DistillStage}
        plain = {k: v for k, v in data.items() if k not in stages}
        try:
            config = cls(**{k: _tuples(v) for k, v in plain.items()})
            built = {
                k: make(**{n: _tuples(v) for n, v in data[k].items()}) for k, make in stages.items()
            }
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"the run's settings are of another version of fada_deploy ({error})"
            ) from None
        return replace(config, **built)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# From random weights in minutes: AdamW with a warm-up and averaged weights in place of SGD from ImageNet.
_SMALL_STAGE: dict[str, Any] = {
    "optimizer": "adamw",
    "classifier_lr_factor": 1.0,
    "weight_decay": 0.01,
    "warmup": 20,
    "ema": 0.98,
    "batch": 4,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "backbone": "ddrnet23-slim",
        "size": (192, 320),
        "src_size": (192, 320),
        "amp": "auto",
        "source": {
            **_SMALL_STAGE,
            "lr": 2e-3,
            "jitter": (0.3, 0.3, 0.3, 0.1),
            "iterations": 600,
            "max_iterations": 600,
            "flip": 0.5,
        },
        "adversarial": {
            **_SMALL_STAGE,
            "lr": 1e-3,
            "jitter": (0.3, 0.3, 0.3, 0.1),
            "iterations": 400,
            "max_iterations": 440,
            "adversarial_weight": 0.05,
            "discriminator_lr": 1e-3,
            "full_resolution": False,
        },
        "distill": {
            **_SMALL_STAGE,
            "lr": 2e-3,
            "jitter": (0.0, 0.0, 0.0, 0.0),
            "iterations": 900,
            "max_iterations": 900,
            "size": (192, 320),
            "crop": (192, 320),
            "scale": (1.0, 1.0),
        },
    },
}
