"""The data of a run: its target, what its source shows, and a fingerprint that a resumed run must match."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data import DATASETS, NAMES, open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.recordings import open_recordings
from fada_deploy.data.statistics import compute_statistics, load_statistics, save_statistics
from fada_deploy.training.config import RunConfig


def open_target(
    config: RunConfig,
    cache: Path,
    space: LabelSpace,
    say: Callable[[str], None],
    left_out: Callable[[DataError], None],
) -> tuple[FrameDataset, FrameDataset | None]:
    """Return the target's training frames and, where there are any, its held-out frames."""
    root = None if config.tgt_root is None else Path(config.tgt_root)
    path = Path(config.tgt)
    # A data set's name means the data set, also where a folder of that name lies about.
    if config.tgt not in DATASETS and path.suffix != ".toml":
        if not path.exists():
            known = ", ".join(NAMES)
            raise UsageError(
                f"no target {config.tgt!r}: it is a data set ({known}), a .toml file, a video or a folder, and "
                "must be where it was while its run goes on"
            )
        if (path / "leftImg8bit").is_dir():
            raise UsageError(f"{path} holds Cityscapes; say --tgt cityscapes --tgt-root {path}")
        mask = None if config.ego_mask is None else Path(config.ego_mask)
        train_set, held_out = open_recordings(
            path, cache=cache, space=space, ego_mask=mask, say=say, left_out=left_out
        )
        return train_set, held_out if len(held_out) else None
    if config.ego_mask is not None:
        raise UsageError(
            "--ego-mask is for recordings; a custom data set names its own, [labels] ego_mask"
        )
    train_set = open_dataset(config.tgt, root, split="train", space=space)
    try:
        return train_set, open_dataset(config.tgt, root, split="val", space=space)
    except (DataError, UsageError) as error:
        say(f"no validation split, so nothing is scored: {error}")
        return train_set, None


def labeled_pair(config: RunConfig, space: LabelSpace) -> list[FrameDataset]:
    """Return the labeled frames of both domains: source train, target val; raise `UsageError` without."""
    if config.tgt not in DATASETS and not config.tgt.endswith(".toml"):
        raise UsageError(
            f"the target {config.tgt} is recordings without labels; centers need labels of both domains"
        )
    found = [
        open_dataset(name, None if root is None else Path(root), split=split, space=space)
        for name, root, split in (
            (config.src, config.src_root, "train"),
            (config.tgt, config.tgt_root, "val"),
        )
    ]
    for dataset in found:
        if not dataset.labeled:
            raise UsageError(
                f"{dataset.name} {dataset.split}: has no labels; centers need labels of both domains"
            )
    return found


def _tell(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def class_contents(
    dataset: FrameDataset, say: Callable[[str], None] = _tell
) -> tuple[NDArray[np.bool_], dict[str, None]]:
    """Return which file holds which class, (N, K) bool, and a line for each file that cannot be used.

    A bad file holds nothing, so that class-balanced sampling never draws it. What `fada data check` or
    an earlier run counted in the same files is taken from the cache.
    """
    statistics = load_statistics(dataset)
    if statistics is None:
        with tqdm(
            total=len(dataset), desc="source classes", unit="file", disable=None, file=sys.stderr
        ) as bar:
            statistics = compute_statistics(dataset, frames=False, progress=bar.update)
        save_statistics(dataset, statistics, say)
    bad = dict.fromkeys(statistics.bad.values())
    if len(statistics.bad) == len(dataset):
        raise DataError(f"no source label can be used, the first: {next(iter(bad))}")
    return statistics.contents, bad


def fingerprint(dataset: FrameDataset) -> str:
    """Return a hash of the frames' names in order and of the label space.

    Pseudo-labels and class statistics are kept by a frame's number, so a data set that gained or lost
    a frame is another data set.
    """
    digest = hashlib.sha256(repr(dataset.space.to_dict()).encode())
    for pair in dataset.pairs:
        digest.update(f"{pair.image.parent.name}/{pair.image.name}\n".encode())
    return digest.hexdigest()
