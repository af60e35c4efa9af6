"""Cityscapes: `leftImg8bit/{split}/{city}/*_leftImg8bit.png` with `gtFine/…_labelIds.png`."""

from __future__ import annotations

from pathlib import Path

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data.base import FrameDataset, Pair, require_pairs
from fada_deploy.data.label_files import ALL_LABEL_IDS, LABEL_IDS, table_reader

LAYOUT = (
    "leftImg8bit/{train,val}/{city}/*_leftImg8bit.png and "
    "gtFine/{train,val}/{city}/*_gtFine_labelIds.png"
)
DOWNLOAD = "https://www.cityscapes-dataset.com (needs a registration)"
SPLITS = ("train", "val", "test")
_FRAME, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open a split; frames without labels are included, because adaptation needs none."""
    if split not in SPLITS:
        raise UsageError(f"cityscapes has no split {split!r}; use one of {', '.join(SPLITS)}")
    pairs = []
    for image in sorted((root / "leftImg8bit" / split).glob(f"*/*{_FRAME}")):
        city = image.parent.name
        labels = root / "gtFine" / split / city / (image.name.removesuffix(_FRAME) + _LABELS)
        pairs.append(Pair(image, labels if labels.is_file() else None, city))
    require_pairs(pairs, f"{root} ({split})", LAYOUT)
    return FrameDataset(
        "cityscapes", split, space, pairs, table_reader(LABEL_IDS, space, known=ALL_LABEL_IDS)
    )
