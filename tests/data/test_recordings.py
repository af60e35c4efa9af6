"""Recordings as a target: sampled by time, standing frames dropped, whole clips held out."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import toy

from fada_deploy.common.errors import DataError
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data.base import FrameDataset, Pair
from fada_deploy.data.recordings import Sampling, open_recordings, split_by_clip


def picture(i: int) -> np.ndarray:
    """A scene of its own for every i, different in its 32×18 thumbnail."""
    rng = np.random.default_rng(i)
    return cv2.resize(
        rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48), interpolation=cv2.INTER_NEAREST
    )


def video(path: Path, scenes: list[int], *, fps: int = 10) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for scene in scenes:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(scene), format="rgb24")))
        out.mux(stream.encode())


def recordings(
    path: Path, cache: Path, sampling: Sampling | None = None
) -> tuple[FrameDataset, FrameDataset]:
    return open_recordings(path, cache=cache, space=CITYSCAPES_19, sampling=sampling)


def test_a_video_is_sampled_by_time(tmp_path: Path) -> None:
    video(tmp_path / "drive.mp4", list(range(40)))
    train, held_out = recordings(tmp_path / "drive.mp4", tmp_path / "cache", Sampling(every=0.5))
    numbers = [int(p.image.stem) for p in [*train.pairs, *held_out.pairs]]
    # Every fifth of 40 frames is eight; the last tenth is one frame, and one before it is the gap.
    assert numbers == [0, 5, 10, 15, 20, 25, 35]
    assert len(held_out) == 1 and held_out.split == "val"
    assert (
        np.abs(train.image(1).astype(int) - picture(5)).mean() < 12
    )  # video compression apart, that frame


def test_a_standing_car_gives_one_frame(tmp_path: Path) -> None:
    video(tmp_path / "light.mp4", [7] * 20 + [8] * 5)
    train, held_out = recordings(tmp_path / "light.mp4", tmp_path / "cache", Sampling(every=0.1))
    assert [int(p.image.stem) for p in train.pairs] == [0, 20] and len(held_out) == 0


def test_a_second_opening_finds_the_frames_already_there(tmp_path: Path) -> None:
    video(tmp_path / "drive.mp4", list(range(10)))
    first, _ = recordings(tmp_path / "drive.mp4", tmp_path / "cache")
    written = [p.image.stat().st_mtime_ns for p in first.pairs]
    second, _ = recordings(tmp_path / "drive.mp4", tmp_path / "cache")
    assert [p.image.stat().st_mtime_ns for p in second.pairs] == written and written


def test_clips_are_held_out_whole(tmp_path: Path) -> None:
    clips = {
        f"clip{c}": [Pair(Path(f"{c}/{i}.png"), None, f"clip{c}") for i in range(5)]
        for c in range(10)
    }
    train, held_out = split_by_clip(clips)
    assert {p.group for p in train}.isdisjoint({p.group for p in held_out})
    assert len(held_out) == 5 and len(train) == 45


def test_bad_pictures_are_named_and_the_good_ones_kept(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        assert cv2.imwrite(str(folder / f"{i}.png"), picture(i))
    (folder / "3.png").write_bytes(b"no picture")
    (folder / "4.mp4").write_bytes(b"no film")
    bad: list[DataError] = []
    train, held_out = open_recordings(
        folder, cache=tmp_path / "cache", space=CITYSCAPES_19, left_out=bad.append
    )
    assert len(train) == 3 and not len(held_out)
    assert [Path(str(e).split(":")[0]).name for e in bad] == ["4.mp4", "3.png"]


def test_nothing_usable_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no video and no picture.*\.mp4"):
        recordings(tmp_path / "empty", tmp_path / "cache")
    (tmp_path / "fake.mp4").write_bytes(b"words")
    with pytest.raises(DataError, match=r"fake\.mp4: is no video that can be read"):
        recordings(tmp_path / "fake.mp4", tmp_path / "cache")
    with pytest.raises(DataError, match="no such file"):
        recordings(tmp_path / "gone.mp4", tmp_path / "cache")


def test_a_film_held_sideways_is_turned_upright_as_in_the_runtime(tmp_path: Path) -> None:
    video(tmp_path / "phone.mp4", [3] * 3)
    clockwise = (0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    train, _ = recordings(toy.set_display_matrix(tmp_path / "phone.mp4", clockwise), tmp_path / "cache")
    want = cv2.rotate(picture(3), cv2.ROTATE_90_CLOCKWISE)
    assert train.image(0).shape == want.shape
    assert np.abs(train.image(0).astype(int) - want).mean() < 12


def test_a_few_long_clips_keep_nine_tenths_for_training() -> None:
    clips = {
        f"clip{c}": [Pair(Path(f"{c}/{i}.png"), None, f"clip{c}") for i in range(20)]
        for c in range(3)
    }
    train, held_out = split_by_clip(clips)
    assert len(held_out) == 2 and len(train) == 60 - 4
    assert {p.group for p in held_out} == {"clip0"}


def test_label_maps_and_drafts_are_no_target(tmp_path: Path) -> None:
    for sub, count in (("images", 6), ("labels", 6), ("gtFine/val/bonn", 6), ("Labels/Test", 6)):
        (tmp_path / sub).mkdir(parents=True)
        for i in range(count):
            assert cv2.imwrite(str(tmp_path / sub / f"{i}.png"), picture(i))
    assert cv2.imwrite(str(tmp_path / "images" / ".9.partial.png"), picture(9))
    said: list[str] = []
    train, held_out = open_recordings(
        tmp_path, cache=tmp_path / "c", space=CITYSCAPES_19, say=said.append
    )
    assert {p.image.parent.name for p in [*train.pairs, *held_out.pairs]} == {"images"}
    assert any("label maps are no target" in line for line in said) and not any(
        "of 7" in line for line in said
    )
