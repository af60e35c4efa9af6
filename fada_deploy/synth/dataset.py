"""Write rendered scenes where the readers of `data` look for GTA5 and Cityscapes, and a clip to drive through.

`fada data render --out DIR` calls this; so does `fada demo`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import write_png
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.synth.palette_png import write_palette_png
from fada_deploy.synth.scene import render

Progress = Callable[[int], None]
# Seeds of one render: a million for each part, so that no two parts share a town.
PART = 1_000_000
SOURCE, TRAIN, VAL, CLIP = range(4)
TOWNS = {"train": ("ahrenbek", "bruchtal", "cronfeld", "dornau"), "val": ("eschheim", "falkenrode")}


@dataclass(frozen=True)
class _Job:
    look: str
    seed: int
    size_hw: tuple[int, int]
    image: Path
    labels: Path
    is_palette: bool


def first_seed(seed: int, part: int) -> int:
    """Return the seed of the first scene of a part (`SOURCE`, `TRAIN`, `VAL` or `CLIP`) of a render."""
    return (4 * seed + part) * PART


def write_source(
    root: Path,
    count: int,
    *,
    size_hw: tuple[int, int],
    seed: int = 0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `count` source scenes as GTA5: `images/00001.png`, `labels/00001.png` (palette of labelIds).

    `progress` is called with the number of scenes finished since its last call.
    """
    first = first_seed(seed, SOURCE)
    _run(
        (
            _Job(
                "source",
                first + i,
                size_hw,
                root / "images" / f"{i + 1:05d}.png",
                root / "labels" / f"{i + 1:05d}.png",
                True,
            )
            for i in range(count)
        ),
        jobs,
        progress,
    )


def write_target(
    root: Path,
    split: str,
    count: int,
    *,
    size_hw: tuple[int, int],
    seed: int = 0,
    jobs: int = 1,
    progress: Progress | None = None,
) -> None:
    """Write `count` target scenes of a split, "train" or "val", as Cityscapes; both come with labels.

    No scene of one split is in a town of the other. `progress` is called with the number of scenes
    finished since its last call.
    """
    first = first_seed(seed, {"train": TRAIN, "val": VAL}[split])
    _run((_target_job(root, split, i, first + i, size_hw) for i in range(count)), jobs, progress)


def _target_job(root: Path, split: str, i: int, seed: int, size_hw: tuple[int, int]) -> _Job:
    town = TOWNS[split][i % len(TOWNS[split])]
    stem = f"{town}_{i // len(TOWNS[split]):06d}_000019"
    return _Job(
        "target",
        seed,
        size_hw,
        root / "leftImg8bit" / split / town / f"{stem}_leftImg8bit.png",
        root / "gtFine" / split / town / f"{stem}_gtFine_labelIds.png",
        False,
    )


def write_labels(path: Path, labels: NDArray[np.uint8], *, is_palette: bool = False) -> None:
    """Write a label map (H, W) of Cityscapes-19 indices as labelIds: gray, or a palette PNG."""
    ids = np.asarray(cv2.LUT(labels, CITYSCAPES_19.to_label_ids), np.uint8)
    if is_palette:
        write_palette_png(path, ids, _id_palette())
    else:
        write_png(path, ids)


def _id_palette() -> NDArray[np.uint8]:
    table = np.zeros((256, 3), np.uint8)
    for c in CITYSCAPES_19.classes:
        table[c.label_id] = c.color
    return table


def _write(job: _Job) -> int:
    image, labels = render(job.look, job.seed, job.size_hw)
    write_labels(job.labels, labels, is_palette=job.is_palette)
    write_png(job.image, image)
    return 1


def _run(jobs: Iterable[_Job], processes: int, progress: Progress | None) -> None:
    for done in _results(list(jobs), processes):
        if progress:
            progress(done)


def _results(jobs: list[_Job], processes: int) -> Iterator[int]:
    if processes <= 1 or len(jobs) < 32:
        yield from map(_write, jobs)
        return
    # Raster holds the interpreter's lock, so threads would wait for one another.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_one_thread) as pool:
        yield from pool.map(_write, jobs, chunksize=8)


def _one_thread() -> None:
    cv2.setNumThreads(1)
