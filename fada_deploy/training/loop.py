"""The bookkeeping around a training loop: progress, metrics, saved states and signals.

A stage iterates over a `TrainingLoop` and reports its losses to it; the arithmetic stays in the
stage. On SIGINT, SIGTERM or SIGHUP the loop saves the training state after the current iteration
and raises `InterruptedRunError`.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from fada_deploy.common.errors import FadaError, InterruptedRunError
from fada_deploy.common.files import write_text
from fada_deploy.common.progress import Progress, progress_bar
from fada_deploy.common.runs import METRICS
from fada_deploy.common.signals import handled
from fada_deploy.training import distributed
from fada_deploy.training.data.loader import WaitTimer
from fada_deploy.training.device import peak_memory_mib, reset_peak_memory
from fada_deploy.training.weights.checkpoints import Stateful, load_state, save_state

logger = logging.getLogger(__name__)

STATE = "state.pt"

# Short names of metrics for the progress bar.
_SHORT_NAMES = {
    "discriminator_source": "D_source",
    "discriminator_target": "D_target",
    "discriminator_accuracy": "D_accuracy",
}

TrainingState = Mapping[str, Stateful]
Metrics = Mapping[str, float]
MakeLoop = Callable[[TrainingState], "TrainingLoop"]


def _ignore(iteration: int, value: Any) -> None:
    return None


class TrainingLoop:
    """Iterate over the remaining iterations of a stage.

    All callbacks but `on_start` get the number of finished iterations first. Only the main process
    calls `on_log`.

    Args:
        folder: Folder of the stage; gets `metrics.jsonl` and, until the stage is finished,
            `state.pt`. If there is a saved state, it is restored and the stage resumes after it.
        state: Every object whose state a resumed stage needs, by name.
        iterations: Number of iterations of the stage.
        device: Training device.
        save_every: Iterations between two saved states.
        checkpoint_every: Iterations between two calls of `on_checkpoint`; 0 for none.
        on_checkpoint: Called with the state, to keep weights for a later comparison.
        on_log: Called with each line of metrics that is written to `metrics.jsonl`.
        on_visualize: Called with the state after each tenth of the stage.
        on_start: Called before each iteration, without arguments.
        timer: The time for which the stage has waited for batches.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        *,
        iterations: int,
        device: torch.device,
        save_every: int,
        checkpoint_every: int = 0,
        on_checkpoint: Callable[[int, TrainingState], None] = _ignore,
        on_log: Callable[[int, Metrics], None] = _ignore,
        on_visualize: Callable[[int, TrainingState], None] = _ignore,
        on_start: Callable[[], None] = lambda: None,
        timer: WaitTimer | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._state, self._iterations, self._device = state, iterations, device
        self._save_every, self._checkpoint_every = save_every, checkpoint_every
        self._on_checkpoint, self._on_log = on_checkpoint, on_log
        self._on_visualize, self._on_start = on_visualize, on_start
        self._log_every = max(1, min(50, iterations // 50))
        self._tenth = max(1, iterations // 10)
        self._state_path, self._metrics_path = folder / STATE, folder / METRICS
        # What was logged since the last flush, one entry per iteration.
        self._files: list[tuple[str, ...]] = []
        self._learning_rates: list[Metrics] = []
        self._losses: list[Mapping[str, Tensor]] = []
        self._signal: int | None = None
        self._start = self._last_saved = load_state(self._state_path, state)
        if distributed.is_main_process():
            self._truncate_metrics()
        self._start_time = self._flush_time = 0.0
        self._timer, self._flush_waited = timer or WaitTimer(), 0.0

    def __iter__(self) -> Iterator[int]:
        reset_peak_memory(self._device)
        self._start_time = self._flush_time = time.monotonic()
        self._flush_waited = self._timer.seconds
        with (
            handled(self._stop),
            progress_bar(self._iterations, self.folder.name, unit="it", initial=self._start) as bar,
        ):
            for iteration in range(self._start, self._iterations):
                self._on_start()
                yield iteration
                bar.update()
                self._finish_iteration(iteration + 1, bar)

    def log(
        self, files: tuple[str, ...], learning_rates: Metrics, losses: Mapping[str, Tensor]
    ) -> None:
        """Record the files and metrics of one iteration; their means are written at intervals.

        `losses` are this process's part of the losses of the global batch. They are summed over the
        processes; learning rates are not.
        """
        self._files.append(files)
        self._learning_rates.append(learning_rates)
        self._losses.append({name: value.detach() for name, value in losses.items()})

    def _finish_iteration(self, done: int, bar: Progress) -> None:
        is_last = done == self._iterations
        if (done % self._log_every == 0 or is_last) and (metrics := self._flush(done)):
            bar.set_postfix(_short(metrics))
        if 10 * done // self._iterations > 10 * (done - 1) // self._iterations:
            self._on_visualize(done, self._state)
        if self._checkpoint_every and done % self._checkpoint_every == 0 and not is_last:
            # So that no weights are kept after a loss that is not finite.
            self._flush(done)
            self._on_checkpoint(done, self._state)
        if distributed.any_process(self._signal is not None, self._device):
            self._save(done)
            raise InterruptedRunError(
                f"stopped after {done} iterations of {self.folder.name}; resume with: "
                f"fada train --resume {shlex.quote(str(self.folder.parent))}"
            )
        if done % self._save_every == 0 and not is_last:
            self._save(done)

    def _flush(self, done: int) -> Metrics | None:
        """Write and return the mean metrics since the last flush; None if there are none.

        Losses are read here instead of in every iteration, because reading makes a GPU wait.
        """
        if not self._losses:
            return None
        losses = self._global_losses()
        files, learning_rates = self._files, self._learning_rates
        self._files, self._learning_rates, self._losses = [], [], []
        for step, values in enumerate(losses):
            not_finite = [name for name, value in values.items() if not math.isfinite(value)]
            if not_finite:
                batch_files = sum(distributed.all_gather(files[step]), ())
                self._raise_not_finite(done - len(losses) + step + 1, not_finite, batch_files)
        if not distributed.is_main_process():
            return None
        now = time.monotonic()
        num_images = sum(map(len, files)) * distributed.world_size()
        elapsed, waited = now - self._flush_time, self._timer.seconds - self._flush_waited
        metrics = {
            **_means(losses),
            **_means(learning_rates),
            "images_per_second": round(num_images / elapsed, 2),
            "loader_wait": round(waited / elapsed, 3),
            "memory_mib": peak_memory_mib(self._device),
        }
        self._flush_time, self._flush_waited = now, self._timer.seconds
        seconds = now - self._start_time
        line = {"iteration": done, "seconds": round(seconds, 3), **metrics}
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._on_log(done, metrics)
        if done // self._tenth > (done - len(losses)) // self._tenth:
            remaining = seconds / max(1, done - self._start) * (self._iterations - done)
            shown = ", ".join(f"{name} {value}" for name, value in _short(metrics).items())
            logger.info(
                "%s %d/%d, %.0f s left, %s",
                self.folder.name, done, self._iterations, remaining, shown,
            )  # fmt: skip
        return metrics

    def _global_losses(self) -> list[Metrics]:
        """Return the losses of each logged iteration, summed over the processes."""
        names = list(self._losses[0])
        # One copy from the device instead of one for each value.
        local = torch.stack(
            [torch.stack([values[n].double() for n in names]) for values in self._losses]
        )
        total = distributed.all_reduce_sum(local).tolist()
        return [dict(zip(names, row, strict=True)) for row in total]

    def _raise_not_finite(self, iteration: int, names: list[str], files: tuple[str, ...]) -> None:
        stage = self.folder.name
        saved = (
            f"the state of iteration {self._last_saved} is saved"
            if self._last_saved
            else "no state has been saved yet"
        )
        batch = f" on {', '.join(files)}" if files else ""
        raise FadaError(
            f"{stage}: {', '.join(names)} is not finite at iteration {iteration}{batch}; {saved}; "
            f"check these files, or lower {stage}.lr and start a new run"
        )

    def _save(self, done: int) -> None:
        # Flush first, so that no state is saved after a loss that is not finite.
        self._flush(done)
        if distributed.is_main_process():
            save_state(self._state_path, done, self._state)
        self._last_saved = done
        distributed.barrier()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Stop after this iteration; a second signal interrupts at once."""
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        logger.warning("stopping after this iteration; press Ctrl-C again to quit without saving")

    def _truncate_metrics(self) -> None:
        """Remove the metrics of iterations after the restored state."""
        if self._metrics_path.is_file():
            lines = self._metrics_path.read_text("utf-8").splitlines(keepends=True)
            valid = [line for line in lines if line.endswith("\n") and self._is_before_start(line)]
            write_text(self._metrics_path, "".join(valid))

    def _is_before_start(self, line: str) -> bool:
        """Return whether a line has metrics of the restored state; a damaged one has none."""
        try:
            return bool(json.loads(line)["iteration"] <= self._start)
        except (ValueError, KeyError, TypeError):
            return False


def _means(values: list[Metrics]) -> dict[str, float]:
    return {name: sum(entry[name] for entry in values) / len(values) for name in values[0]}


def _short(metrics: Metrics) -> dict[str, str]:
    """Return the losses and the memory in GiB as short texts, for one line of progress."""
    hidden = ("lr", "discriminator_lr", "images_per_second", "loader_wait", "memory_mib")
    shown = {_SHORT_NAMES.get(n, n): f"{v:.3g}" for n, v in metrics.items() if n not in hidden}
    return {**shown, "GiB": f"{metrics['memory_mib'] / 1024:.1f}"}
