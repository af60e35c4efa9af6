"""The folder watcher: order and names of images, incomplete and unreadable files, stopping."""

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
from toy import TIMEOUT_S, color_model, scene, wait_until, write_image

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.runtime.segmenter import Segmenter
from fada_deploy.runtime.sources import folder_watcher
from fada_deploy.runtime.sources.base import Frame, Pause
from fada_deploy.runtime.sources.folder_watcher import FolderWatcher
from fada_deploy.runtime.sources.open import open_sources
from fada_deploy.runtime.writers.save import SaveOptions, save_results


def without_pauses(source: FolderWatcher) -> Generator[Frame | DataError, None, None]:
    with closing(source.frames()) as items:
        yield from (item for item in items if not isinstance(item, Pause))


class RunningWatch:
    """A watcher that runs in a thread, and the items that it has yielded so far."""

    def __init__(self, source: FolderWatcher) -> None:
        self.source = source
        self.yielded: list[Frame | DataError] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for item in without_pauses(self.source):
            self.yielded.append(item)

    def wait_for(self, count: int) -> list[Frame | DataError]:
        wait_until(lambda: len(self.yielded) >= count)
        return self.yielded

    def items(self) -> list[str]:
        return [i.item for i in self.yielded if isinstance(i, Frame)]

    def errors(self) -> list[str]:
        return [str(i) for i in self.yielded if isinstance(i, DataError)]

    def end(self) -> None:
        self.source.stop()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def start() -> Iterator[Callable[..., RunningWatch]]:
    running: list[RunningWatch] = []

    def begin(folder: Path, **times: float) -> RunningWatch:
        defaults = {"poll_s": 0.02, "settle_s": 0.05, "timeout_s": 0.6}
        running.append(RunningWatch(FolderWatcher(folder, **(defaults | times))))
        return running[-1]

    yield begin
    for each in running:
        each.end()


def add_image(path: Path, index: int = 0) -> Path:
    """Add a complete image to a folder in one step, by renaming a hidden file."""
    hidden = write_image(path.with_name(f".{path.name}"), scene(index)[0])
    return hidden.rename(path)


def test_yields_existing_and_new_images(tmp_path: Path, start: Callable[..., RunningWatch]) -> None:
    for index, name in enumerate(["b.png", "a.png", "c.bmp"]):
        add_image(tmp_path / name, index)
    watch = start(tmp_path)
    watch.wait_for(3)
    assert watch.items() == ["a", "b", "c"]
    for index in range(5):
        add_image(tmp_path / f"later-{index}.png", index)
        watch.wait_for(4 + index)
    frames = [f for f in watch.yielded if isinstance(f, Frame)]
    assert [f.item for f in frames[3:]] == [f"later-{i}" for i in range(5)]
    assert [f.index for f in frames] == list(range(8)) and {f.source for f in frames} == {
        str(tmp_path)
    }
    np.testing.assert_array_equal(frames[0].rgb, scene(1)[0])
    np.testing.assert_array_equal(frames[6].rgb, scene(3)[0])
    assert all(f.pts is None and f.time_base is None for f in frames)


def test_is_a_live_source(tmp_path: Path) -> None:
    source = FolderWatcher(tmp_path)
    assert source.is_live and not source.is_video and source.count() is None
    assert source.rate is None and source.audio is None
    assert open_sources([source]) == [source]
    with pytest.raises(UsageError, match="live"):
        open_sources([source, add_image(tmp_path / "a.png")])


def test_repeated_stem_gets_its_full_name(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
    add_image(tmp_path / "a.png")
    add_image(tmp_path / "b.png")
    add_image(tmp_path / "b.bmp")
    watch = start(tmp_path)
    watch.wait_for(3)
    add_image(tmp_path / "a.bmp")
    watch.wait_for(4)
    # Its stem a.bmp is already the item name of another file.
    add_image(tmp_path / "a.bmp.png")
    watch.wait_for(5)
    assert watch.items() == ["a", "b.bmp", "b.png", "a.bmp", "a.bmp.png"]


def test_item_names_are_unique() -> None:
    source = FolderWatcher(Path.cwd())
    names = ["a.png.bmp", "a.bmp", "a.png", "a.jpg", "a.jpg.png", "a.jpg.png.png"]
    items = [source._unique_item(name, unique_stem=True) for name in names]
    assert items == ["a.png", "a", "a.png-2", "a.jpg", "a.jpg.png", "a.jpg.png.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_waits_for_a_file_that_is_being_written(
    tmp_path: Path, start: Callable[..., RunningWatch], suffix: str
) -> None:
    watch = start(tmp_path, timeout_s=TIMEOUT_S)
    frame = scene(3)[0]
    ok, data = cv2.imencode(suffix, frame[..., ::-1])
    assert ok
    with (tmp_path / f"slow{suffix}").open("wb", buffering=0) as file:
        content = data.tobytes()
        for part in range(3):
            file.write(content[part * len(content) // 4 : (part + 1) * len(content) // 4])
            add_image(tmp_path / f"other-{part}.png")
            # The writer stalls for longer than `settle_s`; other images are not delayed.
            watch.wait_for(part + 1)
        assert watch.items() == [f"other-{part}" for part in range(3)]
        file.write(content[3 * len(content) // 4 :])
    watch.wait_for(4)
    assert watch.items()[3] == "slow" and not watch.errors()
    (slow,) = [f for f in watch.yielded if isinstance(f, Frame) and f.item == "slow"]
    assert slow.rgb.shape == frame.shape and np.abs(slow.rgb.astype(int) - frame).mean() < 20


def test_unreadable_image_is_reported_once(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    (tmp_path / "empty.jpg").touch()
    add_image(tmp_path / "good.png")
    watch = start(tmp_path)
    watch.wait_for(3)
    add_image(tmp_path / "later.png")
    watch.wait_for(4)
    time.sleep(0.3)
    assert watch.items() == ["good", "later"]
    assert watch.errors() == [
        f"{tmp_path / name}: not a readable image (empty, truncated or of an unsupported format)"
        for name in ("bad.png", "empty.jpg")
    ]


def test_a_stalled_copy_is_read_when_it_goes_on(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
    data = add_image(tmp_path / "whole.png").read_bytes()
    (tmp_path / "copy.png").write_bytes(data[:100])
    watch = start(tmp_path)
    watch.wait_for(2)
    assert len(watch.errors()) == 1 and "copy.png" in watch.errors()[0]
    (tmp_path / "copy.png").write_bytes(data)
    watch.wait_for(3)
    time.sleep(0.2)
    assert watch.items() == ["whole", "copy"] and len(watch.errors()) == 1


def test_image_replaced_before_the_timeout_is_read(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    watch = start(tmp_path, timeout_s=TIMEOUT_S)
    wait_until(lambda: any(p.tried for p in watch.source._pending.values()))
    add_image(tmp_path / "a.png", 5)
    (frame,) = watch.wait_for(1)
    assert isinstance(frame, Frame)
    np.testing.assert_array_equal(frame.rgb, scene(5)[0])


def test_jpeg_with_trailing_data_is_read(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
    path = add_image(tmp_path / "phone.jpg")
    path.write_bytes(path.read_bytes() + b"SEFT")
    padded = add_image(tmp_path / "camera.jpg")
    padded.write_bytes(padded.read_bytes() + bytes(100))
    watch = start(tmp_path)
    watch.wait_for(2)
    assert watch.items() == ["camera", "phone"]


def test_truncated_jpeg_is_reported(tmp_path: Path, start: Callable[..., RunningWatch]) -> None:
    path = add_image(tmp_path / "cut.jpg")
    content = path.read_bytes()
    # Cameras embed a preview in the header, which has an end marker of its own.
    preview = b"\xff\xe1" + (2 + len(content)).to_bytes(2, "big") + content
    path.write_bytes((content[:2] + preview + content[2:])[: -len(content) // 3])
    good = add_image(tmp_path / "good.jpg")
    good.write_bytes(good.read_bytes()[:2] + preview + good.read_bytes()[2:] + b"SEFT")
    # Markers may have fill bytes before them, and some have no length.
    filled = add_image(tmp_path / "filled.jpg")
    filled.write_bytes(
        filled.read_bytes()[:2] + b"\xff\xff\xff\x01\xff" + filled.read_bytes()[2:] + b"SEFT"
    )
    watch = start(tmp_path)
    watch.wait_for(3)
    assert watch.items() == ["filled", "good"]
    assert "cut.jpg: truncated" in watch.errors()[0]


def test_replaced_image_is_not_read_again(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
    add_image(tmp_path / "a.png", 0)
    watch = start(tmp_path)
    watch.wait_for(1)
    add_image(tmp_path / "a.png", 1)
    add_image(tmp_path / "b.png", 2)
    watch.wait_for(2)
    (tmp_path / "a.png").unlink()
    time.sleep(0.1)
    add_image(tmp_path / "a.png", 3)
    add_image(tmp_path / "c.png", 2)
    watch.wait_for(3)
    time.sleep(0.3)
    assert watch.items() == ["a", "b", "c"]


def test_ignores_hidden_temporary_and_other_files(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
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
    watch = start(tmp_path)
    (tmp_path / "a.png.part").rename(tmp_path / "a.png")
    (tmp_path / "z.png").symlink_to(tmp_path / "x/any.png")
    watch.wait_for(2)
    time.sleep(0.3)
    assert sorted(watch.items()) == ["a", "z"] and not watch.errors()


def test_videos_are_ignored_with_one_error(
    tmp_path: Path, start: Callable[..., RunningWatch]
) -> None:
    (tmp_path / "drive-2.mp4").touch()
    (tmp_path / "drive-1.mp4").touch()
    add_image(tmp_path / "a.png")
    watch = start(tmp_path)
    watch.wait_for(2)
    (tmp_path / "drive-3.mkv").touch()
    add_image(tmp_path / "b.png")
    watch.wait_for(3)
    assert watch.items() == ["a", "b"]
    (error,) = watch.errors()
    assert error.startswith(f"{tmp_path}/drive-1.mp4: ") and "fada infer" in error


def test_removed_folder_ends_the_watch(tmp_path: Path, start: Callable[..., RunningWatch]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    add_image(folder / "a.png")
    watch = start(folder)
    watch.wait_for(1)
    shutil.rmtree(folder)
    watch.wait_for(2)
    watch._thread.join(TIMEOUT_S)
    assert not watch._thread.is_alive()
    (error,) = watch.errors()
    assert error.startswith(f"{folder}: ") and "No such file" in error and "after 1 images" in error


def test_counts_images_deleted_before_they_were_read(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        add_image(tmp_path / name)
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05)
    frames = without_pauses(source)
    assert isinstance(first := next(frames), Frame) and first.item == "a"
    (tmp_path / "b.png").unlink()
    assert isinstance(second := next(frames), Frame) and second.item == "c"
    assert source.dropped == 1
    source.stop()
    assert list(frames) == []


def test_image_changed_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_image(tmp_path / "a.png", 0)
    read = folder_watcher.read_rgb
    reads: list[int] = []

    def slow(file: Path) -> np.ndarray:
        reads.append(1)
        image = read(file)
        if len(reads) == 1:
            add_image(path, 7)
            os.utime(path, (1, 1))
        return image

    monkeypatch.setattr(folder_watcher, "read_rgb", slow)
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05)
    frame = next(without_pauses(source))
    assert isinstance(frame, Frame) and len(reads) == 2
    np.testing.assert_array_equal(frame.rgb, scene(7)[0])


def test_file_without_permission_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_image(tmp_path / "a.png")

    def refuse(self: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_watcher.Path, "open", refuse)
    monkeypatch.setattr(folder_watcher, "read_rgb", refuse)
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05, timeout_s=0.2)
    assert str(next(without_pauses(source))) == f"{path}: cannot be read (Permission denied)"


def test_invalid_arguments_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        FolderWatcher(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"a\.png: no such folder"):
        FolderWatcher(add_image(tmp_path / "a.png"))
    for times in ({"poll_s": 0.0}, {"settle_s": -1.0}, {"settle_s": 2.0, "timeout_s": 1.0}):
        with pytest.raises(UsageError, match="greater than 0"):
            FolderWatcher(tmp_path, **times)


def test_stop_ends_a_long_wait(tmp_path: Path) -> None:
    source = FolderWatcher(tmp_path, poll_s=1000)
    timer = threading.Timer(0.3, source.stop)
    timer.start()
    assert list(without_pauses(source)) == []
    timer.join()
    assert list(without_pauses(source)) == []


def test_idle_watch_uses_little_cpu_time(tmp_path: Path) -> None:
    for index in range(1000):
        (tmp_path / f"{index}.txt").touch()
    source = FolderWatcher(tmp_path)
    threading.Timer(2.0, source.stop).start()
    before = time.thread_time()
    assert list(without_pauses(source)) == []
    assert time.thread_time() - before < 0.5


def test_memory_does_not_grow_with_image_data(tmp_path: Path) -> None:
    """Only the names of images that were read stay in memory."""
    for index in range(50):
        add_image(tmp_path / f"{index:02d}.png")
    source = FolderWatcher(tmp_path, poll_s=0.02, settle_s=0.05)
    for item in without_pauses(source):
        assert isinstance(item, Frame)
        if item.index == 49:
            source.stop()
    assert not source._pending and len(source._read_names) == len(source._items) == 50


def test_writes_output_files_while_watching(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(2):
        add_image(folder / f"{index}.png", index)
    source = FolderWatcher(folder, poll_s=0.02, settle_s=0.05)
    options = SaveOptions(tmp_path / "out", ("overlay", "mask", "json"))
    done = 0
    with Segmenter(color_model(tmp_path / "toy.onnx")) as segmenter:
        for _ in save_results(segmenter, [source], options):
            done += 1
            if done == 2:
                # The files of earlier images exist while the watch continues.
                assert (tmp_path / "out/mask/in/1.png").is_file()
                add_image(folder / "2.png", 2)
            if done == 3:
                source.stop()
    for index in range(3):
        mask = cv2.imread(str(tmp_path / f"out/mask/in/{index}.png"), cv2.IMREAD_UNCHANGED)
        expected = segmenter.space.to_train_ids[scene(index)[1]]
        assert mask is not None and (mask == expected).mean() > 0.9
    assert (tmp_path / "out/json/in.json").is_file() and (
        tmp_path / "out/overlay/in/2.jpg"
    ).is_file()


def test_partial_batch_is_processed_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(3):
        add_image(folder / f"{index}.png", index)
    before = set(threading.enumerate())
    source = FolderWatcher(folder, poll_s=0.02, settle_s=0.05)
    with Segmenter(color_model(tmp_path / "toy.onnx"), batch=2) as segmenter:
        results = segmenter.stream(source)
        assert [next(results).item for _ in range(3)] == ["0", "1", "2"]
        # The threads end although no further image arrives.
        results.close()
    names = {t.name for t in set(threading.enumerate()) - before}
    assert not [name for name in names if name.startswith("fada") and "kernels" not in name]
