"""SYNTHIA-RAND-CITYSCAPES: `RGB/0000000.png` with `GT/LABELS/0000000.png`.

Labels are 16-bit RGB PNGs: the **red** channel is the class, green is the instance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import read_raw
from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.data.base import FrameDataset, files_by_stem, pair_by_stem, require_pairs
from fada_deploy.data.label_files import table_reader

LAYOUT = "RGB/0000000.png … and GT/LABELS/0000000.png … (16-bit PNG, the class in its red channel)"
DOWNLOAD = "https://synthia-dataset.net (SYNTHIA-RAND-CITYSCAPES)"
SPLITS = ("train",)
# SYNTHIA class → Cityscapes trainId; the other classes are ignored.
TRAIN_IDS = {
    1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 17: 12,
    19: 15, 21: 3,
}  # fmt: skip
ALL_IDS = range(23)


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open all pairs; `root` is RAND_CITYSCAPES, the folder in the archive, or its parent."""
    if split not in SPLITS:
        raise UsageError(f"synthia has no split {split!r}; use {', '.join(SPLITS)}")
    if (root / "RAND_CITYSCAPES").is_dir():
        root = root / "RAND_CITYSCAPES"
    pairs, skipped = pair_by_stem(
        files_by_stem(root / "RGB"), files_by_stem(root / "GT" / "LABELS")
    )
    names = {c.train_id: c.name for c in CITYSCAPES_19.classes}
    ids = {number: names[train_id] for number, train_id in TRAIN_IDS.items()}
    return FrameDataset(
        "synthia", split, space, require_pairs(pairs, str(root), LAYOUT, skipped),
        table_reader(ids, space, known=ALL_IDS, read_ids=read_red), skipped_files=skipped,
    )  # fmt: skip


def read_red(path: Path) -> NDArray[np.integer[Any]]:
    """Return the red channel of a 16-bit RGB image, (H, W) uint16.

    Raise `DataError` for any other image.
    """
    image = read_raw(path)
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{path}: labels must be a 16-bit RGB image, got shape {image.shape} {image.dtype}, "
            "which has lost the classes; unpack the published archive again, or describe your own "
            "labels in a .toml file"
        )
    # OpenCV returns BGR.
    return np.ascontiguousarray(image[..., 2], np.uint16)
