"""The target of a run, its labeled domains, and the fingerprint of a data set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from fada_deploy.common.errors import DataError, FadaError, UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data import DATASETS, NAMES, open_dataset
from fada_deploy.data.base import FrameDataset
from fada_deploy.data.recordings import open_recordings
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.sources import open_source

_TGT_USAGE = "--tgt {name} --tgt-root {root}"

logger = logging.getLogger(__name__)


def open_target(
    config: RunConfig, cache: Path, space: LabelSpace, on_error: Callable[[DataError], None]
) -> tuple[FrameDataset, FrameDataset | None]:
    """Open the target of a run: its training frames and its held-out frames, None if it has none.

    The target is a known data set, a TOML file, a video, or a folder of videos or images. Frames of
    videos are extracted into the folder `cache`. `on_error` receives one error for each recording
    that cannot be used.

    Raise `DataError` if the target does not exist, `UsageError` if its name is unknown or an option
    does not apply to it.
    """
    if not is_recording(config):
        return _open_labeled_target(config, space)
    require_target(config)
    path = Path(config.tgt)
    if (path / "leftImg8bit").is_dir():
        raise UsageError(f"{path} is a copy of Cityscapes; use --tgt cityscapes --tgt-root {path}")
    ego_mask = None if config.ego_mask is None else Path(config.ego_mask)
    train_set, held_out = open_recordings(
        path, cache=cache, space=space, ego_mask=ego_mask, on_error=on_error
    )
    return train_set, held_out if len(held_out) else None


def require_target(config: RunConfig) -> None:
    """Raise `missing_target` if the target is a path that does not exist.

    Raise `UsageError` if there is a folder of a data set for a target of recordings. Unlike
    `open_target`, this takes no time, so it can come before the sources are rendered.
    """
    if config.tgt not in DATASETS and not Path(config.tgt).exists():
        raise missing_target(config.tgt)
    if config.tgt_root is not None and is_recording(config):
        raise UsageError("--tgt-root is the folder of a data set; recordings are named by --tgt")


def missing_target(name: str) -> FadaError:
    """Return the error for a target that does not exist: a missing path or an unknown name."""
    if "/" in name or Path(name).suffix:
        return DataError(
            f"{name}: no such file or folder; the target must stay in place until the run is "
            "finished"
        )
    return UsageError(
        f"no target {name!r}; a target is a data set ({', '.join(NAMES)}), a .toml file, a video "
        "or a folder"
    )


def is_recording(config: RunConfig) -> bool:
    """Return whether the target of a run is a video or a folder, and no data set."""
    # The name of a data set always means the data set, even if a folder of that name exists.
    return config.tgt not in DATASETS and not config.tgt.endswith(".toml")


def _open_labeled_target(
    config: RunConfig, space: LabelSpace
) -> tuple[FrameDataset, FrameDataset | None]:
    if config.ego_mask is not None:
        raise UsageError(
            "--ego-mask applies to recordings only; a custom data set sets ego_mask in its [labels]"
        )
    root = None if config.tgt_root is None else Path(config.tgt_root)
    train_set = open_dataset(config.tgt, root, split="train", space=space, usage=_TGT_USAGE)
    try:
        return train_set, open_dataset(config.tgt, root, split="val", space=space)
    except (DataError, UsageError) as error:
        logger.warning("the target has no validation split, so no stage will be scored: %s", error)
        return train_set, None


def open_labeled_domains(config: RunConfig, space: LabelSpace) -> list[FrameDataset]:
    """Open the labeled frames of both domains: the first source and the target's `val` split.

    Raise `UsageError` if one of them has no labels.
    """
    if is_recording(config):
        raise UsageError(
            f"the target {config.tgt} consists of recordings without labels; "
            "class centers need labels of both domains"
        )
    root = None if config.tgt_root is None else Path(config.tgt_root)
    domains = [
        open_source(config.sources[0], config, space),
        open_dataset(config.tgt, root, split="val", space=space),
    ]
    for dataset in domains:
        if not dataset.labeled:
            raise UsageError(
                f"{dataset.name} {dataset.split}: has no labels; "
                "class centers need labels of both domains"
            )
    return domains


def fingerprint(dataset: FrameDataset) -> str:
    """Return a SHA-256 of the ordered file names and the label space of a data set.

    Pseudo-labels and class counts are stored by frame index, so a resumed run must see exactly the
    frames that it started with.
    """
    digest = hashlib.sha256(repr(dataset.space.to_dict()).encode())
    for pair in dataset.pairs:
        digest.update(os.fsencode(f"{pair.image.parent.name}/{pair.image.name}\n"))
    return digest.hexdigest()


def size_fingerprint(datasets: Mapping[str, FrameDataset]) -> str:
    """Return a SHA-256 of the sizes of the files of data sets, in their order.

    The keys are the domains; labels of the target do not count, because they are never read. Unlike
    times, sizes do not change when a data set is copied. A file that is missing has the size −1.
    """
    digest = hashlib.sha256()
    for domain, dataset in datasets.items():
        for pair in dataset.pairs:
            files = [pair.image]
            if domain != "target" and pair.labels is not None:
                files.append(pair.labels)
            digest.update(repr([_size(path) for path in files]).encode())
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
