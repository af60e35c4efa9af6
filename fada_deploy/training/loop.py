"""A stage's bookkeeping: progress, metrics, saved state, signals. The arithmetic stays in the stage.

`for iteration in session:` yields what is left to do, saves on the way, and stops cleanly on
SIGINT or SIGTERM with everything needed to go on.
"""

from __future__ import annotations

import json
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fada_deploy.common.errors import FadaError, InterruptedRunError
from fada_deploy.training import distributed
from fada_deploy.training.device import peak_memory_mib
from fada_deploy.training.weights.checkpoints import Stateful, load_state, save_state

# What a progress line has room for.
_SHORT = {
    "discriminator_source": "D_source",
    "discriminator_target": "D_target",
    "discriminator_accuracy": "D_right",
}

Parts = Mapping[str, Stateful]
LoopFactory = Callable[[Parts], "TrainingLoop"]


class TrainingLoop:
    """Run a stage of `iterations` in `folder`; `parts` is all the state there is.

    Every `save_every` iterations the state is saved, to go on from; every `checkpoint_every` (0: never)
    `on_checkpoint(done, parts)` is called, which puts weights aside to be compared later. `on_log(done, numbers)` is
    given what `metrics.jsonl` is, and `on_visualize(done, parts)` is called a few times a stage.
    """

    def __init__(
        self,
        folder: Path,
        parts: Parts,
        *,
        iterations: int,
        device: torch.device,
        save_every: int,
        checkpoint_every: int = 0,
        on_checkpoint: Callable[[int, Parts], None] = lambda done, parts: None,
        on_log: Callable[[int, Mapping[str, float]], None] = lambda done, numbers: None,
        on_visualize: Callable[[int, Parts], None] = lambda done, parts: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._device = device
        self.folder, self._iterations, self._parts = folder, iterations, parts
        self._save_every = save_every
        self._checkpoint_every, self._on_checkpoint = checkpoint_every, on_checkpoint
        self._on_log, self._on_visualize = on_log, on_visualize
        self._log_every = max(1, min(50, iterations // 50))
        self._tenth = max(1, iterations // 10)
        self._state = folder / "state.pt"
        self._metrics = folder / "metrics.jsonl"
        self._rates: list[Mapping[str, float]] = []
        self._losses: list[Mapping[str, Tensor]] = []
        self._files: list[tuple[str, ...]] = []
        self._stop: int | None = None
        self._start = self._saved = load_state(self._state, parts, device)
        if distributed.is_main():
            self._truncate_metrics()
        self._bar: Any = None
        self._began = self._flushed = 0.0

    def __iter__(self) -> Iterator[int]:
        previous = self._catch_signals()
        name, total = self.folder.name, self._iterations
        # None is silent where nobody watches, True where another process speaks.
        silent = None if distributed.is_main() else True
        bar = tqdm(
            total=total, initial=self._start, desc=name, unit="it", disable=silent, file=sys.stderr
        )
        self._bar, self._began = bar, time.monotonic()
        self._flushed = self._began
        try:
            for iteration in range(self._start, self._iterations):
                yield iteration
                done = iteration + 1
                bar.update()
                if done % self._log_every == 0 or done == self._iterations:
                    self._flush(done)
                if done % self._tenth == 0:
                    self._on_visualize(done, self._parts)
                if (
                    self._checkpoint_every
                    and done % self._checkpoint_every == 0
                    and done < self._iterations
                ):
                    self._on_checkpoint(done, self._parts)
                if distributed.any_of(self._stop is not None, self._device):
                    self._interrupt(done)
                if done % self._save_every == 0 and done < self._iterations:
                    self._save(done)
        finally:
            bar.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def log(
        self, files: tuple[str, ...], rates: Mapping[str, float], losses: Mapping[str, Tensor]
    ) -> None:
        """Remember an iteration's files and numbers; the numbers' means go to `metrics.jsonl` now and then.

        Losses are this process's part of the global batch's; rates are what they are.
        """
        self._files.append(files)
        self._rates.append(rates)
        self._losses.append({name: value.detach() for name, value in losses.items()})

    def _flush(self, done: int) -> None:
        if not self._losses:
            return
        # Read here and not at every iteration, since reading makes a GPU wait.
        names = list(self._losses[0])
        parts = torch.tensor(
            [[float(each[n]) for n in names] for each in self._losses], dtype=torch.float64
        )
        summed = distributed.total(parts.to(self._device)).tolist()
        losses = [dict(zip(names, row, strict=True)) for row in summed]
        files, rates = self._files, self._rates
        self._files, self._rates, self._losses = [], [], []
        for step, each in enumerate(losses):
            if bad := [n for n, v in each.items() if not math.isfinite(v)]:
                seen = sum(distributed.gather(files[step]), ())
                self._refuse(done - len(losses) + step + 1, bad, seen)
        if not distributed.is_main():
            return
        now = time.monotonic()
        images = sum(map(len, files)) * distributed.size()
        means = {name: sum(each[name] for each in losses) / len(losses) for name in names}
        numbers = {
            **means,
            **{name: sum(each[name] for each in rates) / len(rates) for name in rates[0]},
            "images_per_second": round(images / (now - self._flushed), 2),
            "memory_mib": peak_memory_mib(self._device),
        }
        self._flushed = now
        seconds = now - self._began
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"iteration": done, "seconds": round(seconds, 3), **numbers}) + "\n"
            )
        self._on_log(done, numbers)
        latest = {_SHORT.get(n, n): f"{v:.3g}" for n, v in means.items()}
        latest["GiB"] = f"{numbers['memory_mib'] / 1024:.1f}"
        self._bar.set_postfix(latest)
        if self._bar.disable and done // self._tenth > (done - self._log_every) // self._tenth:
            # In a log file: ten lines a stage in place of a bar.
            left = seconds / max(1, done - self._start) * (self._iterations - done)
            shown = ", ".join(f"{n} {v}" for n, v in latest.items())
            print(
                f"{self.folder.name} {done}/{self._iterations}, {left:.0f} s to go, {shown}",
                file=sys.stderr,
            )

    def _refuse(self, iteration: int, bad: list[str], files: tuple[str, ...]) -> None:
        stage = self.folder.name
        saved = (
            f"the state of iteration {self._saved} is kept"
            if self._saved
            else "nothing was saved yet"
        )
        on = f" on {', '.join(files)}" if files else ""
        raise FadaError(
            f"{stage}: {', '.join(bad)} is no finite number at iteration {iteration}{on}; {saved}; look at these "
            f"files, or lower {stage}.lr and start again"
        )

    def _save(self, done: int) -> None:
        # Flushed first: a state is only worth keeping if the losses behind it are finite.
        self._flush(done)
        if distributed.is_main():
            save_state(self._state, done, self._parts)
        self._saved = done
        distributed.wait()

    def _interrupt(self, done: int) -> None:
        self._save(done)
        raise InterruptedRunError(
            f"stopped after {done} iterations of {self.folder.name}; go on with: "
            f"fada train --resume {shlex.quote(str(self.folder.parent))}"
        )

    def _catch_signals(self) -> dict[int, Any]:
        def remember(number: int, frame: FrameType | None) -> None:
            if self._stop is not None:
                raise KeyboardInterrupt
            self._stop = number
            print(
                "\nstopping after this iteration; once more stops now, without saving",
                file=sys.stderr,
            )

        if threading.current_thread() is not threading.main_thread():
            return {}
        return {n: signal.signal(n, remember) for n in (signal.SIGINT, signal.SIGTERM)}

    def _truncate_metrics(self) -> None:
        """Forget what was logged after the state that the stage goes on from."""
        if self._metrics.is_file():
            lines = self._metrics.read_text("utf-8").splitlines(keepends=True)
            kept = [
                line
                for line in lines
                if line.endswith("\n") and json.loads(line)["iteration"] <= self._start
            ]
            self._metrics.write_text("".join(kept), "utf-8")
