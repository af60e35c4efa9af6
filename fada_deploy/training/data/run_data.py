"""The data of a run: its sources and target, and the loaders of its stages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError
from fada_deploy.common.files import atomic_path, write_text
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.runs import TARGET_FRAMES
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.cache import FrameCache
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.augmentation import get_augmentation
from fada_deploy.training.data.datasets import open_target, require_target
from fada_deploy.training.data.loader import MAX_CONSECUTIVE_BAD, Batch, BatchLoader, WaitTimer
from fada_deploy.training.data.samplers import EvenSampler, Sampler, ShuffledSampler
from fada_deploy.training.data.samples import (
    CroppedSourceSamples,
    PseudoLabeledSamples,
    SourceSamples,
    TargetSamples,
)
from fada_deploy.training.data.source_check import (
    SOURCE_CLASSES,
    SOURCES,
    SourceRow,
    check_sources,
    check_validation,
    read_class_pixels,
)
from fada_deploy.training.data.sources import SourceFrames, open_sources
from fada_deploy.training.data.style import STYLES, StyleTransfer
from fada_deploy.training.distributed import world_size
from fada_deploy.training.stage_config import (
    DistillStage,
    SelfTrainingStage,
    SizeHW,
    Stage,
    TranslationStage,
)

# Frames in a batch where the whole target is predicted.
_WHOLE_TARGET_BATCH = 4

# Pixels of each class in each source file, the rows of the table, and an error line for each file
# that cannot be used.
CheckedSources = tuple[NDArray[np.int64], list[SourceRow], dict[str, None]]

Samples = SourceSamples | CroppedSourceSamples | TargetSamples | PseudoLabeledSamples
# The data loaders, each of which derives its own seed from the seed of the run by its position.
_LOADERS = (
    "source",
    "adversarial",
    "target",
    "distill",
    "selftrain",
    "selftrain-target",
    "distill-source",
    "translation",
    "translation-target",
)


def whole_target_loader(
    frames: FrameDataset, size_hw: SizeHW, device: torch.device, *, ahead: int = 3
) -> BatchLoader:
    """Return a loader of unaugmented target frames, in their order."""
    samples = TargetSamples(frames, size_hw)
    return BatchLoader(
        samples, EvenSampler(len(frames)), batch=_whole_target_batch(), seed=0, device=device,
        ego=samples.ego, ahead=ahead,
    )  # fmt: skip


def whole_target_batches(frames: FrameDataset) -> int:
    """Return after how many batches of `whole_target_loader` all frames were loaded."""
    return -(-len(frames) // _whole_target_batch())


def _whole_target_batch() -> int:
    """Return the global batch size, a multiple of the number of processes."""
    return max(_WHOLE_TARGET_BATCH, world_size()) // world_size() * world_size()


def _file_names(frames: FrameDataset) -> Callable[[int], str]:
    return lambda index: str(frames.pairs[index].image)


def _require_readable(frames: FrameDataset) -> None:
    """Raise `DataError` if none of a few frames of the target can be read.

    Otherwise the error would come after the training on the source.
    """
    step = max(1, len(frames) // MAX_CONSECUTIVE_BAD)
    errors = []
    for index in range(0, len(frames), step):
        try:
            frames.image(index)
        except DataError as error:
            errors.append(error)
        else:
            return
    raise DataError(
        f"none of {len(errors)} frames of the target can be read; the first: {errors[0]}"
    )


class RunData:
    """The frames of a run, and loaders of batches for its stages.

    Attributes:
        sources: The labeled sources; None if no stage needs them.
        tgt_frames: The target's training frames.
        val_frames: The target's held-out frames; None if it has none.
        timer: The time for which the stages have waited for batches.
        bad_files: One error line for each file that could not be used, as an ordered set.

    Raise `FadaError` if the data cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        space: LabelSpace,
        device: torch.device,
        *,
        cache: FrameCache | None = None,
    ) -> None:
        self._config, self._folder, self._device = config, folder, device
        self._cache, self.timer = cache, WaitTimer()
        self.augmentation = get_augmentation(config.augment)
        self.bad_files: dict[str, None] = {}
        self.sources: SourceFrames | None = None
        checked: CheckedSources | None = None
        require_target(config)
        if config.needs_source:
            self.sources = open_sources(config, space)
            # Before the frames of the target are extracted.
            checked = self._check_sources(self.sources)
        self.tgt_frames, self.val_frames = open_target(
            config, folder / TARGET_FRAMES, space, self._add_bad_file
        )
        if self.val_frames is not None and self.val_frames.labeled:
            check_validation(self.val_frames)
        _require_readable(self.tgt_frames)
        self.tgt_frames = replace(self.tgt_frames, cache=cache)
        if self.sources is not None:
            self.use_sources(self.sources.frames)
        # Last: a run that cannot be trained leaves no files.
        if checked is not None:
            self._write_source_files(*checked)

    @property
    def _colors_later(self) -> bool:
        """Whether loaders change the colors of a batch, which a GPU does faster than the host."""
        return self._device.type != "cpu"

    @property
    def _style(self) -> StyleTransfer | None:
        name = self._config.style
        return StyleTransfer(name, self.tgt_frames) if name in STYLES else None

    @property
    def datasets(self) -> dict[str, FrameDataset]:
        """The training frames by the name of their domain."""
        datasets = {"target": self.tgt_frames}
        if self.sources is not None:
            datasets = {"source": self.sources.frames, **datasets}
        return datasets

    @property
    def labeled_sources(self) -> tuple[FrameDataset, ...]:
        """The sources one by one, with the labels of their own files."""
        return () if self.sources is None else self.sources.datasets

    def source_loader(
        self, name: str, stage: Stage, *, size_hw: SizeHW, mirror: float = 0.0
    ) -> BatchLoader:
        """Return a loader of labeled source frames, class-balanced within each source."""
        sources = self._require_sources()
        samples = SourceSamples(
            sources.frames, size_hw, stage.jitter, mirror, self.augmentation, self._style,
            colors_later=self._colors_later,
        )  # fmt: skip
        temperature = stage.rare_class_temperature if isinstance(stage, SelfTrainingStage) else 0.0
        sampler = sources.sampler(self.class_pixels(), self.seed(name), temperature=temperature)
        return self._loader(samples, sampler, name, stage)

    def target_loader(self, name: str, stage: Stage) -> BatchLoader:
        """Return a loader of target frames; their labels are never read."""
        samples = TargetSamples(self.tgt_frames, self._config.size, self.augmentation)
        return self._loader(samples, self._shuffled(name), name, stage)

    def translation_loaders(self, stage: TranslationStage) -> tuple[BatchLoader, BatchLoader]:
        """Return loaders of unaugmented source and target frames, each in random order."""
        loaders = []
        for name, frames, size_hw in (
            ("translation", self._require_sources().frames, self._config.src_size),
            ("translation-target", self.tgt_frames, self._config.size),
        ):
            loader = BatchLoader(
                # Frames that are read for this only are not cached.
                TargetSamples(replace(frames, cache=None), size_hw),
                ShuffledSampler(len(frames), self.seed(name)),
                batch=stage.batch, seed=self.seed(name), device=self._device, timer=self.timer,
                file=_file_names(frames),
            )  # fmt: skip
            loaders.append(loader)
        return loaders[0], loaders[1]

    def use_sources(self, frames: FrameDataset) -> None:
        """Read other images of the same source frames from now on."""
        self.sources = replace(self._require_sources(), frames=replace(frames, cache=self._cache))

    def whole_target(self) -> Iterator[Batch]:
        """Yield every target frame about once, unaugmented; processes divide them."""
        loader = whole_target_loader(self.tgt_frames, self._config.size, self._device)
        with closing(loader):
            for iteration in range(whole_target_batches(self.tgt_frames)):
                yield loader[iteration]

    def pseudo_label_loader(self, folder: Path, stage: DistillStage) -> BatchLoader:
        """Return a loader of target frames with their pseudo-labels in `folder`."""
        samples = PseudoLabeledSamples(
            self.tgt_frames, folder, stage, self.augmentation, colors_later=self._colors_later
        )
        return self._loader(samples, self._shuffled("distill"), "distill", stage)

    def distill_source_loader(self, stage: DistillStage) -> BatchLoader:
        """Return a loader of labeled source frames that are cropped as the target's are."""
        sources, name = self._require_sources(), "distill-source"
        samples = CroppedSourceSamples(
            sources.frames, stage, self.augmentation, self._style, colors_later=self._colors_later
        )
        return self._loader(
            samples, sources.sampler(self.class_pixels(), self.seed(name)), name, stage
        )

    def first_source_batches(self, count: int = 16) -> Iterator[Batch]:
        """Yield the adversarial stage's first source batches."""
        stage = self._config.adversarial
        with closing(
            self.source_loader("adversarial", stage, size_hw=self._config.src_size)
        ) as loader:
            for iteration in range(count):
                yield loader[iteration]

    def seed(self, loader: str) -> int:
        """Return the seed of a loader."""
        sequence = np.random.SeedSequence([self._config.seed, _LOADERS.index(loader)])
        return int(sequence.generate_state(1)[0])

    def _loader(self, samples: Samples, sampler: Sampler, name: str, stage: Stage) -> BatchLoader:
        frames = samples.frames
        return BatchLoader(
            samples, sampler, batch=stage.batch, seed=self.seed(name), device=self._device,
            file=_file_names(frames),
            ego=samples.ego, class_weights=self._class_weights(stage), timer=self.timer,
        )  # fmt: skip

    def _shuffled(self, name: str) -> Sampler:
        return ShuffledSampler(len(self.tgt_frames), self.seed(name))

    def _require_sources(self) -> SourceFrames:
        assert self.sources is not None, "see RunConfig.needs_source"
        return self.sources

    def class_pixels(self) -> NDArray[np.int64]:
        """Return the pixels of each class in each source file, (N, K)."""
        return read_class_pixels(self._folder / SOURCE_CLASSES)

    def _check_sources(self, sources: SourceFrames) -> CheckedSources | None:
        """Check the sources' labels, unless the run has their table."""
        if (self._folder / SOURCE_CLASSES).is_file():
            with suppress(OSError, ValueError, AttributeError, TypeError):
                document = json.loads((self._folder / SOURCES).read_text("utf-8"))
                self.bad_files |= dict.fromkeys(document.get("errors", ()))
            return None
        pixels, errors, rows = check_sources(
            sources.datasets, allowed_ignored=self._config.allow_ignored
        )
        self.bad_files |= errors
        return pixels, rows, errors

    def _write_source_files(
        self, pixels: NDArray[np.int64], rows: list[SourceRow], errors: dict[str, None]
    ) -> None:
        """Store the table of the sources, and the pixels of each class in each of their files."""
        document = {
            "num_classes": pixels.shape[1],
            "sources": [asdict(row) for row in rows],
            "errors": list(errors),
        }
        write_text(self._folder / SOURCES, json.dumps(document, indent=2))
        with atomic_path(self._folder / SOURCE_CLASSES) as temporary:
            np.savez_compressed(temporary, pixels=pixels)

    def _class_weights(self, stage: Stage) -> NDArray[np.float32] | None:
        """Return the weights of the classes in the segmentation loss; None for equal ones."""
        if stage.class_weights == "none" or self.sources is None:
            return None
        return self.sources.class_weights(self.class_pixels())

    def _add_bad_file(self, error: DataError) -> None:
        self.bad_files[str(error)] = None
