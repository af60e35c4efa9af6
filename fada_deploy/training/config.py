"""The settings of a training run, with those of its stages from `stage_config`.

The defaults are the values of the paper; `training.recipes` has other starting points.
docs/how-to/training.md lists the differences. `training.settings` builds a configuration from a
recipe, a file and options. `RunConfig.from_dict` decodes a document and checks types and ranges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from fada_deploy.common import documents
from fada_deploy.common.errors import UsageError
from fada_deploy.common.runs import PAPER_STAGES, STAGES
from fada_deploy.data.problems import ALLOWED_IGNORED
from fada_deploy.training.stage_config import (
    AdversarialStage,
    DistillStage,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    SelfTrainingStage,
    SizeHW,
    SourceStage,
    Stage,
    TranslationStage,
)

TestScale = Annotated[float, Meta(gt=0, le=4)]
# Half the range of NumPy's seeds: some stages add a number to the seed.
MAX_SEED = 2**31 - 1
Seed = Annotated[int, Meta(ge=0, le=MAX_SEED)]
Name = Annotated[str, Meta(min_length=1)]

# The name of the source that is rendered on first use.
RENDERED = "rendered"
AugmentName = Literal["none", "light", "strong"]


@dataclass(frozen=True)
class Source:
    """A labeled source of a run.

    Attributes:
        name: Name of a data set, the path of a TOML file, or "rendered".
        root: Folder of its files, if not the default one.
        weight: Its part of each batch, relative to the weights of the other sources.
    """

    name: Name
    root: Name | None = None
    weight: PositiveFloat = 1.0


@dataclass(frozen=True)
class RunConfig:
    """All settings of a training run, as written to its `config.json`.

    Attributes:
        src: Labeled source: the name of a data set, a TOML file, or "rendered".
        tgt: Unlabeled target: the name of a data set, a TOML file, a video or a folder.
        src_root: Folder of the source's files, if not the default one.
        src_weight: Part of the source in each batch, relative to the extra sources.
        extra_sources: Further labeled sources.
        rendered_scenes: Number of scenes of the source "rendered".
        tgt_root: Folder of the target's files, if not the default one.
        ego_mask: Image that is black except on the car's own body; applies to recordings.
        label_space: Name of a label space or a TOML file.
        backbone: Name of the backbone.
        method: Alignment method, a key of `methods.alignment.METHODS`; "source" trains without one.
        recipe: Name of the recipe that the settings started from.
        stages: Stages to train.
        init: File with ImageNet weights of the backbone, "imagenet" for published ones, or "none".
        init_norm: Input normalization of `init`, if the file does not determine it.
        start: Run or weights file that replaces the stages before the first one in `stages`.
        norm: Normalization layers of the network; "auto" freezes what `init` fully provides.
        src_size: Size of the source frames (height, width).
        size: Size of the target frames and of the network's input (height, width).
        allow_ignored: Largest fraction of ignored label pixels of a source; more is an error.
        augment: Augmentation of the frames in every stage: zoom, flip, color, blur, noise and JPEG.
        style: Style of the source frames in every stage. Half of them take the color "statistics"
            of random target frames, or the amplitude of low frequencies ("fourier"). With
            "cyclegan", a network that is trained first translates all of them.
        seed: Seed of weights, data order and augmentation.
        amp: Mixed precision: "off", "bf16", or "auto" for bf16 where the hardware supports it.
        compile: Compile the networks with torch.compile.
        cuda_graphs: Compile them, and replay their kernels on a GPU as CUDA graphs.
        deterministic: Use algorithms that give bit-identical results on a GPU, and are slower.
        save_every: Iterations between two saved training states, from which a run can resume.
        checkpoint_every: Iterations between two kept weights files; 0 keeps the final weights only.
        test_scales: Scales of the input that scores average over.
        test_flip: Also average over the mirrored frames.
        published: mIoU in percent that the paper reports, shown next to the last stage's score.
        translation: Settings of the translation for the style "cyclegan".
        source: Settings of the source stage.
        adversarial: Settings of the adversarial stage.
        selftrain: Settings of the self-training stage.
        distill: Settings of the distillation stage.
    """

    src: Name
    tgt: Name
    src_root: Name | None = None
    src_weight: PositiveFloat = 1.0
    extra_sources: tuple[Source, ...] = ()
    rendered_scenes: PositiveInt = 800
    tgt_root: Name | None = None
    ego_mask: Name | None = None
    label_space: Name = "cityscapes-19"
    backbone: str = "resnet101"
    method: str = "fada"
    recipe: str = "paper"
    stages: tuple[str, ...] = PAPER_STAGES
    init: Name = "imagenet"
    init_norm: Name | None = None
    start: Name | None = None
    norm: Literal["auto", "batch", "frozen"] = "auto"
    src_size: SizeHW = (720, 1280)
    size: SizeHW = (512, 1024)
    allow_ignored: Probability = ALLOWED_IGNORED
    augment: AugmentName = "none"
    style: Literal["none", "statistics", "fourier", "cyclegan"] = "none"
    seed: Seed = 1
    amp: Literal["off", "bf16", "auto"] = "off"
    compile: bool = False
    cuda_graphs: bool = False
    deterministic: bool = False
    save_every: PositiveInt = 500
    checkpoint_every: NonNegativeInt = 0
    test_scales: Annotated[tuple[TestScale, ...], Meta(min_length=1)] = (1.0,)
    test_flip: bool = False
    published: float | None = None
    translation: TranslationStage = field(default_factory=TranslationStage)
    source: SourceStage = field(default_factory=SourceStage)
    adversarial: AdversarialStage = field(default_factory=AdversarialStage)
    selftrain: SelfTrainingStage = field(default_factory=SelfTrainingStage)
    distill: DistillStage = field(default_factory=DistillStage)

    @property
    def sources(self) -> tuple[Source, ...]:
        """All labeled sources, the first one first."""
        return (Source(self.src, self.src_root, self.src_weight), *self.extra_sources)

    @property
    def needs_source(self) -> bool:
        """Whether the run reads a labeled source: for training, or to know which classes it shows.

        A run with source-free self-training may have no source.
        """
        is_source_free = "selftrain" in self.stages and self.selftrain.source_free
        return self.trains_on_source or not is_source_free

    @property
    def trains_on_source(self) -> bool:
        """Whether any stage is trained on frames of a labeled source."""
        return (
            bool({"source", "adversarial"} & set(self.stages))
            or ("selftrain" in self.stages and not self.selftrain.source_free)
            or ("distill" in self.stages and self.distill.source_weight > 0)
        )

    @property
    def source_name(self) -> str:
        """The names of all sources, as part of the name of a run."""
        return "+".join(Path(source.name).stem for source in self.sources)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(
        cls,
        data: Mapping[str, Any],
        *,
        where: str = "run settings",
        remedy: str = "use the version of fada_deploy that wrote them, or start a new run",
    ) -> RunConfig:
        """Decode and check a document of settings; missing keys get their defaults.

        Raise `UsageError` about `where`, ending with `remedy`, for what is wrong or unknown.
        """
        config = documents.convert(
            data, cls, where=where, remedy=remedy, error=UsageError, noun="setting", file_names=True
        )
        if problem := _inconsistency(config):
            raise UsageError(f"{where}: {problem}; {remedy}")
        return config


def _without_prototypes(stage: SelfTrainingStage) -> str:
    """Return the first setting of self-training that prototypes exclude, "" for none."""
    excluded = {
        "rounds": stage.rounds, "source_free": stage.source_free, "regularizer": stage.regularizer,
        "weighting": stage.weighting != "none", "masked_weight": stage.masked_weight,
    }  # fmt: skip
    return next((name for name, value in excluded.items() if value), "")


def _inconsistency(config: RunConfig) -> str:
    """Describe the first contradiction between settings; return "" if there is none."""
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown or not config.stages:
        got = ", ".join(unknown) or "none"
        return f"stages: found {got!r}, expected one or more of {', '.join(STAGES)}"
    if config.method == "source" and "adversarial" in config.stages:
        return (
            "method: found 'source' together with the adversarial stage, expected another method "
            "or stages without adversarial"
        )
    if config.selftrain.align and "selftrain" in config.stages and config.method == "source":
        return (
            "selftrain.align: found true together with method 'source', expected another method or "
            "selftrain.align=false"
        )
    if config.selftrain.rounds and config.selftrain.weighting != "none":
        return (
            f"selftrain.weighting: found {config.selftrain.weighting!r} together with rounds, which"
            " have thresholds, expected 'none'"
        )
    if config.selftrain.prototypes and (other := _without_prototypes(config.selftrain)):
        return f"selftrain.prototypes: found true together with {other}, expected only one of them"
    if config.selftrain.align and config.selftrain.source_free:
        return (
            "selftrain.align: found true together with source_free, but alignment needs a source, "
            "expected selftrain.align=false"
        )
    for name in config.stages:
        stage: Stage = getattr(config, name)
        if stage.batch % stage.accumulate:
            return (
                f"{name}.batch: found {stage.batch}, expected a multiple of {name}.accumulate "
                f"({stage.accumulate})"
            )
        if stage.iterations > stage.max_iterations:
            return (
                f"{name}.iterations: found {stage.iterations}, expected at most "
                f"{name}.max_iterations ({stage.max_iterations})"
            )
    if config.style == "cyclegan" and not config.trains_on_source:
        return (
            "style: found 'cyclegan', the default of the method cycada, but no stage is trained on "
            "source frames, expected style=none"
        )
    if config.translation.iterations > config.translation.max_iterations:
        return (
            f"translation.iterations: found {config.translation.iterations}, expected at most "
            f"translation.max_iterations ({config.translation.max_iterations})"
        )
    low, high = config.distill.scale
    if low > high:
        return f"distill.scale: found {low}, {high}, expected the smaller factor first"
    return ""
