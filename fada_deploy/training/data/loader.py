"""Batches as a pure function of the iteration, decoded ahead in threads.

Slot `s` of iteration `i` holds the frame at position `i · batch + s` of the sampler, augmented by a
random generator seeded with (seed, position). There is no iterator state to save: a resumed run
gets the batches of an uninterrupted one, and processes that divide the slots of a batch among them
get the batch of a single process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.errors import DataError
from fada_deploy.common.system import usable_cores
from fada_deploy.training.data.color_change import ColorChange
from fada_deploy.training.data.color_kernels import change_colors
from fada_deploy.training.data.samplers import Sampler
from fada_deploy.training.device import copy_to_device
from fada_deploy.training.distributed import local_slots

MAX_CONSECUTIVE_BAD = 20


class Sample(NamedTuple):
    """A frame (H, W, 3) uint8 RGB and its labels (H, W) uint8, 255 where ignored.

    `colors` are changes of the frame that are left to the loader; None for none.
    """

    frame: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    colors: ColorChange | None = None


@dataclass
class WaitTimer:
    """The seconds for which a training has waited for batches."""

    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Batch:
    """The frames of one iteration and their labels, on the training device.

    `frames_bhwc` is (B, H, W, 3) uint8 RGB; `labels` is (B, H, W) int64 class indices, 255 where
    ignored; `indices` and `files` identify the frames. `ego`, (H, W) bool, is true on the car's own
    body and applies to every frame; None if there is no such mask. `class_weights` (K,) float
    weights the segmentation loss of each pixel by its class; None weights all pixels equally.
    `weights` (B, H, W) float weights pixels of pseudo-labels.
    """

    frames_bhwc: Tensor
    labels: Tensor
    indices: tuple[int, ...]
    files: tuple[str, ...] = ()
    ego: Tensor | None = None
    class_weights: Tensor | None = None
    weights: Tensor | None = None

    @property
    def pixel_weights(self) -> Tensor | None:
        """The weight of each pixel in the segmentation loss, (B, H, W) float; None for equal ones.

        The weights of ignored pixels have no meaning.
        """
        if self.class_weights is None:
            return self.weights
        return self.class_weights[self.labels.clamp(max=len(self.class_weights) - 1)]

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.labels.shape[1], self.labels.shape[2]

    def split(self, count: int) -> tuple[Batch, ...]:
        """Split the batch into `count` equal parts, for gradient accumulation.

        Raise `ValueError` if the batch size is not a multiple of `count`.
        """
        if len(self.indices) % count:
            raise ValueError(f"a batch of {len(self.indices)} is not divisible by {count}")
        size = len(self.indices) // count
        files = self.files or ("",) * len(self.indices)
        slots = [slice(i * size, (i + 1) * size) for i in range(count)]
        return tuple(
            Batch(
                self.frames_bhwc[s], self.labels[s], self.indices[s], files[s], self.ego,
                self.class_weights, None if self.weights is None else self.weights[s],
            )
            for s in slots
        )  # fmt: skip

    def ignore_mask(self, size_hw: tuple[int, int]) -> Tensor | None:
        """Return the pixels that a domain loss ignores, (B, *size_hw) bool; None for no pixel."""
        if self.ego is None:
            return None
        mask = F.interpolate(self.ego[None, None].float(), size_hw, mode="nearest") > 0
        return mask[0].expand(len(self.indices), -1, -1)


class BatchLoader:
    """Load batches by iteration: `loader[i]`, with the following batches prepared in threads.

    `load(index, rng)` returns one augmented sample; `file(index)` returns its file name. A frame
    that cannot be read is replaced by the next one of the sampler, and its error is a key of `bad`.
    `MAX_CONSECUTIVE_BAD` unreadable frames in a row raise `DataError`.

    Args:
        load: Reads and augments one sample.
        sampler: Order of the frames.
        batch: Global batch size over all processes; each process loads its own slots.
        seed: Seed of the augmentation.
        device: Device of the returned tensors.
        file: Maps a frame index to a name for `Batch.files`.
        ego: Mask of the car's own body, (H, W) bool at the size of the samples.
        class_weights: Weights of the classes in the segmentation loss, (K,) float.
        ahead: Number of batches in preparation, the requested one included.
        timer: Counts the time for which a batch was not ready.
    """

    def __init__(
        self,
        load: Callable[[int, np.random.Generator], Sample],
        sampler: Sampler,
        *,
        batch: int,
        seed: int,
        device: torch.device,
        file: Callable[[int], str] = str,
        ego: NDArray[np.bool_] | None = None,
        class_weights: NDArray[np.float32] | None = None,
        ahead: int = 3,
        timer: WaitTimer | None = None,
    ) -> None:
        self._timer = timer or WaitTimer()
        self._load, self._sampler, self._batch, self._seed = load, sampler, batch, seed
        self._slots = local_slots(batch)
        self._device, self._file, self._ahead = device, file, ahead
        self._ego = None if ego is None else torch.from_numpy(ego).to(device)
        self._class_weights = None
        if class_weights is not None:
            self._class_weights = torch.from_numpy(class_weights).to(device)
        self._pool = ThreadPoolExecutor(usable_cores(), "samples")
        # One more thread puts batches together, so that the training never copies frames.
        self._batches = ThreadPoolExecutor(1, "batches")
        self._pending: dict[int, Future[Batch]] = {}
        self.bad: dict[str, None] = {}

    def __getitem__(self, iteration: int) -> Batch:
        self._pending = {i: f for i, f in self._pending.items() if i >= iteration}
        for i in range(iteration, iteration + self._ahead):
            if i not in self._pending:
                first = i * self._batch
                samples = [self._pool.submit(self._sample, first + slot) for slot in self._slots]
                self._pending[i] = self._batches.submit(self._assemble, samples)
        start = time.perf_counter()
        batch = self._pending.pop(iteration).result()
        self._timer.seconds += time.perf_counter() - start
        return batch

    def _assemble(self, futures: list[Future[tuple[int, Sample]]]) -> Batch:
        indices, samples = zip(*(future.result() for future in futures), strict=True)
        frames, labels = (
            copy_to_device(np.stack(arrays), self._device)
            for arrays in ([s.frame for s in samples], [s.labels for s in samples])
        )
        if changes := [s.colors for s in samples if s.colors is not None]:
            frames = change_colors(frames, changes)
        files = tuple(map(self._file, indices))
        return Batch(frames, labels.long(), indices, files, self._ego, self._class_weights)

    def close(self) -> None:
        """Cancel the prepared batches and stop the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._batches.shutdown(cancel_futures=True)

    def _sample(self, position: int) -> tuple[int, Sample]:
        last_error: DataError | None = None
        for step in range(MAX_CONSECUTIVE_BAD):
            index = self._sampler[position + step]
            try:
                return index, self._load(index, np.random.default_rng([self._seed, position]))
            except DataError as error:
                self.bad[str(error)] = None
                last_error = error
        raise DataError(
            f"{MAX_CONSECUTIVE_BAD} consecutive frames cannot be read, the last error: {last_error}"
        )
