"""BatchLoader as a pure function of the iteration, decoded ahead in threads.

Slot s of iteration i shows the frame at position i · batch + s of its order, augmented by a
generator seeded with (seed, position): nothing to save, so a resumed run sees what the whole run saw,
and several processes that share a batch's slots see what one would.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fada_deploy.common.errors import DataError
from fada_deploy.common.system import usable_cores
from fada_deploy.training.distributed import local_slots

Sample = tuple[NDArray[np.uint8], NDArray[np.uint8]]
MAX_BAD_IN_A_ROW = 20


class Sampler(Protocol):
    """An endless sequence of frame numbers."""

    def __getitem__(self, position: int) -> int: ...


@dataclass(frozen=True)
class Batch:
    """Frames (B, H, W, 3) uint8 RGB, labels (B, H, W) int64 with 255 ignored, the frames' numbers and files.

    `ego` (H, W) bool is true on the car's own bonnet, in every frame alike; None where none is known.
    """

    frames_bhwc: Tensor
    labels: Tensor
    indices: tuple[int, ...]
    files: tuple[str, ...] = ()
    ego: Tensor | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.labels.shape[1], self.labels.shape[2]

    def parts(self, count: int) -> tuple[Batch, ...]:
        """Return the batch in `count` equal parts, to be taken one after another."""
        if len(self.indices) % count:
            raise ValueError(f"{len(self.indices)} frames make no {count} equal parts")
        each = len(self.indices) // count
        files = self.files or ("",) * len(self.indices)
        slots = [slice(i * each, (i + 1) * each) for i in range(count)]
        return tuple(
            Batch(self.frames_bhwc[s], self.labels[s], self.indices[s], files[s], self.ego)
            for s in slots
        )

    def ignore(self, size_hw: tuple[int, int]) -> Tensor | None:
        """Return the pixels to leave out of a domain loss at a size, (B, *size_hw) bool, or None."""
        if self.ego is None:
            return None
        mask = F.interpolate(self.ego[None, None].float(), size_hw, mode="nearest") > 0
        return mask[0].expand(len(self.indices), -1, -1)


class BatchLoader:
    """`batches[i]` is iteration i's batch; the next ones are prepared meanwhile.

    `load(index, rng)` gives one augmented sample, `file(index)` names it. A frame that cannot be read is
    replaced by the next of the order and named in `bad`; `MAX_BAD_IN_A_ROW` of them raise `DataError`.
    """

    def __init__(
        self,
        load: Callable[[int, np.random.Generator], Sample],
        order: Sampler,
        *,
        batch: int,
        seed: int,
        device: torch.device,
        file: Callable[[int], str] = str,
        ego: NDArray[np.bool_] | None = None,
        ahead: int = 3,
    ) -> None:
        self._load, self._order, self._batch, self._seed = load, order, batch, seed
        self._slots = local_slots(batch)
        self._device, self._file, self._ahead = device, file, ahead
        self._ego = None if ego is None else torch.from_numpy(ego).to(device)
        self._pool = ThreadPoolExecutor(min(8, usable_cores()), "batches")
        self._waiting: dict[int, list[Future[tuple[int, Sample]]]] = {}
        self.bad: dict[str, None] = {}

    def __getitem__(self, iteration: int) -> Batch:
        self._waiting = {i: f for i, f in self._waiting.items() if i >= iteration}
        for i in range(iteration, iteration + self._ahead):
            if i not in self._waiting:
                first = i * self._batch
                self._waiting[i] = [
                    self._pool.submit(self._sample, first + slot) for slot in self._slots
                ]
        indices, samples = zip(*(f.result() for f in self._waiting.pop(iteration)), strict=True)
        frames = torch.from_numpy(np.stack([frame for frame, _ in samples]))
        labels = torch.from_numpy(np.stack([labels for _, labels in samples]))
        files = tuple(map(self._file, indices))
        return Batch(
            frames.to(self._device), labels.to(self._device).long(), indices, files, self._ego
        )

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _sample(self, position: int) -> tuple[int, Sample]:
        last: DataError | None = None
        for step in range(MAX_BAD_IN_A_ROW):
            index = self._order[position + step]
            try:
                return index, self._load(index, np.random.default_rng([self._seed, position]))
            except DataError as error:
                self.bad[str(error)] = None
                last = error
        raise DataError(f"{MAX_BAD_IN_A_ROW} frames in a row cannot be used, the last: {last}")
