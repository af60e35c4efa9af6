"""Cross-City (NTHU): four cities with unlabeled frames to adapt to and 100 labeled frames to score.

`{City}/Images/Train/pano_00002_2_180.jpg`, `{City}/Images/Test/…` and
`{City}/Labels/Test/…_eval.png`. Labels are Cityscapes labelIds of 13 classes.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_13, LabelSpace
from fada_deploy.data.base import FrameDataset, Pair, files_by_stem, pair_by_stem, require_pairs
from fada_deploy.data.label_files import ALL_LABEL_IDS, table_reader

CITIES = {f"crosscity-{city.lower()}": city for city in ("Rio", "Rome", "Tokyo", "Taipei")}
LAYOUT = (
    "{City}/Images/{Train,Test}/*.jpg or *.png and {City}/Labels/Test/*_eval.png, "
    "where {City} is Rio, Rome, …"
)
DOWNLOAD = "https://yihsinchen.github.io/segmentation_adaptation/"
SPLITS = ("train", "val", "test")
_FRAMES = (".jpg", ".jpeg", ".png")
_LABELS = "_eval"


def open_split(root: Path, split: str, space: LabelSpace, *, name: str) -> FrameDataset:
    """Open a split of a city: `train` has no labels; `val` and `test` are its labeled test frames.

    `root` is the folder of a city, or the folder of all cities.
    """
    if split not in SPLITS:
        raise UsageError(f"{name} has no split {split!r}; use one of {', '.join(SPLITS)}")
    folder = _city_folder(root, CITIES[name])
    part = "Train" if split == "train" else "Test"
    images = files_by_stem(folder / "Images" / part, _FRAMES)
    skipped: dict[Path, str] = {}
    pairs = [Pair(image) for image in images.values()]
    if split != "train":
        pairs, skipped = pair_by_stem(images, _label_files(folder / "Labels" / part))
    ids = {c.label_id: c.name for c in CITYSCAPES_13.classes}
    return FrameDataset(
        name, split, space, require_pairs(pairs, f"{folder} ({split})", LAYOUT, skipped),
        table_reader(ids, space, known=ALL_LABEL_IDS), skipped_files=skipped,
    )  # fmt: skip


def _city_folder(root: Path, city: str) -> Path:
    if (root / city).is_dir():
        return root / city
    others = sorted(path.name for path in root.iterdir() if path.name in CITIES.values())
    if others:
        raise DataError(f"{root}: contains {', '.join(others)}, but no folder {city}")
    return root


def _label_files(folder: Path) -> dict[str, Path]:
    paths = files_by_stem(folder)
    # If a frame has labels with and without "_eval", the file with "_eval" contains the ids.
    plain = {stem: path for stem, path in paths.items() if not stem.endswith(_LABELS)}
    return plain | {
        s.removesuffix(_LABELS): path for s, path in paths.items() if s.endswith(_LABELS)
    }


READERS = {name: partial(open_split, name=name) for name in CITIES}
