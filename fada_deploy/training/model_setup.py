"""The initial network of each stage, and the checks that need no data."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import LabelSpace, load_label_space
from fada_deploy.common.runs import STAGES, WEIGHTS, final_weights
from fada_deploy.training import distributed
from fada_deploy.training.config import RunConfig
from fada_deploy.training.methods.alignment import METHODS, check_backbone
from fada_deploy.training.models.segmentation import (
    ModelSpec,
    SegmentationModel,
    check_size,
    find_backbone,
)
from fada_deploy.training.weights.checkpoints import load_model, read_label_space, read_spec
from fada_deploy.training.weights.pretrained import (
    find_pretrained,
    input_normalization,
    load_backbone,
)

logger = logging.getLogger(__name__)


class ModelSetup:
    """Build the networks of a run: new ones, and those that earlier stages trained.

    `spec` describes the network of the source stage, `student_spec` that of the distillation stage.
    Raise `UsageError` or `ModelError` if any stage of the run could not be trained.
    """

    def __init__(
        self, config: RunConfig, folder: Path, space: LabelSpace, device: torch.device
    ) -> None:
        self.config, self.folder, self.space, self.device = config, folder, space, device
        # The other stages continue from a network.
        self._has_new_model = not {"source", "distill"}.isdisjoint(config.stages)
        # A file that is named is checked in any case.
        uses_init = self._has_new_model or config.init != "imagenet"
        self._has_init = uses_init and config.init != "none"
        self.spec = ModelSpec(config.backbone, space, config.size, initial_norm(config))
        self.student_spec = replace(
            self.spec, size_hw=config.distill.size, norm=config.distill.norm
        )
        self.start_model: SegmentationModel | None = None
        self.start_weights: Path | None = None
        if config.start is not None:
            self.start_weights = final_weights(Path(config.start))
            self.start_model = self._load(self.start_weights)
        self._check_start()
        self._check_published()
        if config.method != "source" and (
            "adversarial" in config.stages or config.selftrain.align or config.method not in METHODS
        ):
            check_backbone(config.method, config.backbone)
        for stage in config.stages:
            self._check_stage(stage)
        # After the checks, because this may download a file.
        trained = self._trained_new_models()
        self.init = None
        if self._has_init and not trained:
            self.init = find_pretrained(config.backbone, config.init)
        if trained:
            # The initial weights are not needed any more, and may be gone.
            spec = read_spec(trained[0])
            mean, std, self._bgr = spec.mean, spec.std, False
        else:
            mean, std, self._bgr = input_normalization(
                config.backbone, self.init, config.init_norm if uses_init else None
            )
        self.spec = replace(self.spec, mean=mean, std=std)
        self.student_spec = replace(self.student_spec, mean=mean, std=std)
        # Reports an initial weights file that does not match the backbone.
        self.new_model(self.spec)

    def _trained_new_models(self) -> list[Path]:
        """Return the weights of the stages that start from new networks, [] if one is missing."""
        stages = [stage for stage in self.config.stages if stage in ("source", "distill")]
        weights = [self.folder / stage / WEIGHTS for stage in stages]
        return weights if all(path.is_file() for path in weights) else []

    def log_initial_weights(self) -> None:
        """Log what the run starts from, and warn where the recipe does not suit it."""
        config = self.config
        if config.start is not None:
            logger.info("starting from %s", self.start_weights)
        if self.init is not None and self._has_new_model:
            logger.info("%s: ImageNet weights from %s", config.backbone, self.init)
        elif config.start is None and config.init == "none" and config.recipe == "paper":
            logger.warning(
                "%s starts from random weights, the paper starts from ImageNet weights; "
                "use --init FILE to reproduce its results",
                config.backbone,
            )
        if self.device.type == "cpu" and config.recipe == "paper":
            logger.warning("the recipe paper takes days on a CPU; use --recipe deploy or a GPU")

    def new_model(self, spec: ModelSpec) -> SegmentationModel:
        """Return an untrained network; it depends only on `spec`, the seed and the init file."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = SegmentationModel(spec)
        if self.init is not None:
            load_backbone(model, self.init, bgr=self._bgr)
        return distributed.convert_sync_batch_norm(model.to(self.device))

    def weights_before(self, stage: str) -> dict[str, Tensor]:
        """Return the weights of the network that a stage continues from."""
        earlier = self._earlier_weights(stage)
        path = earlier[-1] if earlier else self.start_weights
        assert path is not None, "checked by _check_start"
        return load_model(path, self.device)[0].state_dict()

    def model_before(self, stage: str) -> SegmentationModel:
        """Return the network that a stage continues from: the previous stage's, or `start`'s."""
        if earlier := self._earlier_weights(stage):
            return distributed.convert_sync_batch_norm(self._load(earlier[-1]))
        assert self.start_model is not None, "checked by _check_start"
        return distributed.convert_sync_batch_norm(self.start_model)

    def _earlier_weights(self, stage: str) -> list[Path]:
        """Return the weights of this run's finished stages before `stage`."""
        earlier = [self.folder / name / WEIGHTS for name in STAGES[: STAGES.index(stage)]]
        return [path for path in earlier if path.is_file()]

    def _load(self, weights: Path) -> SegmentationModel:
        model, _ = load_model(weights, self.device)
        if model.spec.space != self.space:
            raise UsageError(
                f"{weights} was trained with the label space {model.spec.space.name}, this run "
                f"uses {self.space.name}; use --label-space to select the same one"
            )
        return model

    def _check_start(self) -> None:
        config, model = self.config, self.start_model
        first = next(stage for stage in STAGES if stage in config.stages)
        if model is None:
            if first != "source" and not self._earlier_weights(first):
                raise UsageError(
                    f"the stage {first} needs the network of an earlier stage; "
                    "add source to --stages, or use --start RUN"
                )
            return
        if first == "source":
            raise UsageError(
                "--start replaces the source stage, but --stages contains source; remove one"
            )
        if not {"adversarial", "selftrain"} & set(config.stages):
            # A student may have another architecture than its teacher.
            return
        backbone, norm = model.spec.backbone, model.spec.norm
        if backbone != config.backbone:
            raise UsageError(
                f"--start {config.start} has the backbone {backbone}, this run uses "
                f"{config.backbone}; use --backbone {backbone}"
            )
        if config.norm not in ("auto", norm):
            raise UsageError(
                f"--start {config.start} was trained with norm={norm}, this run uses "
                f"norm={config.norm}; use --set norm={norm}"
            )

    def _check_published(self) -> None:
        if self.config.published is not None and self._has_new_model and not self._has_init:
            raise UsageError(
                "these settings reproduce a published score, which starts from ImageNet weights of "
                f"{self.config.backbone}; use --init FILE, or --set published=none"
            )

    def _check_stage(self, stage: str) -> None:
        spec = self.student_spec if stage == "distill" else self.spec
        if stage in ("adversarial", "selftrain") and self.start_model is not None:
            spec = replace(self.start_model.spec, size_hw=self.config.size)
        check_size(spec.backbone, spec.size_hw)
        settings = getattr(self.config, stage)
        local_batch = len(distributed.local_slots(settings.batch))
        if local_batch % settings.accumulate:
            raise UsageError(
                f"{stage}.accumulate must divide the {local_batch} images per process, "
                f"got {settings.accumulate}"
            )
        if stage == "selftrain" and settings.align:
            # Methods look at the first source batches of the adversarial stage.
            distributed.local_slots(self.config.adversarial.batch)
        if stage == "selftrain" and settings.source_free and settings.mixed_weight:
            self._check_pairs(local_batch)
        if find_backbone(spec.backbone).has_norms:
            # Synchronized batch normalization sees one part from every process.
            self._check_norm(stage, spec, settings.batch // settings.accumulate)

    def _check_pairs(self, local_batch: int) -> None:
        """Raise `UsageError` if a process has no two frames to mix with each other."""
        if local_batch < 2:
            batch = 2 * distributed.world_size()
            raise UsageError(
                "selftrain: without a source, each process mixes pairs of its target frames; got "
                f"{local_batch} frame per process; use --set selftrain.batch={batch}, or "
                "hidden blocks: --set selftrain.mixed_weight=0 --set selftrain.masked_weight=1"
            )

    def _check_norm(self, stage: str, spec: ModelSpec, norm_batch: int) -> None:
        """Raise `UsageError` if the normalization cannot be trained, or is frozen but untrained."""
        if spec.norm == "batch" and distributed.world_size() > 1 and self.device.type != "cuda":
            raise UsageError(
                f"{stage}: several processes cannot train batch normalization on a CPU; use one "
                "process, or --set norm=frozen with --init FILE"
            )
        if spec.norm == "batch" and norm_batch < 2:
            accumulate = getattr(self.config, stage).accumulate
            raise UsageError(
                f"{stage}: trainable batch normalization needs at least 2 images at a time, "
                f"got {norm_batch}; use --set {stage}.batch={2 * accumulate}"
            )
        if spec.norm != "frozen" or stage in ("adversarial", "selftrain"):
            return
        if not self._has_init:
            remedy = "use --init FILE with ImageNet weights, or norm=batch"
        elif not find_backbone(spec.backbone).fully_pretrained:
            remedy = (
                f"ImageNet weights of {spec.backbone} do not contain all normalization layers; "
                "use norm=batch"
            )
        else:
            return
        raise UsageError(f"{stage}: frozen normalization needs pretrained statistics; {remedy}")


def open_label_space(config: RunConfig) -> LabelSpace:
    """Return the label space of a run.

    If its file is not on this machine, it is that of the network that the run starts from. Raise
    `DataError` if there is none, `UsageError` for an unknown name or an invalid file.
    """
    try:
        return load_label_space(config.label_space)
    except DataError:
        if config.start is None:
            raise
        return read_label_space(final_weights(Path(config.start)))


def initial_norm(config: RunConfig) -> str:
    """Return the normalization ("batch" or "frozen") of a network that starts from `init`."""
    if config.norm != "auto":
        return config.norm
    architecture = find_backbone(config.backbone)
    # Only pretrained statistics can be frozen; some ImageNet weights lack a pyramid or a decoder.
    is_pretrained = config.init != "none" and architecture.fully_pretrained
    return "frozen" if is_pretrained or not architecture.has_norms else "batch"
