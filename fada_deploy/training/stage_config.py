"""The settings of each stage; the defaults are the values of the papers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar

from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
NonNegativeFloat = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]
BelowOne = Annotated[float, Meta(ge=0, lt=1)]
HueFraction = Annotated[float, Meta(ge=0, le=0.5)]

SizeHW = tuple[PositiveInt, PositiveInt]
Jitter = tuple[Probability, Probability, Probability, HueFraction]


@dataclass(frozen=True)
class Stage:
    """The settings that every stage has.

    Attributes:
        iterations: Number of training iterations.
        max_iterations: Length of the poly schedule; training may stop before its end.
        batch: Images per iteration, over all processes.
        lr: Initial learning rate of the feature extractor.
        optimizer: Optimizer of the segmentation network.
        classifier_lr_factor: Learning rate of the classifier, as a multiple of `lr`.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of the optimizer.
        power: Exponent of the poly schedule.
        warmup: Number of iterations over which the learning rate rises linearly.
        max_norm: Limit of the gradient norm of the segmentation network; 0 disables clipping.
        accumulate: Equal parts of a process's batch whose gradients are summed one after another.
            Saves memory and does not change the step, except that trainable batch normalization
            computes its statistics over a part.
        ema: Decay of the exponential moving average of the weights; 0 disables averaging.
        jitter: Strength of the color jitter: brightness, contrast, saturation, hue.
        class_weights: Weights of the classes in the segmentation loss on labeled frames: "none", or
            "log" for 1 / log(1.02 + frequency in the source), which raises rare classes.
    """

    iterations: PositiveInt
    max_iterations: PositiveInt
    batch: PositiveInt
    lr: NonNegativeFloat
    optimizer: Literal["sgd", "adamw"] = "sgd"
    classifier_lr_factor: NonNegativeFloat = 10.0
    momentum: BelowOne = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    power: NonNegativeFloat = 0.9
    warmup: NonNegativeInt = 0
    max_norm: NonNegativeFloat = 0.0
    accumulate: PositiveInt = 1
    ema: BelowOne = 0.0
    jitter: Jitter = (0.0, 0.0, 0.0, 0.0)
    class_weights: Literal["none", "log"] = "none"


StageType = TypeVar("StageType", bound=Stage)


def with_length(stage: StageType, iterations: int) -> StageType:
    """Return the settings of a stage with another length, and a schedule in proportion."""
    ratio = iterations / stage.iterations
    return replace(
        stage, iterations=iterations, max_iterations=math.ceil(ratio * stage.max_iterations),
        warmup=min(round(ratio * stage.warmup), iterations),
    )  # fmt: skip


@dataclass(frozen=True)
class SourceStage(Stage):
    """Supervised training on the labeled source.

    Attributes:
        flip: Probability of a horizontal flip.
    """

    iterations: PositiveInt = 20_000
    max_iterations: PositiveInt = 31_250
    batch: PositiveInt = 8
    lr: NonNegativeFloat = 5e-4
    flip: Probability = 0.0


@dataclass(frozen=True)
class AdversarialStage(Stage):
    """Adversarial alignment of source and target by `RunConfig.method`.

    Attributes:
        batch: Images per iteration from each domain.
        temperature: Divides the logits of the segmentation loss and of the soft encodings.
        clip: Upper limit of the soft encodings.
        adversarial_weight: Weight of the adversarial loss of the segmentation network.
        discriminator_lr: Initial learning rate of the discriminator.
        discriminator_betas: Coefficients of the discriminator's Adam optimizer.
        bn_statistics: The forward pass that updates the running statistics of trainable batch
            normalization: target, source or both in turn. "frozen" normalizes both domains with
            the statistics of the previous stage.
        full_resolution: Compute the domain losses at the size of the input, as published, instead
            of the size of the features.
    """

    iterations: PositiveInt = 40_000
    max_iterations: PositiveInt = 62_500
    batch: PositiveInt = 4
    lr: NonNegativeFloat = 2.5e-4
    jitter: Jitter = (0.5, 0.5, 0.5, 0.2)
    temperature: PositiveFloat = 1.8
    clip: Annotated[float, Meta(gt=0, le=1)] = 0.9
    adversarial_weight: NonNegativeFloat = 0.001
    discriminator_lr: NonNegativeFloat = 1e-4
    discriminator_betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    bn_statistics: Literal["target", "source", "both", "frozen"] = "target"
    full_resolution: bool = True


@dataclass(frozen=True)
class SelfTrainingStage(Stage):
    """Self-training: by default with a mean teacher and ClassMix.

    Attributes:
        batch: Images per iteration from the source; as many target frames are mixed with them.
        ema: Decay of the teacher's weights.
        max_threshold: Confidence above which a pixel of any class is labeled.
        quantile: Within each predicted class, this fraction of the pixels may be below the
            threshold; 1 uses `max_threshold` for every class.
        rounds: Number of rounds of equal length. The network at the start of a round labels the
            target, with thresholds over the whole target instead of `max_threshold` and
            `quantile` (CBST). 0 labels it anew in every iteration, with thresholds from the batch.
        portion: Part of the pixels that the first of several rounds labels; it grows by 0.05 in
            each round, up to 0.5.
        threshold_per_class: Whether rounds have a threshold for each class (CBST) or one for all
            (ST).
        prototypes: Whether to learn the predictions of the network that the stage starts from,
            corrected by distances from the prototypes of the classes, with the losses of ProDA,
            instead of mixed and masked frames.
        regularizer: Weight of the divergence of predictions from the uniform distribution in the
            loss of mixed and masked frames (CRST).
        weighting: Weights of pseudo-labels: "none" labels only confident pixels; "confident_share"
            labels all pixels, and weights them by the fraction of the batch whose probability is at
            least `max_threshold` (DACS).
        rare_class_temperature: Draw source frames of class c with probability ∝ exp((1 − f_c) / T),
            f_c its fraction of the pixels (DAFormer); 0 draws them as the source stage does.
        mixed_weight: Weight of the loss on mixed frames.
        masked_weight: Weight of the loss on target frames of which random blocks are hidden; 0
            disables them.
        mask_block: Side of the hidden blocks in pixels.
        mask_ratio: Probability that a block is hidden.
        align: Whether to align the domains in the same iterations, by `RunConfig.method` and with
            the settings of the adversarial stage. The schedule is that of this stage.
        source_free: Whether to learn from the target alone. Its own pseudo-labels replace the
            source, the teacher keeps the weights that the stage starts from, and normalization uses
            a mixture of their statistics and those of the target.
        start_weight: Weight of the network that the stage starts from in the average of both that
            is the result (WiSE-FT, Wortsman et al., CVPR 2022): more of it forgets less.
    """

    iterations: PositiveInt = 40_000
    max_iterations: PositiveInt = 40_000
    batch: PositiveInt = 2
    lr: NonNegativeFloat = 6e-5
    optimizer: Literal["sgd", "adamw"] = "adamw"
    weight_decay: NonNegativeFloat = 0.01
    power: NonNegativeFloat = 1.0
    warmup: NonNegativeInt = 1500
    ema: Annotated[float, Meta(gt=0, lt=1)] = 0.999
    max_threshold: Probability = 0.9
    quantile: Probability = 0.34
    rounds: NonNegativeInt = 0
    portion: Annotated[float, Meta(gt=0, le=1)] = 0.2
    threshold_per_class: bool = True
    prototypes: bool = False
    regularizer: NonNegativeFloat = 0.0
    weighting: Literal["none", "confident_share"] = "none"
    rare_class_temperature: NonNegativeFloat = 0.0
    mixed_weight: NonNegativeFloat = 1.0
    masked_weight: NonNegativeFloat = 0.0
    mask_block: PositiveInt = 64
    mask_ratio: Probability = 0.7
    align: bool = False
    source_free: bool = False
    start_weight: Probability = 0.0


def without_rounds(stage: SelfTrainingStage) -> SelfTrainingStage:
    """Return settings with rounds as those of a mean teacher with ClassMix, others unchanged."""
    if not stage.rounds:
        return stage
    return replace(stage, rounds=0, mixed_weight=1.0, masked_weight=0.0)


@dataclass(frozen=True)
class TranslationStage:
    """Training of the translation of source frames, for the style "cyclegan".

    Attributes:
        iterations: Number of training iterations.
        max_iterations: Length of the poly schedule; training may stop before its end.
        batch: Images per iteration from each domain.
        lr: Initial learning rate of Adam.
        power: Exponent of the poly schedule.
        warmup: Number of iterations over which the learning rate rises linearly.
        width: Channels of the networks at full resolution.
        blocks: Residual blocks of a generator.
        crop: Size of the random crops (height, width); smaller frames are not cropped.
        cycle_weight: Weight of the difference after translation and back.
        identity_weight: Weight of the difference that a generator makes to frames of its own
            domain, relative to `cycle_weight`.
        semantic_network: Run or weights file of a network that was trained on the source:
            translated frames keep the labels that it gives to the originals. By default, labels
            are not compared.
        semantic_weight: Weight of the cross entropy with these labels.
    """

    iterations: PositiveInt = 100_000
    max_iterations: PositiveInt = 100_000
    batch: PositiveInt = 1
    lr: NonNegativeFloat = 2e-4
    power: NonNegativeFloat = 1.0
    warmup: NonNegativeInt = 0
    width: PositiveInt = 64
    blocks: PositiveInt = 9
    crop: SizeHW = (400, 400)
    cycle_weight: NonNegativeFloat = 10.0
    identity_weight: NonNegativeFloat = 1.0
    semantic_network: str | None = None
    semantic_weight: NonNegativeFloat = 1.0


@dataclass(frozen=True)
class DistillStage(Stage):
    """Training of a new network, the student, on pseudo-labels of the target's training frames.

    Attributes:
        flip: Probability of a horizontal flip.
        scale: Smallest and largest random scale, relative to `size`.
        size: Input size of the student (height, width).
        crop: Size of the random crop (height, width).
        norm: Normalization of the student: trainable batch normalization, or frozen. The published
            runs with ResNet-101 use "batch" for GTA5 and "frozen" for SYNTHIA.
        threshold: Pixels of pseudo-labels with a lower probability are ignored.
        source_weight: Weight of the cross entropy of labeled source frames, as many as `batch`; 0
            trains on pseudo-labels alone.
        soft_weight: Weight of the divergence of the student's predictions from the teacher's, a
            mean over all pixels of the crops, also over those without pseudo-labels.
    """

    iterations: PositiveInt = 20_000
    max_iterations: PositiveInt = 31_250
    batch: PositiveInt = 8
    lr: NonNegativeFloat = 5e-4
    jitter: Jitter = (0.5, 0.5, 0.5, 0.2)
    flip: Probability = 0.5
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 1.5)
    size: SizeHW = (1024, 2048)
    crop: SizeHW = (512, 1024)
    norm: Literal["batch", "frozen"] = "batch"
    threshold: Probability = 0.0
    source_weight: NonNegativeFloat = 0.0
    soft_weight: NonNegativeFloat = 0.0
