"""Cityscapes: `leftImg8bit/{split}/{city}/*_leftImg8bit.png` with `gtFine/…_gtFine_labelIds.png`."""

from __future__ import annotations

from pathlib import Path

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data.base import FrameDataset, Pair, need_pairs
from fada_deploy.data.label_files import ALL_LABEL_IDS, LABEL_IDS, table_reader

LAYOUT = "leftImg8bit/{train,val}/{city}/*_leftImg8bit.png and gtFine/{train,val}/{city}/*_gtFine_labelIds.png"
PUBLISHED = "It is published at https://www.cityscapes-dataset.com (registration needed)."
SPLITS = ("train", "val", "test")
_FRAME, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open a split; the frames of `train` may come without labels, since adaptation reads none."""
    if split not in SPLITS:
        raise UsageError(f"cityscapes has no split {split!r}; it has {', '.join(SPLITS)}")
    pairs = []
    for image in sorted((root / "leftImg8bit" / split).glob(f"*/*{_FRAME}")):
        city = image.parent.name
        labels = root / "gtFine" / split / city / (image.name.removesuffix(_FRAME) + _LABELS)
        pairs.append(Pair(image, labels if labels.is_file() else None, city))
    need_pairs(pairs, f"{root} ({split})", LAYOUT)
    return FrameDataset(
        "cityscapes", split, space, pairs, table_reader(LABEL_IDS, space, known=ALL_LABEL_IDS)
    )
