"""GTA5 (Playing for Data): `images/00001.png` with `labels/00001.png`.

Labels are palette PNGs whose **palette index is the Cityscapes labelId**.
"""

from __future__ import annotations

from pathlib import Path

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.data.base import FrameDataset, files_by_stem, pair_by_stem, require_pairs
from fada_deploy.data.label_files import ALL_LABEL_IDS, LABEL_IDS, table_reader

LAYOUT = "images/00001.png … and labels/00001.png … (palette PNG of Cityscapes labelIds)"
DOWNLOAD = "https://download.visinf.tu-darmstadt.de/data/from_games/"
SPLITS = ("train",)
# In the published archive these labels and their frames differ in size.
DIFFERENT_SIZES = frozenset({"15188", "17705"})


def open_split(root: Path, split: str, space: LabelSpace) -> FrameDataset:
    """Open all pairs except the two whose published sizes differ.

    Frames without labels, which some copies contain, are skipped.
    """
    if split not in SPLITS:
        raise UsageError(f"gta5 has no split {split!r}; use {', '.join(SPLITS)}")
    all_pairs, skipped = pair_by_stem(
        files_by_stem(root / "images"), files_by_stem(root / "labels")
    )
    pairs = [pair for pair in all_pairs if pair.image.stem not in DIFFERENT_SIZES]
    different = [pair.image for pair in all_pairs if pair.image.stem in DIFFERENT_SIZES]
    skipped |= dict.fromkeys(different, "published with labels of another size")
    return FrameDataset(
        "gta5", split, space, require_pairs(pairs, str(root), LAYOUT, skipped),
        table_reader(LABEL_IDS, space, known=ALL_LABEL_IDS), skipped_files=skipped,
    )  # fmt: skip
