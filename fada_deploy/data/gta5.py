"""GTA5 (Playing for Data): `images/00001.png` with `labels/00001.png`.

The labels are palette PNGs whose **index is the Cityscapes labelId**.
"""

from __future__ import annotations

from pathlib import Path

from fada_deploy.common.errors import UsageError
from fada_deploy.common.labels import CITYSCAPES_19, LabelSpace
from fada_deploy.data.base import FrameDataset, Pair, need_pairs, table_reader

LAYOUT = "images/00001.png … and labels/00001.png … (palette PNG of Cityscapes labelIds)"
PUBLISHED = "It is published at https://download.visinf.tu-darmstadt.de/data/from_games/."
SPLITS = ("train",)
# As published, these two labels are of another size than their frames.
DIFFERENT_SIZES = frozenset({"15188", "17705"})


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open all pairs but the two known to be bad; some copies miss a few labels, whose frames are left out."""
    if split not in SPLITS:
        raise UsageError(f"gta5 has no split {split!r}; it has {', '.join(SPLITS)}")
    images = sorted((root / "images").glob("*.png"))
    found = [Pair(i, root / "labels" / i.name) for i in images if (root / "labels" / i.name).is_file()]
    pairs = [pair for pair in found if pair.image.stem not in DIFFERENT_SIZES]
    ids = {c.label_id: c.name for c in CITYSCAPES_19.classes}
    return FrameDataset(
        "gta5", split, space, need_pairs(pairs, str(root), LAYOUT), table_reader(space.from_ids(ids))
    )
