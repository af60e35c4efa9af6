"""SYNTHIA-RAND-CITYSCAPES: `RGB/0000000.png` with `GT/LABELS/0000000.png`.

The labels are 16-bit RGB PNGs: the **red** channel holds the class, green the instance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.images import read_raw
from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.data.base import FrameDataset, files_by_stem, need_pairs, pair_up
from fada_deploy.data.label_files import table_reader

LAYOUT = "RGB/0000000.png … and GT/LABELS/0000000.png … (16-bit PNG, the class in its red channel)"
PUBLISHED = "It is published at https://synthia-dataset.net as SYNTHIA-RAND-CITYSCAPES."
SPLITS = ("train",)
# Class → Cityscapes trainId; the others are ignored.
TRAIN_IDS = {1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 17: 12,
             19: 15, 21: 3}  # fmt: skip
ALL_IDS = range(23)


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open all pairs; `root` may also be the folder above, which the archive unpacks into."""
    if split not in SPLITS:
        raise UsageError(f"synthia has no split {split!r}; it has {', '.join(SPLITS)}")
    if (root / "RAND_CITYSCAPES").is_dir():
        root = root / "RAND_CITYSCAPES"
    pairs, left_out = pair_up(files_by_stem(root / "RGB"), files_by_stem(root / "GT" / "LABELS"))
    names = {c.train_id: c.name for c in CITYSCAPES_19.classes}
    ids = {number: names[train_id] for number, train_id in TRAIN_IDS.items()}
    return FrameDataset(
        "synthia", split, space, need_pairs(pairs, str(root), LAYOUT, left_out),
        table_reader(ids, space, known=ALL_IDS, read_ids=read_red), left_out=left_out,
    )  # fmt: skip


def read_red(path: Path) -> NDArray[np.integer[Any]]:
    """Return the red channel of a 16-bit RGB image, (H, W) uint16; raise `DataError` for any other image."""
    image = read_raw(path)
    if image.dtype != np.uint16 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(
            f"{path}: is no 16-bit RGB image (shape {image.shape}, {image.dtype}), so its classes are lost; "
            "unpack the published archive again, or describe your own labels in a .toml file"
        )
    # OpenCV's order is blue, green, red.
    return np.ascontiguousarray(image[..., 2], np.uint16)
