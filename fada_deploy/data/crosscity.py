"""Cross-City (NTHU): four cities, unlabeled frames to adapt to and a hundred labeled ones to score on.

`{City}/Images/Train/pano_00002_2_180.jpg`, `{City}/Images/Test/…` and `{City}/Labels/Test/…_eval.png`,
which hold Cityscapes labelIds of 13 classes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_13, LabelSpace
from fada_deploy.data.base import FrameDataset, Pair, files_by_stem, need_pairs, pair_up
from fada_deploy.data.label_files import ALL_LABEL_IDS, table_reader

CITIES = {f"crosscity-{city.lower()}": city for city in ("Rio", "Rome", "Tokyo", "Taipei")}
LAYOUT = "{City}/Images/{Train,Test}/*.jpg or *.png and {City}/Labels/Test/*_eval.png; {City} is Rio, Rome, …"
PUBLISHED = "It is published at https://yihsinchen.github.io/segmentation_adaptation/."
SPLITS = ("train", "val", "test")
_FRAMES = (".jpg", ".jpeg", ".png")
_LABELS = "_eval"


def open_split(root: Path, split: str, space: LabelSpace, *, name: str) -> FrameDataset:
    """Open a city's split; `train` has no labels, `val` and `test` are its labeled test frames.

    `root` is the folder of the cities, or the city's own.
    """
    if split not in SPLITS:
        raise UsageError(f"{name} has no split {split!r}; it has {', '.join(SPLITS)}")
    folder = root / CITIES[name] if (root / CITIES[name]).is_dir() else root
    others = (
        sorted(p.name for p in root.iterdir() if p.name in CITIES.values())
        if folder == root
        else []
    )
    if others:
        raise DataError(f"{root}: holds no {CITIES[name]}; found {', '.join(others)}")
    part = "Train" if split == "train" else "Test"
    images = files_by_stem(folder / "Images" / part, _FRAMES)
    left_out: dict[Path, str] = {}
    pairs = [Pair(image) for image in images.values()]
    if split != "train":
        pairs, left_out = pair_up(images, _labels(folder / "Labels" / part))
    ids = {c.label_id: c.name for c in CITYSCAPES_13.classes}
    return FrameDataset(
        name, split, space, need_pairs(pairs, f"{folder} ({split})", LAYOUT, left_out),
        table_reader(ids, space, known=ALL_LABEL_IDS), left_out=left_out,
    )  # fmt: skip


def _labels(folder: Path) -> dict[str, Path]:
    found = files_by_stem(folder)
    # Where a copy holds a frame's labels under both names, `_eval` is the one with ids.
    plain = {stem: path for stem, path in found.items() if not stem.endswith(_LABELS)}
    return plain | {
        s.removesuffix(_LABELS): path for s, path in found.items() if s.endswith(_LABELS)
    }


READERS = {name: partial(open_split, name=name) for name in CITIES}
