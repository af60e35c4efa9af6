"""A folder with the files that the documentation's Python examples name."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
from markdown_pages import ROOT, code_blocks

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset

RUNS = ("rendered-drives-efficientnet-lite0-001", "gta5-cityscapes-ddrnet23-slim-001")


@pytest.fixture(scope="session")
def example_files(trained: Path, streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `model.onnx`, `drive.mp4`, `frame.png`, `frames/`, `mine.toml` and data.

    `RUNS` are runs with an export. `mine.toml` is the one of the page about own data, with files
    where it says they are.
    """
    from fada_deploy import export

    folder = tmp_path_factory.mktemp("docs")
    export(trained / "source", out=folder / "model.onnx")
    for run in RUNS:
        (folder / "runs" / run / "export").mkdir(parents=True)
        for name in ("model.onnx", "model.reference.npz"):
            shutil.copy(folder / name, folder / "runs" / run / "export" / name)
    shutil.copy(streets / "clip" / "clip.mp4", folder / "drive.mp4")
    shutil.copytree(streets / "clip", folder / "datasets" / "clip")
    shutil.copytree(streets / "cityscapes", folder / "datasets" / "cityscapes")
    (folder / "frames").mkdir()
    validation = open_dataset(
        "cityscapes", streets / "cityscapes", split="val", space=CITYSCAPES_19
    )
    for split, place in (("train", folder), ("val", folder / "val")):
        for kind in ("images", "labels"):
            (place / kind).mkdir(parents=True)
        for index in range(2):
            frame, labels = validation.pair(index)
            write(place / "images" / f"{split}{index}.jpg", frame[..., ::-1])
            write(place / "labels" / f"{split}{index}.png", labels)
            write(folder / "frames" / f"{'ab'[index]}.png", frame[..., ::-1])
    write(folder / "frame.png", validation.pair(0)[0][..., ::-1])
    write(folder / "hood.png", validation.pair(0)[0] * 0)
    (folder / "train.txt").write_text("train0\ntrain1\n")
    page = ROOT / "docs" / "how-to" / "own-data.md"
    (toml,) = [b for b in code_blocks(page) if b.text.startswith("# mine.toml")]
    (folder / "mine.toml").write_text(toml.text)
    return folder


def write(path: Path, image: object) -> None:
    assert cv2.imwrite(str(path), image)
