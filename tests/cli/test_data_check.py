"""`fada data check` as a user types it: what it prints, its exit codes, and what training then finds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data import open_dataset
from fada_deploy.data.statistics import load_statistics

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def damaged(streets: Path, tmp_path: Path) -> Path:
    """Return a copy of the rendered source with a file of every kind that a check tells of."""
    root = tmp_path / "gta5"
    shutil.copytree(streets / "gta5", root)
    names = sorted(path.name for path in (root / "images").iterdir())
    (root / "labels" / names[0]).unlink()
    (root / "labels" / names[1]).write_bytes(b"no picture")
    (root / "images" / names[2]).write_bytes(b"no picture")
    assert cv2.imwrite(str(root / "labels" / names[3]), np.full((10, 20), 7, np.uint8))
    assert cv2.imwrite(str(root / "labels" / names[4]), np.zeros((128, 192), np.uint8))
    assert cv2.imwrite(str(root / "labels" / names[5]), np.full((128, 192), 23, np.uint8))
    strange = np.full((128, 192), 23, np.uint8)
    strange[0] = 77
    strange[1:, :96] = 7
    assert cv2.imwrite(str(root / "labels" / names[6]), strange)
    return root


def test_a_clean_set_is_told_and_its_statistics_kept(fada: Run, streets: Path) -> None:
    code, out, err = fada("data", "check", "gta5", "--root", streets / "gta5")
    assert code == 0 and out.splitlines()[0] == "gta5 train: 64 pairs, 0 frames without labels"
    assert "  192x128     64" in out and out.endswith("no bad file\n") and "files/s" in err
    dataset = open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19)
    statistics = load_statistics(dataset)
    assert statistics is not None
    present = [set(np.unique(dataset.labels(i))) - {255} for i in range(len(dataset))]
    assert [set(np.flatnonzero(row)) for row in statistics.contents] == present


def test_every_bad_file_is_named_with_its_reason(fada: Run, damaged: Path) -> None:
    code, out, _ = fada("data", "check", "gta5", "--root", damaged)
    names = sorted(path.name for path in (damaged / "images").iterdir())
    assert code == 1 and "gta5 train: 63 pairs" in out
    assert f"left out, no labels: 1 ({names[0]})" in out
    for name, reason in (
        (f"labels/{names[1]}", "not an image"),
        (f"images/{names[2]}", "not an image"),
        (f"images/{names[3]}", "the frame is 192x128 but its labels are 20x10"),
        (f"labels/{names[4]}", "every pixel is ignored"),
    ):
        assert f"bad: {damaged / name}: {reason}" in out
    assert f"of one class only: 1 ({names[5]} sky)" in out
    assert "ids that the format does not have, ignored: 77 (192 pixels)" in out
    assert out.endswith("4 of 63 cannot be used\n")


def test_json_is_one_document_whose_numbers_add_up(fada: Run, damaged: Path) -> None:
    code, out, _ = fada("data", "check", "gta5", "--root", damaged, "--json", "--jobs", 1)
    report = json.loads(out)
    assert code == 1 and report["jobs"] == 1 and len(report["bad"]) == 4
    assert report["frames"] == report["labeled"] == 63 and report["unknown_ids"] == {"77": 192}
    assert report["sizes"] == {"192x128": 60}
    pixels = sum(each["pixels"] for each in report["classes"]) + report["ignored"]["pixels"]
    assert pixels == 60 * 192 * 128
    shares = [each["fraction"] for each in report["classes"]] + [report["ignored"]["fraction"]]
    assert sum(shares) == pytest.approx(1)
    assert Path(report["kept"]).is_file()


def test_frames_alone_are_checked_where_there_are_no_labels(
    fada: Run, streets: Path, tmp_path: Path
) -> None:
    shutil.copytree(streets / "cityscapes/leftImg8bit", tmp_path / "set/leftImg8bit")
    code, out, _ = fada("data", "check", "cityscapes", "--root", "set")
    assert (
        code == 0
        and "cityscapes train: 0 pairs, 16 frames without labels" in out
        and "road" not in out
    )


def test_a_class_of_one_file_or_none_is_said_and_columns_are_aligned(
    fada: Run, blocks: Path
) -> None:
    code, out, _ = fada("data", "check", blocks / "source.toml", "--split", "val")
    rows = [line for line in out.splitlines() if line.startswith("  ") and "%" in line]
    assert code == 0 and len(rows) == 19 and len({row.index("%") for row in rows}) == 1
    assert [row.split()[0] for row in rows if "in no file" not in row] == [
        "road",
        "building",
        "sky",
        "car",
    ]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("kitti", 2, "no data set 'kitti'; there are gta5, synthia"),
        ("gta5", 1, "datasets/gta5 does not exist"),
        ("gta5 --label-space many", 2, "no label space 'many'"),
        ("gone.toml", 1, "gone.toml: no such file"),
    ],
)
def test_a_mistake_is_one_line(fada: Run, line: str, code: int, message: str) -> None:
    got, out, err = fada("data", "check", *line.split())
    assert got == code and not out and message in err.splitlines()[-1]


def test_an_interrupt_is_one_line_and_130(
    tmp_path: Path, interruptible: Callable[[], None]
) -> None:
    pipe = subprocess.PIPE
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    assert cv2.imwrite(str(tmp_path / "images/0.png"), np.zeros((2000, 3000, 3), np.uint8))
    assert cv2.imwrite(str(tmp_path / "labels/0.png"), np.full((2000, 3000), 7, np.uint8))
    for i in range(1, 1000):
        for sub in ("images", "labels"):
            os.link(tmp_path / sub / "0.png", tmp_path / sub / f"{i}.png")
    program = "from tqdm import tqdm; from fada_deploy.cli import main; print('ready', flush=True); main()"
    check = [
        sys.executable,
        "-c",
        program,
        "data",
        "check",
        "gta5",
        "--root",
        str(tmp_path),
        "--jobs",
        "2",
    ]
    with subprocess.Popen(
        check, stdout=pipe, stderr=pipe, text=True, preexec_fn=interruptible
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == "interrupted" and not out
    assert time.monotonic() - began < 20
