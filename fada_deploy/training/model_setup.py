"""Which network each stage begins with, and what must hold before any of them is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.runs import WEIGHTS, final_weights
from fada_deploy.training import distributed
from fada_deploy.training.config import STAGES, RunConfig
from fada_deploy.training.distributed import synchronized
from fada_deploy.training.models.segmentation import (
    ModelSpec,
    SegmentationModel,
    check_size,
    find_backbone,
)
from fada_deploy.training.weights.checkpoints import load_model
from fada_deploy.training.weights.pretrained import (
    find_pretrained,
    input_normalization,
    load_backbone,
)


class ModelSetup:
    """The networks of one run: fresh ones, and those of stages before. Raise `UsageError` for what cannot be."""

    def __init__(
        self, config: RunConfig, folder: Path, space: LabelSpace, device: torch.device
    ) -> None:
        self.config, self.folder, self.space, self.device = config, folder, space, device
        self.init = find_pretrained(config.backbone, config.init)
        mean, std, self._bgr = input_normalization(config.backbone, self.init, config.init_norm)
        self.spec = ModelSpec(config.backbone, space, config.size, initial_norm(config), mean, std)
        self.student_spec = replace(
            self.spec, size_hw=config.distill.size, norm=config.distill.norm
        )
        self.start = None if config.start is None else self._load(final_weights(Path(config.start)))
        self._check_start()
        self._check_published()
        for stage in config.stages:
            self._check_stage(stage)
        # An initial file that does not fit is said now.
        self.fresh(self.spec)

    def notes(self) -> list[str]:
        """Say what a user should know before the work begins: what it starts from, and what will not do."""
        config, lines = self.config, []
        if config.start is not None:
            lines.append(f"begins from {final_weights(Path(config.start))}")
        elif self.init is None and config.preset == "paper":
            lines.append(
                f"note: {config.backbone} starts from random weights, in the paper from ImageNet's (--init FILE)"
            )
        if self.device.type == "cpu" and config.preset == "paper":
            lines.append(
                "note: this is the paper's preset on a CPU, for days; --preset small is made for one"
            )
        return lines

    def fresh(self, spec: ModelSpec) -> SegmentationModel:
        """Return the network as it is before any training: a pure function of seed and init."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            model = SegmentationModel(spec)
        if self.init is not None:
            load_backbone(model, self.init, bgr=self._bgr)
        return synchronized(model.to(self.device))

    def before(self, stage: str) -> SegmentationModel:
        """Return the network that a stage builds on: the nearest stage's before it, or `start`'s."""
        earlier = self._earlier(stage)
        if earlier:
            return synchronized(self._load(earlier[0]))
        assert self.start is not None, "checked before anything was trained"
        return synchronized(self.start)

    def _earlier(self, stage: str) -> list[Path]:
        """Return the weights of this run's finished stages before `stage`, the nearest first."""
        earlier = [self.folder / name / WEIGHTS for name in reversed(STAGES[: STAGES.index(stage)])]
        return [path for path in earlier if path.is_file()]

    def _load(self, weights: Path) -> SegmentationModel:
        model, _ = load_model(weights, self.device)
        if model.spec.space != self.space:
            raise UsageError(
                f"{weights} tells {model.spec.space.name} apart, this run {self.space.name}; "
                "give --label-space what it was trained with"
            )
        return model

    def _check_start(self) -> None:
        config, start = self.config, self.start
        first = next(stage for stage in STAGES if stage in config.stages)
        if start is None:
            if first != "source" and not self._earlier(first):
                raise UsageError(
                    f"{first} builds on an earlier stage; add source to --stages, or give --start RUN"
                )
            return
        if first == "source":
            raise UsageError(
                "--start stands in for the source stage; leave out --start, or source from --stages"
            )
        if "adversarial" in config.stages and start.spec.backbone != config.backbone:
            found = start.spec.backbone
            raise UsageError(f"--start {config.start} has a {found}; give --backbone {found}")
        if config.norm not in ("auto", start.spec.norm):
            found = start.spec.norm
            raise UsageError(
                f"--start {config.start} was trained with norm {found}; give --set norm={found}"
            )

    def _check_published(self) -> None:
        begins_anew = self.start is None or "distill" in self.config.stages
        if self.config.published is not None and self.init is None and begins_anew:
            raise UsageError(
                f"these settings are of a published score, begun from ImageNet weights of {self.config.backbone}; "
                "give --init FILE, or leave `published` out"
            )

    def _check_stage(self, stage: str) -> None:
        spec = self.student_spec if stage == "distill" else self.spec
        if stage == "adversarial" and self.start is not None:
            spec = replace(self.start.spec, size_hw=self.config.size)
        check_size(spec.backbone, spec.size_hw)
        architecture, settings = find_backbone(spec.backbone), getattr(self.config, stage)
        share = len(distributed.local_slots(settings.batch))
        if share % settings.accumulate:
            raise UsageError(
                f"{stage}: a process's {share} images make no {settings.accumulate} equal parts to accumulate"
            )
        part = (
            share // settings.accumulate
            if distributed.size() == 1
            else settings.batch // settings.accumulate
        )
        if not architecture.has_norms:
            return
        if spec.norm == "batch" and distributed.size() > 1 and self.device.type != "cuda":
            raise UsageError(
                f"{stage}: trainable normalization cannot be shared among processes on a CPU; train in one "
                "process, or freeze it (norm=frozen, with --init FILE)"
            )
        if spec.norm == "batch" and part < 2:
            raise UsageError(
                f"{stage}: trainable normalization needs 2 or more images at a time; found {part}; "
                f"give --batch {2 * settings.accumulate}"
            )
        if spec.norm == "frozen" and stage != "adversarial":
            if self.init is None:
                remedy = "give --init FILE with ImageNet weights, or let norm be batch"
            elif not architecture.fully_pretrained:
                remedy = (
                    f"ImageNet weights of {spec.backbone} leave a part out, so let norm be batch"
                )
            else:
                return
            raise UsageError(
                f"{stage}: frozen normalization over random weights cannot learn; {remedy}"
            )


def initial_norm(config: RunConfig) -> str:
    """Return the normalization of a network that starts from `init`."""
    if config.norm != "auto":
        return config.norm
    architecture = find_backbone(config.backbone)
    # Only what a file supplied can be frozen, and some ImageNet weights leave out a pyramid or decoder.
    supplied = config.init != "none" and architecture.fully_pretrained
    return "frozen" if supplied or not architecture.has_norms else "batch"
