"""GTA5 (Playing for Data): `images/00001.png` with `labels/00001.png`.

The labels are palette PNGs whose **index is the Cityscapes labelId**.
"""

from __future__ import annotations

from pathlib import Path

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data.base import FrameDataset, files_by_stem, need_pairs, pair_up
from fada_deploy.data.label_files import ALL_LABEL_IDS, LABEL_IDS, table_reader

LAYOUT = "images/00001.png … and labels/00001.png … (palette PNG of Cityscapes labelIds)"
PUBLISHED = "It is published at https://download.visinf.tu-darmstadt.de/data/from_games/."
SPLITS = ("train",)
# As published, these two labels are of another size than their frames.
DIFFERENT_SIZES = frozenset({"15188", "17705"})


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open all pairs but the two known to be bad; some copies miss a few labels, whose frames are left out."""
    if split not in SPLITS:
        raise UsageError(f"gta5 has no split {split!r}; it has {', '.join(SPLITS)}")
    found, left_out = pair_up(files_by_stem(root / "images"), files_by_stem(root / "labels"))
    pairs = [pair for pair in found if pair.image.stem not in DIFFERENT_SIZES]
    different = [pair.image for pair in found if pair.image.stem in DIFFERENT_SIZES]
    left_out |= dict.fromkeys(different, "published with labels of another size")
    return FrameDataset(
        "gta5", split, space, need_pairs(pairs, str(root), LAYOUT, left_out),
        table_reader(LABEL_IDS, space, known=ALL_LABEL_IDS), left_out=left_out,
    )  # fmt: skip
