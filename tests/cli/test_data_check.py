"""`fada data check`: its report, exit codes, cached statistics and interruption."""

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
    """Return a copy of the rendered source with one file of each kind that a check reports."""
    root = tmp_path / "gta5"
    shutil.copytree(streets / "gta5", root)
    names = sorted(path.name for path in (root / "images").iterdir())
    (root / "labels" / names[0]).unlink()
    (root / "labels" / names[1]).write_bytes(b"not an image")
    (root / "images" / names[2]).write_bytes(b"not an image")
    assert cv2.imwrite(str(root / "labels" / names[3]), np.full((10, 20), 7, np.uint8))
    assert cv2.imwrite(str(root / "labels" / names[4]), np.zeros((128, 192), np.uint8))
    assert cv2.imwrite(str(root / "labels" / names[5]), np.full((128, 192), 23, np.uint8))
    strange = np.full((128, 192), 23, np.uint8)
    strange[0] = 77
    strange[1:, :96] = 7
    assert cv2.imwrite(str(root / "labels" / names[6]), strange)
    return root


def test_report_of_a_clean_data_set_and_cached_statistics(fada: Run, streets: Path) -> None:
    code, out, err = fada("data", "check", "gta5", "--data-root", streets / "gta5")
    assert code == 0 and out.splitlines()[0] == "gta5 train: 64 frames with labels, 0 without"
    assert (
        "  192x128     64" in out and out.endswith("all files can be used\n") and "frames/s" in err
    )
    dataset = open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19)
    statistics = load_statistics(dataset)
    assert statistics is not None
    present = [set(np.unique(dataset.labels(i))) - {255} for i in range(len(dataset))]
    assert [set(np.flatnonzero(row)) for row in statistics.contents] == present


def test_unusable_files_are_reported_with_reasons(fada: Run, damaged: Path) -> None:
    code, out, _ = fada("data", "check", "gta5", "--data-root", damaged)
    names = sorted(path.name for path in (damaged / "images").iterdir())
    assert code == 1 and "gta5 train: 63 frames with labels" in out
    assert f"skipped (no labels): 1 file ({names[0]})" in out
    for name, reason in (
        (f"labels/{names[1]}", "not a readable image"),
        (f"images/{names[2]}", "not a readable image"),
        (f"images/{names[3]}", "the frame is 192x128 but its labels are 20x10"),
    ):
        assert f"unusable: {damaged / name}: {reason}" in out
    assert f"only one class: 1 file ({names[5]} sky)" in out
    assert "unknown ids, which are ignored: 77 (192 pixels)" in out
    assert "unusable: 1 more, all in --json" in out
    assert out.endswith("4 of 63 files cannot be used\n")


def test_json_document_is_consistent(fada: Run, damaged: Path) -> None:
    code, out, _ = fada("data", "check", "gta5", "--data-root", damaged, "--json", "--jobs", 1)
    report = json.loads(out)
    assert code == 1 and report["jobs"] == 1 and len(report["unusable_files"]) == 4
    assert "every pixel is ignored" in report["unusable_files"][-1]["reason"]
    assert report["frames"] == report["labeled"] == 63 and report["unknown_ids"] == {"77": 192}
    assert report["sizes"] == {"192x128": 60}
    pixels = sum(entry["pixels"] for entry in report["classes"]) + report["ignored"]["pixels"]
    assert pixels == 60 * 192 * 128
    fractions = [entry["fraction"] for entry in report["classes"]] + [report["ignored"]["fraction"]]
    assert sum(fractions) == pytest.approx(1)
    assert Path(report["statistics_file"]).is_file()


def test_frames_without_labels_are_checked(fada: Run, streets: Path, tmp_path: Path) -> None:
    shutil.copytree(streets / "cityscapes/leftImg8bit", tmp_path / "set/leftImg8bit")
    code, out, _ = fada("data", "check", "cityscapes", "--data-root", "set")
    assert (
        code == 0
        and "cityscapes train: 0 frames with labels, 16 without" in out
        and "road" not in out
    )


def test_absent_classes_are_marked_and_columns_aligned(fada: Run, blocks: Path) -> None:
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
        ("kitti", 2, "no data set 'kitti'; choose one of gta5, synthia"),
        ("gta5", 1, "datasets/gta5 does not exist"),
        ("gta5 --label-space many", 2, "no label space 'many'"),
        ("d/gta5", 2, "d/gta5 is a folder; name the data set"),
        ("d/gta5", 2, "for example: fada data check gta5 --data-root d/gta5"),
        ("d", 2, "fada data check NAME --data-root d"),
        ("gta5 --data-root d", 1, "use fada data check gta5 --data-root d/gta5"),
        ("gta5 --data-root e", 1, "e does not exist"),
        ("gta5 --data-root e", 1, "set --data-root or FADA_DATASETS"),
        ("gta5 --data-root e", 1, "`fada data render`"),
        ("gone.toml", 1, "gone.toml: no such file"),
    ],
)
def test_error_is_one_line(fada: Run, streets: Path, line: str, code: int, message: str) -> None:
    Path("d").mkdir()
    Path("d/gta5").symlink_to(streets / "gta5")
    exit_code, out, err = fada("data", "check", *line.split())
    assert exit_code == code and not out and message in err.splitlines()[-1]
    assert "--src-root" not in err and "--tgt-root" not in err


def test_interrupt_is_one_line_with_exit_code_130(
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
    program = (
        "from tqdm import tqdm; from fada_deploy.cli import main; "
        "print('ready', flush=True); main()"
    )
    check = [
        sys.executable,
        "-c",
        program,
        "data",
        "check",
        "gta5",
        "--data-root",
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
        start = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == "interrupted" and not out
    assert time.monotonic() - start < 20
