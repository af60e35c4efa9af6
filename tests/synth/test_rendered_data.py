"""Rendered data sets and clips, read back with the package's readers and decoded independently."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from fada_deploy.cli import cli, main
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.common.progress import set_progress_factory
from fada_deploy.data import open_dataset
from fada_deploy.synth.clip import FPS, Drive, write_clip
from fada_deploy.synth.dataset import (
    CLIP,
    SOURCE,
    TRAIN,
    VAL,
    first_seed,
    write_source,
    write_target,
)
from fada_deploy.synth.scene import render

SIZE = (64, 96)
SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("rendered") / "data"
    args = [
        "--source-scenes",
        "5",
        "--target-scenes",
        "4",
        "--val-scenes",
        "3",
        "--video-seconds",
        "0.4",
        "--size",
        "96x64",
    ]
    result = CliRunner().invoke(
        cli, ["data", "render", "--out", str(out), "--seed", str(SEED), *args]
    )
    assert result.exit_code == 0, result.output
    assert f"FADA_DATASETS={out} fada train --src gta5 --tgt cityscapes" in result.output
    return out


@pytest.mark.parametrize(
    ("name", "split", "appearance", "part", "count"),
    [
        ("gta5", "train", "source", SOURCE, 5),
        ("cityscapes", "train", "target", TRAIN, 4),
        ("cityscapes", "val", "target", VAL, 3),
    ],
)
def test_readers_return_rendered_frames(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    split: str,
    appearance: str,
    part: int,
    count: int,
) -> None:
    monkeypatch.setenv("FADA_DATASETS", str(folder))
    frames = open_dataset(name, None, split=split, space=CITYSCAPES_19)
    assert len(frames) == count and frames.labeled
    rendered = [render(appearance, first_seed(SEED, part) + i, SIZE) for i in range(count)]
    for i in range(count):
        image, labels = frames.pair(i)
        # Readers sort by name, so compare as sets: each frame and its labels are one of the scenes.
        assert any(np.array_equal(image, p) and np.array_equal(labels, t) for p, t in rendered)
    assert len({frames.image(i).tobytes() for i in range(count)}) == count


def test_gta5_labels_are_palette_pngs_of_label_ids(folder: Path) -> None:
    path = folder / "gta5" / "labels" / "00001.png"
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[25] == 3
    labels = render("source", first_seed(SEED, SOURCE), SIZE)[1]
    # OpenCV decodes the palette to colors, which must be the official Cityscapes colors.
    assert np.array_equal(cv2.imread(str(path))[..., ::-1], CITYSCAPES_19.palette[labels])


def test_no_town_occurs_in_two_parts(folder: Path) -> None:
    maps = [p.read_bytes() for p in folder.rglob("*labelIds.png")]
    assert len(set(maps)) == len(maps) == 7
    towns = {
        split: {p.name for p in (folder / "cityscapes/leftImg8bit" / split).iterdir()}
        for split in ("train", "val")
    }
    assert towns["train"] and towns["val"] and not towns["train"] & towns["val"]


def test_clip_has_one_label_map_per_frame_and_browser_compatible_h264(folder: Path) -> None:
    maps = sorted((folder / "clip" / "labels").iterdir())
    with av.open(str(folder / "clip" / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == FPS
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    assert len(frames) == len(maps) == round(0.4 * FPS)
    assert [m.name for m in maps[:2]] == ["000000.png", "000001.png"]
    drive = Drive.start("target", first_seed(SEED, CLIP), size_hw=SIZE, seconds=0.4)
    for frame, path, (image, labels) in zip(frames, maps, drive.frames(len(maps)), strict=True):
        assert np.array_equal(
            cv2.imread(str(path), cv2.IMREAD_UNCHANGED), CITYSCAPES_19.to_label_ids[labels]
        )
        assert np.abs(frame.astype(int) - image).mean() < 8


def test_drive_is_smooth() -> None:
    drive = Drive.start("target", 1, size_hw=SIZE, seconds=2)
    labels = [frame for _, frame in drive.frames(2 * FPS)]
    changes = [float((a != b).mean()) for a, b in pairwise(labels)]
    assert min(changes) > 0
    assert max(changes) < 0.25
    positions = np.array(
        [
            [drive.camera_at(t).x, drive.camera_at(t).z, drive.camera_at(t).heading]
            for t in np.arange(0, 10, 1 / FPS)
        ]
    )
    # Second differences: neither position nor heading jumps between frames.
    assert np.abs(np.diff(positions, 2, axis=0)).max() < 0.01
    assert np.diff(positions[:, 1]).min() > 0.2


class RecordedProgress:
    """A progress factory that records the total and the count of every bar."""

    def __init__(self) -> None:
        self.bars: list[RecordedProgress.Bar] = []

    class Bar:
        def __init__(self, total: int | None) -> None:
            self.total, self.count = total, 0

        def update(self, n: int = 1) -> None:
            self.count += n

        def set_postfix(self, values: Mapping[str, str]) -> None: ...

    def __call__(
        self, *, total: int | None, description: str, unit: str, initial: int
    ) -> AbstractContextManager[Bar]:
        self.bars.append(self.Bar(total))
        return nullcontext(self.bars[-1])


def test_progress_counts_every_frame(tmp_path: Path) -> None:
    progress = RecordedProgress()
    set_progress_factory(progress)
    try:
        write_source(tmp_path / "a", 3, size_hw=(32, 32))
        write_target(tmp_path / "b", "val", 2, size_hw=(32, 32))
        write_clip(tmp_path / "c", 0.2, size_hw=(32, 32))
    finally:
        set_progress_factory(None)
    counts = [(bar.total, bar.count) for bar in progress.bars]
    assert counts == [(3, 3), (2, 2), (round(0.2 * FPS), round(0.2 * FPS))]


def test_number_of_processes_does_not_change_files(tmp_path: Path) -> None:
    for jobs in (1, 2):
        # More scenes than the minimum for processes.
        write_source(tmp_path / str(jobs), 33, size_hw=(16, 16), jobs=jobs)
    one, two = (sorted((tmp_path / str(jobs)).rglob("*.png")) for jobs in (1, 2))
    assert len(one) == 66
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


@pytest.mark.parametrize(
    ("args", "facts"),
    [
        ([], ("not empty", "--out", "--force")),
        (["--force", "--size", "97x64"], ("even", "97x64")),
    ],
)
def test_usage_error_is_one_line_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], facts: tuple[str, ...]
) -> None:
    (tmp_path / "mine.txt").write_text("existing")
    with pytest.raises(SystemExit) as stop:
        main(["data", "render", "--out", str(tmp_path), *args])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(fact in error for fact in facts)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_force_keeps_existing_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("existing")
    args = [
        "--source-scenes",
        "1",
        "--target-scenes",
        "0",
        "--val-scenes",
        "0",
        "--video-seconds",
        "0",
        "--size",
        "32x32",
        "--force",
    ]
    result = CliRunner().invoke(cli, ["data", "render", "--out", str(tmp_path), *args])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "mine.txt").read_text() == "existing"
    assert (tmp_path / "gta5" / "images" / "00001.png").is_file()


def test_unwritable_folder_is_one_line_with_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "data",
                "render",
                "--out",
                str(tmp_path / "file" / "in"),
                "--source-scenes",
                "1",
                "--size",
                "32x32",
            ]
        )
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be written" in error


def test_scenes_are_rendered_where_processes_cannot_start(tmp_path: Path) -> None:
    """A script that is read from a pipe cannot be imported by the rendering processes."""
    code = (
        "import logging\n"
        "from pathlib import Path\n"
        "from fada_deploy.synth.dataset import write_source\n"
        "logging.basicConfig()\n"
        f"write_source(Path({str(tmp_path)!r}), 32, size_hw=(32, 48), jobs=2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, check=True
    )
    assert "__name__" in done.stderr and "one process" in done.stderr
    assert len(list((tmp_path / "labels").iterdir())) == 32
