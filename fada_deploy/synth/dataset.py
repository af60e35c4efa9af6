"""Write rendered scenes in the folder layouts of GTA5 and Cityscapes."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import write_png
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.progress import progress_bar
from fada_deploy.synth.palette_png import write_palette_png
from fada_deploy.synth.scene import render

logger = logging.getLogger(__name__)

# Increased by every change that alters the rendered images or labels.
RENDERER_VERSION = 2
# Each part of a render has its own range of seeds, so that no town occurs in two parts.
SEEDS_PER_PART = 1_000_000
SOURCE, TRAIN, VAL, CLIP = range(4)
TOWNS = {"train": ("ahrenbek", "bruchtal", "cronfeld", "dornau"), "val": ("eschheim", "falkenrode")}
# Below this number of scenes, starting processes takes longer than it saves.
_MIN_PARALLEL_SCENES = 32
# Windows waits for at most so many processes.
_MAX_PROCESSES = 61


@dataclass(frozen=True)
class _Job:
    """One scene to render, and where to write its image and label map."""

    appearance: str
    seed: int
    size_hw: tuple[int, int]
    image: Path
    labels: Path
    is_palette: bool


def first_seed(seed: int, part: int) -> int:
    """Return the seed of the first scene of a part: `SOURCE`, `TRAIN`, `VAL` or `CLIP`."""
    return (4 * seed + part) * SEEDS_PER_PART


def write_source(
    root: Path,
    count: int,
    *,
    size_hw: tuple[int, int],
    seed: int = 0,
    jobs: int = 1,
    appearance: str = "source",
) -> None:
    """Write `count` labeled scenes in the layout of GTA5, using `jobs` processes.

    `appearance` is "source", or "random" for another appearance of every scene. Images are
    `images/00001.png` and so on; `labels/00001.png` are palette PNGs of labelIds.
    """
    first = first_seed(seed, SOURCE)
    scenes = [
        _Job(
            appearance,
            first + i,
            size_hw,
            root / "images" / f"{i + 1:05d}.png",
            root / "labels" / f"{i + 1:05d}.png",
            True,
        )
        for i in range(count)
    ]
    _run_jobs(scenes, jobs, "rendering the source")


def write_target(
    root: Path, split: str, count: int, *, size_hw: tuple[int, int], seed: int = 0, jobs: int = 1
) -> None:
    """Write `count` labeled target scenes of a split in the layout of Cityscapes.

    `split` is "train" or "val"; the splits have no town in common. `jobs` is the number of
    processes.
    """
    first = first_seed(seed, {"train": TRAIN, "val": VAL}[split])
    scenes = [_target_job(root, split, i, first + i, size_hw) for i in range(count)]
    _run_jobs(scenes, jobs, f"rendering the target, {split}")


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


def write_label_map(path: Path, labels: NDArray[np.uint8], *, is_palette: bool = False) -> None:
    """Write labels (H, W), Cityscapes-19 indices, as a PNG of labelIds: gray or palette."""
    ids = np.asarray(cv2.LUT(labels, CITYSCAPES_19.to_label_ids), np.uint8)
    if is_palette:
        write_palette_png(path, ids, _label_id_palette())
    else:
        write_png(path, ids)


def _label_id_palette() -> NDArray[np.uint8]:
    palette = np.zeros((256, 3), np.uint8)
    for each in CITYSCAPES_19.classes:
        palette[each.label_id] = each.color
    return palette


def _render_scene(job: _Job) -> None:
    image, labels = render(job.appearance, job.seed, job.size_hw)
    write_label_map(job.labels, labels, is_palette=job.is_palette)
    write_png(job.image, image)


def _run_jobs(scenes: list[_Job], processes: int, description: str) -> None:
    with progress_bar(len(scenes), description, unit="scene") as bar:
        for _ in _render_all(scenes, processes):
            bar.update()


def _render_all(scenes: list[_Job], processes: int) -> Iterator[None]:
    if processes <= 1 or len(scenes) < _MIN_PARALLEL_SCENES:
        yield from map(_render_scene, scenes)
        return
    # Processes and not threads: rasterization holds the interpreter lock.
    if os.name == "nt":
        processes = min(processes, _MAX_PROCESSES)
    context = multiprocessing.get_context("spawn")
    finished = 0
    try:
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_limit_threads) as pool:
            for _ in pool.map(_render_scene, scenes, chunksize=8):
                finished += 1
                yield
    except BrokenProcessPool:
        if finished:
            logger.warning("a rendering process was lost, so one process renders the other scenes")
        else:
            # New processes import the main script, which fails if it is interactive or unguarded.
            logger.warning(
                "cannot start rendering processes, so one process renders all scenes; in a script, "
                "put the call under `if __name__ == '__main__':`"
            )
        yield from map(_render_scene, scenes[finished:])


def _limit_threads() -> None:
    cv2.setNumThreads(1)
