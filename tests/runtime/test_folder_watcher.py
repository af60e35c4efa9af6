"""A folder that grows: what comes, in which order and under which name, what is broken, how it ends."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy import PATIENCE, color_model, scene, until, write_image

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources import folder_watcher as watch
from fada_deploy.runtime.sources.base import Frame, Pause
from fada_deploy.runtime.sources.folder_watcher import FolderWatcher
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.save import SaveOptions, save_results


def without_pauses(source: FolderWatcher) -> Generator[Frame | DataError, None, None]:
    with closing(source.frames()) as items:
        yield from (item for item in items if not isinstance(item, Pause))


class Watching:
    """A watch at work in a thread, and what it has found so far."""

    def __init__(self, source: FolderWatcher) -> None:
        self.source = source
        self.found: list[Frame | DataError] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for item in without_pauses(self.source):
            self.found.append(item)

    def until_found(self, count: int) -> list[Frame | DataError]:
        until(lambda: len(self.found) >= count)
        return self.found

    def items(self) -> list[str]:
        return [i.item for i in self.found if isinstance(i, Frame)]

    def errors(self) -> list[str]:
        return [str(i) for i in self.found if isinstance(i, DataError)]

    def end(self) -> None:
        self.source.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[..., Watching]]:
    begun: list[Watching] = []

    def begin(folder: Path, **times: float) -> Watching:
        given = {"poll_s": 0.02, "settle_s": 0.05, "give_up_s": 0.6} | times
        begun.append(Watching(FolderWatcher(folder, **given)))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


def picture(path: Path, index: int = 0) -> Path:
    """Put a whole picture into a folder at once, as careful programs do."""
    hidden = write_image(path.with_name(f".{path.name}"), scene(index)[0])
    return hidden.rename(path)


def test_what_is_there_and_what_comes(tmp_path: Path, start: Callable[..., Watching]) -> None:
    for index, name in enumerate(["b.png", "a.png", "c.bmp"]):
        picture(tmp_path / name, index)
    watching = start(tmp_path)
    watching.until_found(3)
    assert watching.items() == ["a", "b", "c"]
    for index in range(5):
        picture(tmp_path / f"later-{index}.png", index)
        watching.until_found(4 + index)
    found = [f for f in watching.found if isinstance(f, Frame)]
    assert [f.item for f in found[3:]] == [f"later-{i}" for i in range(5)]
    assert [f.index for f in found] == list(range(8)) and {f.source for f in found} == {
        str(tmp_path)
    }
    np.testing.assert_array_equal(found[0].rgb, scene(1)[0])
    np.testing.assert_array_equal(found[6].rgb, scene(3)[0])
    assert all(f.pts is None and f.time_base is None for f in found)


def test_it_is_a_live_source(tmp_path: Path) -> None:
    source = FolderWatcher(tmp_path)
    assert source.is_live and not source.is_video and source.count() is None
    assert source.rate is None and source.audio is None
    assert open_sources([source]) == [source]
    with pytest.raises(UsageError, match="live"):
        open_sources([source, picture(tmp_path / "a.png")])


def test_a_stem_that_comes_again_gets_its_whole_name(
    tmp_path: Path, start: Callable[..., Watching]
) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    picture(tmp_path / "b.bmp")
    watching = start(tmp_path)
    watching.until_found(3)
    picture(tmp_path / "a.bmp")
    watching.until_found(4)
    # Its stem is the name that a.bmp has already.
    picture(tmp_path / "a.bmp.png")
    watching.until_found(5)
    assert watching.items() == ["a", "b.bmp", "b.png", "a.bmp", "a.bmp.png"]


def test_names_stay_apart_whatever_comes() -> None:
    source = FolderWatcher(Path.cwd())
    names = ["a.png.bmp", "a.bmp", "a.png", "a.jpg", "a.jpg.png", "a.jpg.png.png"]
    items = [source._item(name, alone=True) for name in names]
    assert items == ["a.png", "a", "a.png-2", "a.jpg", "a.jpg.png", "a.jpg.png.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_file_that_is_being_written_is_taken_when_whole(
    tmp_path: Path, start: Callable[..., Watching], suffix: str
) -> None:
    watching = start(tmp_path, give_up_s=PATIENCE)
    frame = scene(3)[0]
    ok, data = cv2.imencode(suffix, frame[..., ::-1])
    assert ok
    with (tmp_path / f"slow{suffix}").open("wb", buffering=0) as file:
        whole = data.tobytes()
        for part in range(3):
            file.write(whole[part * len(whole) // 4 : (part + 1) * len(whole) // 4])
            picture(tmp_path / f"beside-{part}.png")
            # The writer stalls for longer than a file needs to settle; the others do not wait.
            watching.until_found(part + 1)
        assert watching.items() == [f"beside-{part}" for part in range(3)]
        file.write(whole[3 * len(whole) // 4 :])
    watching.until_found(4)
    assert watching.items()[3] == "slow" and not watching.errors()
    (slow,) = [f for f in watching.found if isinstance(f, Frame) and f.item == "slow"]
    assert slow.rgb.shape == frame.shape and np.abs(slow.rgb.astype(int) - frame).mean() < 20


def test_a_broken_picture_is_named_once_and_the_rest_go_on(
    tmp_path: Path, start: Callable[..., Watching]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").touch()
    picture(tmp_path / "good.png")
    watching = start(tmp_path)
    watching.until_found(3)
    picture(tmp_path / "later.png")
    watching.until_found(4)
    time.sleep(0.3)
    assert watching.items() == ["good", "later"]
    assert watching.errors() == [
        f"{tmp_path / name}: not a readable image (empty, truncated or of an unsupported format)"
        for name in ("bad.png", "empty.jpg")
    ]


def test_a_broken_picture_that_is_mended_in_time(
    tmp_path: Path, start: Callable[..., Watching]
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    watching = start(tmp_path, give_up_s=PATIENCE)
    until(lambda: any(w.tried for w in watching.source._waiting.values()))
    picture(tmp_path / "a.png", 5)
    (found,) = watching.until_found(1)
    assert isinstance(found, Frame)
    np.testing.assert_array_equal(found.rgb, scene(5)[0])


def test_a_jpeg_with_something_behind_its_end_is_taken_in_the_end(
    tmp_path: Path, start: Callable[..., Watching]
) -> None:
    path = picture(tmp_path / "phone.jpg")
    path.write_bytes(path.read_bytes() + b"SEFT")
    padded = picture(tmp_path / "camera.jpg")
    padded.write_bytes(padded.read_bytes() + bytes(100))
    watching = start(tmp_path)
    watching.until_found(2)
    assert watching.items() == ["camera", "phone"]


def test_a_jpeg_that_stays_cut_short_is_named(
    tmp_path: Path, start: Callable[..., Watching]
) -> None:
    path = picture(tmp_path / "cut.jpg")
    whole = path.read_bytes()
    # A preview in the head, as cameras put it there, has an end of its own.
    preview = b"\xff\xe1" + (2 + len(whole)).to_bytes(2, "big") + whole
    path.write_bytes((whole[:2] + preview + whole[2:])[: -len(whole) // 3])
    good = picture(tmp_path / "good.jpg")
    good.write_bytes(good.read_bytes()[:2] + preview + good.read_bytes()[2:] + b"SEFT")
    # Markers may be filled up, and some stand alone.
    filled = picture(tmp_path / "filled.jpg")
    filled.write_bytes(
        filled.read_bytes()[:2] + b"\xff\xff\xff\x01\xff" + filled.read_bytes()[2:] + b"SEFT"
    )
    watching = start(tmp_path)
    watching.until_found(3)
    assert watching.items() == ["filled", "good"]
    assert "cut.jpg: is cut short" in str(watching.errors()[0])


def test_a_picture_that_is_replaced_is_not_taken_again(
    tmp_path: Path, start: Callable[..., Watching]
) -> None:
    picture(tmp_path / "a.png", 0)
    watching = start(tmp_path)
    watching.until_found(1)
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    watching.until_found(2)
    (tmp_path / "a.png").unlink()
    time.sleep(0.1)
    picture(tmp_path / "a.png", 3)
    picture(tmp_path / "c.png", 2)
    watching.until_found(3)
    time.sleep(0.3)
    assert watching.items() == ["a", "b", "c"]


def test_what_is_passed_over(tmp_path: Path, start: Callable[..., Watching]) -> None:
    for name in (
        ".a.png",
        "a.png.part",
        "b.png.tmp",
        "c.part.png",
        "d.tmp.jpg",
        "notes.txt",
        "g.png.crdownload",
    ):
        shutil.copy(write_image(tmp_path / "x/any.png", scene(0)[0]), tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    watching = start(tmp_path)
    (tmp_path / "a.png.part").rename(tmp_path / "a.png")
    (tmp_path / "z.png").symlink_to(tmp_path / "x/any.png")
    watching.until_found(2)
    time.sleep(0.3)
    assert sorted(watching.items()) == ["a", "z"] and not watching.errors()


def test_videos_are_left_alone_and_one_line_says_so(
    tmp_path: Path, start: Callable[..., Watching]
) -> None:
    (tmp_path / "drive-2.mp4").touch()
    (tmp_path / "drive-1.mp4").touch()
    picture(tmp_path / "a.png")
    watching = start(tmp_path)
    watching.until_found(2)
    (tmp_path / "drive-3.mkv").touch()
    picture(tmp_path / "b.png")
    watching.until_found(3)
    assert watching.items() == ["a", "b"]
    assert watching.errors() == [
        f"{tmp_path}/drive-1.mp4: a watch takes pictures, and leaves videos alone; "
        "label them with `fada infer FILE…`"
    ]


def test_a_folder_that_goes_away(tmp_path: Path, start: Callable[..., Watching]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "a.png")
    watching = start(folder)
    watching.until_found(1)
    shutil.rmtree(folder)
    watching.until_found(2)
    watching._thread.join(PATIENCE)
    assert not watching._thread.is_alive()
    assert watching.errors() == [
        f"{folder}: the watched folder is gone (No such file or directory) after 1 pictures; "
        "start the watch again when it is back"
    ]


def test_pictures_that_are_deleted_before_their_turn_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name)
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05)
    frames = without_pauses(source)
    assert isinstance(first := next(frames), Frame) and first.item == "a"
    (tmp_path / "b.png").unlink()
    assert isinstance(second := next(frames), Frame) and second.item == "c"
    assert source.dropped == 1
    source.stop()
    assert list(frames) == []


def test_what_is_written_to_while_it_is_read_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "a.png", 0)
    read = watch.read_rgb
    looks: list[int] = []

    def slow(file: Path) -> np.ndarray:
        looks.append(1)
        found = read(file)
        if len(looks) == 1:
            picture(path, 7)
            os.utime(path, (1, 1))
        return found

    monkeypatch.setattr(watch, "read_rgb", slow)
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05)
    frame = next(without_pauses(source))
    assert isinstance(frame, Frame) and len(looks) == 2
    np.testing.assert_array_equal(frame.rgb, scene(7)[0])


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = picture(tmp_path / "a.png")

    def refuse(self: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(watch.Path, "open", refuse)
    monkeypatch.setattr(watch, "read_rgb", refuse)
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05, give_up_s=0.2)
    assert str(next(without_pauses(source))) == f"{path}: cannot be read (Permission denied)"


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder to watch; make it first"):
        FolderWatcher(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a\.png: no such folder to watch"):
        FolderWatcher(picture(tmp_path / "a.png"))
    for times in ({"poll_s": 0.0}, {"settle_s": -1.0}, {"settle_s": 2.0, "give_up_s": 1.0}):
        with pytest.raises(UsageError, match="s; the first is above 0"):
            FolderWatcher(tmp_path, **times)


def test_a_long_pause_ends_with_the_watch(tmp_path: Path) -> None:
    source = FolderWatcher(tmp_path, poll_s=1000)
    timer = threading.Timer(0.3, source.stop)
    timer.start()
    assert list(without_pauses(source)) == []
    timer.join()
    assert list(without_pauses(source)) == []


def test_an_idle_watch_costs_next_to_nothing(tmp_path: Path) -> None:
    for index in range(1000):
        (tmp_path / f"{index}.txt").touch()
    source = FolderWatcher(tmp_path)
    threading.Timer(2.0, source.stop).start()
    before = time.thread_time()
    assert list(without_pauses(source)) == []
    assert time.thread_time() - before < 0.5


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Nothing of a picture that was taken is kept but its names."""
    for index in range(50):
        picture(tmp_path / f"{index:02d}.png")
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05)
    for item in without_pauses(source):
        assert isinstance(item, Frame)
        if item.index == 49:
            source.stop()
    assert not source._waiting and len(source._done) == len(source._items) == 50


def test_it_is_labeled_into_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(2):
        picture(folder / f"{index}.png", index)
    source = FolderWatcher(folder, poll_s=0.02, settle_s=0.05)
    saving = SaveOptions(tmp_path / "out", ("overlay", "mask", "json"))
    done = 0
    with Segmenter(color_model(tmp_path / "toy.onnx")) as segmenter:
        for _ in save_results(segmenter, [source], saving):
            done += 1
            if done == 2:
                # What comes later has its file while the watch goes on.
                assert (tmp_path / "out/mask/in/1.png").is_file()
                picture(folder / "2.png", 2)
            if done == 3:
                source.stop()
    for index in range(3):
        mask = cv2.imread(str(tmp_path / f"out/mask/in/{index}.png"), cv2.IMREAD_UNCHANGED)
        want = segmenter.space.to_train_ids[scene(index)[1]]
        assert mask is not None and (mask == want).mean() > 0.9
    assert (tmp_path / "out/json/in.json").is_file() and (
        tmp_path / "out/overlay/in/2.jpg"
    ).is_file()


def test_a_batch_does_not_wait_for_pictures_to_come(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        picture(folder / f"{index}.png", index)
    before = set(threading.enumerate())
    source = FolderWatcher(folder, poll_s=0.02, settle_s=0.05)
    with Segmenter(color_model(tmp_path / "toy.onnx"), batch=2) as segmenter:
        results = segmenter.stream(source)
        assert [next(results).item for _ in range(3)] == ["0", "1", "2"]
        # Nothing comes any more, and the threads end all the same.
        results.close()
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("fada")]
    assert not left
