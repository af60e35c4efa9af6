"""The labeled sources of a run, opened as one data set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import cache_folder, lock
from fada_deploy.common.label_space import IGNORE, LabelSpace
from fada_deploy.common.system import usable_cores
from fada_deploy.data import open_dataset
from fada_deploy.data.base import FrameDataset, LabelReader
from fada_deploy.synth.dataset import RENDERER_VERSION, write_source
from fada_deploy.training.config import RENDERED, RunConfig, Source
from fada_deploy.training.data.samplers import (
    ClassBalancedSampler,
    MixtureSampler,
    RareClassSampler,
    Sampler,
)
from fada_deploy.training.stage_config import SizeHW

# How a user names the folder of a source.
SRC_USAGE = "--src {name} --src-root {root}"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SourceFrames:
    """The frames of all sources.

    Attributes:
        frames: The frames of all sources, one source after the other.
        datasets: The sources.
        weights: Fraction of each batch that each source provides; sums to 1.
    """

    frames: FrameDataset
    datasets: tuple[FrameDataset, ...]
    weights: tuple[float, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of frames of each source."""
        return tuple(map(len, self.datasets))

    def sampler(self, pixels: NDArray[np.int64], seed: int, *, temperature: float = 0.0) -> Sampler:
        """Return a sampler of all sources by their weights, class-balanced within each.

        `pixels` (N, K) counts the pixels of each class in each frame. With a `temperature`, rare
        classes are drawn by `RareClassSampler`.
        """
        samplers: list[Sampler] = [
            RareClassSampler(part, temperature, seed + i)
            if temperature
            else ClassBalancedSampler(part > 0, seed + i)
            for i, part in enumerate(self._split(pixels))
        ]
        if len(samplers) == 1:
            return samplers[0]
        offsets = [0, *accumulate(self.counts[:-1])]
        return MixtureSampler(samplers, offsets, self.weights, seed)

    def class_weights(self, pixels: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return weights ∝ 1 / log(1.02 + p_k) of the classes, (K,) (Paszke et al., 2016, ENet).

        p_k is the fraction of class k among the labeled pixels, averaged over the sources by their
        weights. The class weights are scaled such that Σ p_k w_k = 1. `pixels` (N, K) counts the
        pixels of each class in each frame; some pixel must be labeled.
        """
        fractions = np.zeros(pixels.shape[1])
        for part, weight in zip(self._split(pixels), self.weights, strict=True):
            counts = part.sum(0)
            fractions += weight * counts / counts.sum().clip(min=1)
        weights = 1 / np.log(1.02 + fractions)
        scaled: NDArray[np.float32] = (weights / (fractions @ weights)).astype(np.float32)
        return scaled

    def _split(self, pixels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Split per-frame values (N, …) into those of each source."""
        return np.split(pixels, np.cumsum(self.counts)[:-1])


def open_sources(config: RunConfig, space: LabelSpace) -> SourceFrames:
    """Open the sources of a run; the source `rendered` is rendered on first use.

    Raise `DataError` if a source is missing or has frames without labels.
    """
    datasets = [open_source(source, config, space) for source in config.sources]
    for source, dataset in zip(config.sources, datasets, strict=True):
        missing = [pair.image for pair in dataset.pairs if pair.labels is None]
        if missing:
            raise DataError(
                f"{source.name}: {len(missing)} of {len(dataset)} frames have no labels, for "
                f"example {missing[0]}; a source must be labeled"
            )
    total = sum(source.weight for source in config.sources)
    weights = tuple(source.weight / total for source in config.sources)
    return SourceFrames(_joined(datasets), tuple(datasets), weights)


def open_source(source: Source, config: RunConfig, space: LabelSpace) -> FrameDataset:
    """Open one source of a run; the source `rendered` is rendered on first use."""
    if source.name == RENDERED:
        if source.root is not None and len(config.sources) == 1:
            raise UsageError("--src-root: the source rendered has no folder; leave it out")
        rendered = render_source(config.rendered_scenes, config.src_size)
        dataset = open_dataset("gta5", rendered, split="train", space=space)
        return replace(dataset, name=RENDERED)
    root = None if source.root is None else Path(source.root)
    return open_dataset(source.name, root, split="train", space=space, usage=SRC_USAGE)


# Every run has the same scenes, so that they are rendered once.
_RENDER_SEED = 0


def render_source(count: int, size_hw: SizeHW) -> Path:
    """Return a folder with `count` rendered scenes in the layout of GTA5.

    The scenes are cached for the user by renderer version and size, and rendered on first use.
    Scene `i` is the same for every `count`.
    """
    height, width = size_hw
    name = f"v{RENDERER_VERSION}-{width}x{height}-seed{_RENDER_SEED}-{count}"
    root = cache_folder() / "rendered" / name
    complete = root / "complete"
    if not complete.is_file():
        # Another run, or another machine of this one, may be rendering the same scenes.
        with lock(root, wait=True):
            if complete.is_file():
                return root
            write_source(
                root,
                count,
                size_hw=size_hw,
                seed=_RENDER_SEED,
                jobs=usable_cores(),
                appearance="random",
            )
            complete.touch()
        logger.info("rendered %d scenes into %s", count, root)
    return root


def label_fingerprint(sources: Sequence[FrameDataset]) -> str:
    """Return a SHA-256 of how the labels of sources are read: their encodings and ego masks."""
    digest = hashlib.sha256()
    for dataset in sources:
        digest.update(os.fsencode(repr(dataset.read_labels)))
        if dataset.ego_mask is not None:
            digest.update(repr(dataset.ego_mask.shape).encode() + dataset.ego_mask.tobytes())
    return digest.hexdigest()


def _joined(datasets: Sequence[FrameDataset]) -> FrameDataset:
    """Return the frames of several data sets as one; a single one is returned unchanged."""
    if len(datasets) == 1:
        return datasets[0]
    readers: dict[Path, LabelReader] = {}
    for i, dataset in enumerate(datasets):
        read = dataset.read_labels if dataset.ego_mask is None else _WithoutEgo(dataset)
        own = {pair.labels: read for pair in dataset.pairs if pair.labels is not None}
        for other in datasets[:i]:
            shared = own.keys() & {pair.labels for pair in other.pairs}
            if shared and label_fingerprint([other]) != label_fingerprint([dataset]):
                raise DataError(
                    f"{min(shared)}: two sources read this file with different encodings or ego "
                    "masks; use one of them, or copies of the files"
                )
        readers |= own
    return FrameDataset(
        "+".join(dataset.name for dataset in datasets),
        "train",
        datasets[0].space,
        [pair for dataset in datasets for pair in dataset.pairs],
        _JointReader(readers),
        skipped_files={k: v for dataset in datasets for k, v in dataset.skipped_files.items()},
    )


@dataclass(frozen=True)
class _WithoutEgo:
    """Read labels of a data set with an ego mask, whose pixels are ignored."""

    dataset: FrameDataset

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        labels = self.dataset.read_labels(path)
        mask = self.dataset.ego_mask_at(labels.shape)
        return np.where(mask, np.uint8(IGNORE), labels)


@dataclass(frozen=True, repr=False)
class _JointReader:
    """Read a label file with the reader of the data set that it belongs to."""

    readers: Mapping[Path, LabelReader]

    def __repr__(self) -> str:
        # Part of a cache key, so it must not depend on the number or order of files.
        return f"_JointReader({sorted({repr(reader) for reader in self.readers.values()})})"

    def __call__(self, path: Path) -> NDArray[np.uint8]:
        return self.readers[path](path)
