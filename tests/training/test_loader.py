"""`BatchLoader`: batches as a pure function of the iteration, and unreadable files."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fada_deploy.common.errors import DataError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.data import open_dataset
from fada_deploy.data.cache import MemoryCache
from fada_deploy.training.data.loader import Batch, BatchLoader, Sample, Sampler, WaitTimer
from fada_deploy.training.data.samples import PseudoLabeledSamples
from fada_deploy.training.stage_config import DistillStage

BAD = 3


class Cycle:
    def __getitem__(self, position: int) -> int:
        return position % 7


class OnlyBadFrames:
    def __getitem__(self, position: int) -> int:
        return BAD


def load(index: int, rng: np.random.Generator) -> Sample:
    if index == BAD:
        raise DataError("frame 3 is broken")
    frame = np.full((2, 4, 3), index, np.uint8)
    frame[0] += rng.integers(100, dtype=np.uint8)
    return Sample(frame, np.full((2, 4), index, np.uint8))


@contextmanager
def open_loader(
    sampler: Sampler | None = None, ego: np.ndarray | None = None
) -> Iterator[BatchLoader]:
    device = torch.device("cpu")
    loader = BatchLoader(load, sampler or Cycle(), batch=2, seed=5, device=device, ego=ego)
    try:
        yield loader
    finally:
        loader.close()


def test_batch_depends_only_on_its_iteration() -> None:
    with open_loader() as uninterrupted, open_loader() as resumed:
        batches = [uninterrupted[i] for i in range(12)]
        for i in range(9, 12):
            batch = resumed[i]
            assert batch.indices == batches[i].indices
            assert torch.equal(batch.frames_bhwc, batches[i].frames_bhwc)
    assert batches[2].indices == (4, 5) and batches[0].labels.dtype == torch.int64
    assert not torch.equal(batches[0].frames_bhwc, batches[7].frames_bhwc)


def test_bad_frame_is_replaced_by_the_next_and_reported() -> None:
    with open_loader() as loader:
        assert loader[1].indices == (2, 4)
        assert list(loader.bad) == ["frame 3 is broken"]


def test_raises_after_20_consecutive_bad_frames() -> None:
    with (
        open_loader(OnlyBadFrames()) as loader,
        pytest.raises(DataError, match=r"20 .*frame 3 is broken"),
    ):
        loader[0]


def test_ignore_mask_is_the_ego_mask_at_any_size() -> None:
    ego = np.zeros((2, 4), bool)
    ego[1] = True
    with open_loader(ego=ego) as loader:
        mask = loader[0].ignore_mask((4, 8))
    assert mask is not None and mask.shape == (2, 4, 8)
    assert not mask[:, :2].any() and mask[:, 2:].all()
    with open_loader() as loader:
        assert loader[0].ignore_mask((4, 8)) is None


def test_split_divides_every_field_and_rejects_unequal_parts() -> None:
    labels = torch.arange(4).view(4, 1, 1)
    frames = labels[..., None].expand(-1, -1, -1, 3).byte()
    batch = Batch(frames, labels, (10, 11, 12, 13), ("a", "b", "c", "d"))
    first, second = batch.split(2)
    assert (first.indices, second.indices) == ((10, 11), (12, 13))
    assert (first.files, second.files) == (("a", "b"), ("c", "d"))
    assert second.labels.flatten().tolist() == [2, 3]
    assert second.frames_bhwc[:, 0, 0, 0].tolist() == [2, 3]
    with pytest.raises(ValueError, match="4 is not divisible by 3"):
        batch.split(3)


def test_waiting_time_is_counted() -> None:
    """The time until a batch is there, and none for batches that were prepared meanwhile."""
    release, ready = threading.Event(), threading.Semaphore(0)

    def wait_and_load(index: int, rng: np.random.Generator) -> Sample:
        release.wait()
        ready.release()
        return load(1, rng)

    timer = WaitTimer()
    loader = BatchLoader(
        wait_and_load, Cycle(), batch=2, seed=5, device=torch.device("cpu"), timer=timer
    )
    threading.Timer(0.3, release.set).start()
    loader[0]
    assert timer.seconds > 0.25
    for _ in range(6):
        ready.acquire()
    loader._batches.submit(lambda: None).result()  # after the batches that are in preparation
    before = timer.seconds
    loader[1]
    assert timer.seconds - before < 0.1
    loader.close()


def test_an_error_of_a_sample_reaches_the_training() -> None:
    def fail(index: int, rng: np.random.Generator) -> Sample:
        raise ValueError("a defect")

    loader = BatchLoader(fail, Cycle(), batch=2, seed=5, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="a defect"):
        loader[0]
    loader.close()


def test_cached_frames_are_those_of_the_files(blocks: Path, tmp_path: Path) -> None:
    """What fits is read once; what does not fit is read again; the files may then change."""
    plain = open_dataset(str(blocks / "source.toml"), None, split="train", space=CITYSCAPES_13)
    frame, labels = plain.pair(0)
    cache = MemoryCache(frame.nbytes + labels.nbytes)
    image = tmp_path / "frame.png"
    cv2.imwrite(str(image), frame[..., ::-1])
    pairs = [replace(plain.pairs[0], image=image), plain.pairs[1]]
    cached = replace(plain, pairs=pairs, cache=cache)
    for _ in range(2):
        for got, want in zip(cached.pair(0), (frame, labels), strict=True):
            np.testing.assert_array_equal(got, want)
        image.unlink(missing_ok=True)
    assert cache.size == cache.limit
    np.testing.assert_array_equal(cached.image(1), plain.image(1))
    assert cache.size == cache.limit and not cached.image(0).flags.writeable
    assert pickle.loads(pickle.dumps(cache)).size == 0
    assert cached == replace(plain, pairs=pairs)


def test_an_unreadable_frame_without_pseudo_label_is_named(blocks: Path, tmp_path: Path) -> None:
    """It has no pseudo-label because it cannot be read, which is what the error has to say."""
    plain = open_dataset(str(blocks / "source.toml"), None, split="train", space=CITYSCAPES_13)
    image = tmp_path / "broken.png"
    image.write_bytes(b"no image")
    frames = replace(plain, pairs=[replace(plain.pairs[0], image=image)])
    samples = PseudoLabeledSamples(frames, tmp_path, DistillStage())
    with pytest.raises(DataError, match=r"broken\.png"):
        samples(0, np.random.default_rng(0))
