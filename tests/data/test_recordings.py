"""Recordings as a target: sampling by time, dropping near-duplicates, holding out clips."""

from __future__ import annotations

import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import toy

from fada_deploy.common.errors import DataError
from fada_deploy.common.images import read_rgb
from fada_deploy.common.label_space import CITYSCAPES_19
from fada_deploy.data.base import FrameDataset, Pair
from fada_deploy.data.recordings import Sampling, open_recordings, split_by_clip


def scene_image(i: int) -> np.ndarray:
    """Return an RGB image (48, 64, 3) whose 32×18 thumbnail differs for each `i`."""
    rng = np.random.default_rng(i)
    return cv2.resize(
        rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48), interpolation=cv2.INTER_NEAREST
    )


def video(path: Path, scenes: list[int], *, fps: int = 10) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for scene in scenes:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(scene_image(scene), format="rgb24")))
        out.mux(stream.encode())


def recordings(
    path: Path, cache: Path, sampling: Sampling | None = None
) -> tuple[FrameDataset, FrameDataset]:
    return open_recordings(path, cache=cache, space=CITYSCAPES_19, sampling=sampling)


def test_timestamps_that_begin_anew(tmp_path: Path) -> None:
    """Transport streams that were joined without rewriting them, as by `cat a.ts b.ts`."""
    for name, scenes in (("a.ts", range(20)), ("b.ts", range(20, 40))):
        video(tmp_path / name, list(scenes))
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    train, held_out = recordings(joined, tmp_path / "cache", Sampling(every=0.5))
    numbers = [int(p.image.stem) for p in [*train.pairs, *held_out.pairs]]
    assert len([n for n in numbers if n >= 20]) >= 2


def test_video_is_sampled_by_time(tmp_path: Path) -> None:
    video(tmp_path / "drive.mp4", list(range(40)))
    train, held_out = recordings(tmp_path / "drive.mp4", tmp_path / "cache", Sampling(every=0.5))
    numbers = [int(p.image.stem) for p in [*train.pairs, *held_out.pairs]]
    # Every fifth of 40 frames makes eight; one is held out, and the one before it is the gap.
    assert numbers == [0, 5, 10, 15, 20, 25, 35]
    assert len(held_out) == 1 and held_out.split == "val"
    assert (
        np.abs(train.image(1).astype(int) - scene_image(5)).mean() < 12
    )  # only video compression differs


def test_near_duplicates_are_dropped(tmp_path: Path) -> None:
    video(tmp_path / "light.mp4", [7] * 20 + [8] * 5)
    train, held_out = recordings(tmp_path / "light.mp4", tmp_path / "cache", Sampling(every=0.1))
    assert [int(p.image.stem) for p in train.pairs] == [0, 20] and len(held_out) == 0


def test_sampled_frames_are_reused(tmp_path: Path) -> None:
    video(tmp_path / "drive.mp4", list(range(10)))
    first, _ = recordings(tmp_path / "drive.mp4", tmp_path / "cache")
    written = [p.image.stat().st_mtime_ns for p in first.pairs]
    second, _ = recordings(tmp_path / "drive.mp4", tmp_path / "cache")
    assert [p.image.stat().st_mtime_ns for p in second.pairs] == written and written


def test_a_copied_video_has_the_same_frames_and_a_changed_one_has_others(tmp_path: Path) -> None:
    path, cache = tmp_path / "drive.mp4", tmp_path / "cache"
    video(path, list(range(10)))
    first, _ = recordings(path, cache)
    os.utime(path, (1, 1))
    assert recordings(path, cache)[0].pairs == first.pairs
    video(path, list(range(20, 30)))
    assert recordings(path, cache)[0].pairs != first.pairs


def test_images_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run would otherwise decode all images again."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, scene in enumerate([0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]):
        cv2.imwrite(str(folder / f"{i:02}.png"), scene_image(scene))
    (folder / "03.png").write_bytes(b"damaged")
    errors: list[DataError] = []

    def names() -> tuple[list[str], list[str]]:
        errors.clear()
        parts = open_recordings(
            folder, cache=tmp_path / "cache", space=CITYSCAPES_19, on_error=errors.append
        )
        return [p.image.name for part in parts for p in part.pairs], [str(e) for e in errors]

    first = names()
    assert "01.png" not in first[0] and len(first[0]) == 8 and "03.png" in first[1][0]
    with monkeypatch.context() as patch:
        patch.setattr("fada_deploy.data.recordings._choose_images", lambda *_: 1 / 0)
        assert names() == first
    cv2.imwrite(str(folder / "03.png"), scene_image(20))
    used, unreadable = names()
    assert "03.png" in used and not unreadable
    for listing in (tmp_path / "cache").glob("images-*.json"):
        listing.write_text('{"indices": [99], "unreadable": []}')
    assert names() == (used, unreadable)


def test_an_image_that_can_be_read_again_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failure of a network disk, which changes neither size nor time of a file."""
    for i in range(10):
        cv2.imwrite(str(tmp_path / f"{i:02}.png"), scene_image(i))

    def failing(path: Path) -> np.ndarray:
        if path.name == "04.png":
            raise DataError("a failure of the disk")
        return read_rgb(path)

    def names() -> list[str]:
        parts = recordings(tmp_path, tmp_path / "cache")
        return sorted(p.image.name for part in parts for p in part.pairs)

    with monkeypatch.context() as patch:
        patch.setattr("fada_deploy.data.recordings.read_rgb", failing)
        first = names()
        assert "04.png" not in first and names() == first
    assert "04.png" in names()


def test_a_name_of_the_longest_length(tmp_path: Path) -> None:
    path = tmp_path / f"a{'é' * 124}.mp4"
    video(path, list(range(10)))
    assert recordings(path, tmp_path / "cache")[0].pairs


def test_unreadable_folders_and_videos_cost_only_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video(tmp_path / "a.mp4", list(range(20)))
    (tmp_path / "b.mp4").symlink_to(tmp_path / "unmounted.mp4")
    (tmp_path / "private").mkdir()

    def refuse(folder: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("fada_deploy.data.recordings.contains_results", refuse)
    errors: list[DataError] = []
    train, _ = open_recordings(
        tmp_path, cache=tmp_path / "cache", space=CITYSCAPES_19, on_error=errors.append
    )
    assert train.pairs and ["b.mp4" in str(error) for error in errors] == [True]


def test_results_in_the_folder_are_not_recordings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`--tgt .`, in a folder in which earlier commands have written their results."""
    caplog.set_level("INFO", "fada_deploy")
    video(tmp_path / "drive.mp4", list(range(20)))
    run, inferred, compared = (tmp_path / "runs" / name for name in ("a-001", "infer-001", "c-001"))
    for folder, marker in (
        (run / "target_frames/old", run / "config.json"),
        (inferred / "overlay", inferred / "finished.json"),
        (compared / "pages", compared / "comparison.json"),
    ):
        folder.mkdir(parents=True)
        marker.write_text("{}")
        assert cv2.imwrite(str(folder / "0.png"), scene_image(50))
    video(inferred / "overlay" / "drive.mp4", list(range(20)))
    new = tmp_path / "runs/a-002/target_frames"
    for _ in range(2):  # the second time, the frames of the first are there
        train, held_out = recordings(tmp_path, new)
        assert {p.image.parent.parent for p in [*train.pairs, *held_out.pairs]} == {new}
        assert not {p.image for p in train.pairs} & {p.image for p in held_out.pairs}
    assert sum("contains results" in line for line in caplog.messages) == 2 * 3


def test_whole_clips_are_held_out(tmp_path: Path) -> None:
    clips = {
        f"clip{c}": [Pair(Path(f"{c}/{i}.png"), None, f"clip{c}") for i in range(5)]
        for c in range(10)
    }
    train, held_out = split_by_clip(clips)
    assert {p.group for p in train}.isdisjoint({p.group for p in held_out})
    assert len(held_out) == 5 and len(train) == 45


def test_unreadable_files_are_reported_and_the_others_used(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        assert cv2.imwrite(str(folder / f"{i}.png"), scene_image(i))
    (folder / "3.png").write_bytes(b"not an image")
    (folder / "4.mp4").write_bytes(b"not a video")
    errors: list[DataError] = []
    train, held_out = open_recordings(
        folder, cache=tmp_path / "cache", space=CITYSCAPES_19, on_error=errors.append
    )
    assert len(train) == 3 and not len(held_out)
    assert [Path(str(e).split(":")[0]).name for e in errors] == ["4.mp4", "3.png"]


def test_no_usable_file_is_one_error_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no readable video or image.*\.mp4"):
        recordings(tmp_path / "empty", tmp_path / "cache")
    (tmp_path / "fake.mp4").write_bytes(b"words")
    with pytest.raises(DataError, match=r"fake\.mp4: not a readable video"):
        recordings(tmp_path / "fake.mp4", tmp_path / "cache")
    with pytest.raises(DataError, match="no such file"):
        recordings(tmp_path / "gone.mp4", tmp_path / "cache")


def test_rotated_video_is_upright_as_in_the_runtime(tmp_path: Path) -> None:
    video(tmp_path / "phone.mp4", [3] * 3)
    clockwise = (0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    train, _ = recordings(
        toy.set_display_matrix(tmp_path / "phone.mp4", clockwise), tmp_path / "cache"
    )
    expected = cv2.rotate(scene_image(3), cv2.ROTATE_90_CLOCKWISE)
    assert train.image(0).shape == expected.shape
    assert np.abs(train.image(0).astype(int) - expected).mean() < 12


def test_few_long_clips_keep_most_frames_for_training() -> None:
    clips = {
        f"clip{c}": [Pair(Path(f"{c}/{i}.png"), None, f"clip{c}") for i in range(20)]
        for c in range(3)
    }
    train, held_out = split_by_clip(clips)
    assert len(held_out) == 2 and len(train) == 60 - 4
    assert {p.group for p in held_out} == {"clip0"}


def test_label_maps_and_partial_files_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fada_deploy")
    for sub, count in (("images", 6), ("labels", 6), ("gtFine/val/bonn", 6), ("Labels/Test", 6)):
        (tmp_path / sub).mkdir(parents=True)
        for i in range(count):
            assert cv2.imwrite(str(tmp_path / sub / f"{i}.png"), scene_image(i))
    assert cv2.imwrite(str(tmp_path / "images" / ".9.partial.png"), scene_image(9))
    train, held_out = open_recordings(tmp_path, cache=tmp_path / "c", space=CITYSCAPES_19)
    assert {p.image.parent.name for p in [*train.pairs, *held_out.pairs]} == {"images"}
    assert sum("folder of label maps" in line for line in caplog.messages) == 3
    assert any("using 6 of 6 images" in line for line in caplog.messages)


def test_frames_behind_damage_are_used_and_the_damage_is_reported(tmp_path: Path) -> None:
    video(tmp_path / "a.avi", list(range(60)))
    data = bytearray((tmp_path / "a.avi").read_bytes())
    with av.open(str(tmp_path / "a.avi")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    damaged = packets[len(packets) // 3]
    # The payload of an AVI packet is stored unchanged, so its bytes are found in the file.
    start = bytes(data).index(bytes(damaged))
    data[start : start + damaged.size] = bytes(damaged.size)
    (tmp_path / "a.avi").write_bytes(data)
    # The second time, the frames are not extracted again, as in a run that is resumed.
    for _ in range(2):
        errors: list[DataError] = []
        train, held_out = open_recordings(
            tmp_path / "a.avi",
            cache=tmp_path / "cache",
            space=CITYSCAPES_19,
            on_error=errors.append,
        )
        numbers = [int(p.image.stem) for p in [*train.pairs, *held_out.pairs]]
        assert max(numbers) > 40
        assert len(errors) == 1 and "a.avi: truncated or damaged" in str(errors[0])
