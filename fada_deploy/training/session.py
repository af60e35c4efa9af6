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
from fada_deploy.training.checkpoints import Stateful, load_state, save_state

Parts = Mapping[str, Stateful]
OpenSession = Callable[[Parts], "Session"]


class Session:
    """Run a stage of `iterations` in `folder`; `parts` is all the state there is.

    Every `save_every` iterations the state is saved, to go on from; every `keep_every` (0: never)
    `keep(done, parts)` is called, which puts weights aside to be compared later.
    """

    def __init__(
        self,
        folder: Path,
        parts: Parts,
        *,
        iterations: int,
        device: torch.device,
        save_every: int,
        keep_every: int = 0,
        keep: Callable[[int, Parts], None] = lambda done, parts: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._device = device
        self.folder, self._iterations, self._parts = folder, iterations, parts
        self._save_every = save_every
        self._keep_every, self._keep = keep_every, keep
        self._log_every = max(1, min(50, iterations // 50))
        self._state = folder / "state.pt"
        self._metrics = folder / "metrics.jsonl"
        self._pending: list[dict[str, Tensor | float]] = []
        self._files: list[tuple[str, ...]] = []
        self._stop: int | None = None
        self._start = self._saved = load_state(self._state, parts, device)
        if distributed.is_main():
            self._truncate_metrics()
        self._bar: Any = None
        self._began = 0.0

    def __iter__(self) -> Iterator[int]:
        previous = self._catch_signals()
        name, total = self.folder.name, self._iterations
        # None is silent where nobody watches, True where another process speaks.
        silent = None if distributed.is_main() else True
        bar = tqdm(total=total, initial=self._start, desc=name, unit="it", disable=silent, file=sys.stderr)
        self._bar, self._began = bar, time.monotonic()
        try:
            for iteration in range(self._start, self._iterations):
                yield iteration
                done = iteration + 1
                bar.update()
                if done % self._log_every == 0 or done == self._iterations:
                    self._flush(done)
                if self._keep_every and done % self._keep_every == 0 and done < self._iterations:
                    self._keep(done, self._parts)
                if distributed.any_of(self._stop is not None, self._device):
                    self._interrupt(done)
                if done % self._save_every == 0 and done < self._iterations:
                    self._save(done)
        finally:
            bar.close()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def log(self, files: tuple[str, ...], *, lr: float, **losses: Tensor) -> None:
        """Remember an iteration's numbers and files; the numbers' means go to `metrics.jsonl` now and then.

        Losses are this process's part of the global batch's.
        """
        self._pending.append({"lr": lr, **{n: v.detach() for n, v in losses.items()}})
        self._files.append(files)

    def _flush(self, done: int) -> None:
        if not self._pending:
            return
        # Read here and not at every iteration, since reading makes a GPU wait.
        names = [n for n in self._pending[0] if n != "lr"]
        parts = torch.tensor([[float(each[n]) for n in names] for each in self._pending], dtype=torch.float64)
        summed = distributed.total(parts.to(self._device)).tolist()
        rates = [float(each["lr"]) for each in self._pending]
        numbers = [dict(zip(names, row, strict=True)) | {"lr": lr} for row, lr in zip(summed, rates, strict=True)]
        files, self._files = self._files, []
        self._pending.clear()
        for step, each in enumerate(numbers):
            if bad := [n for n, v in each.items() if not math.isfinite(v)]:
                seen = sum(distributed.gather(files[step]), ())
                self._refuse(done - len(numbers) + step + 1, bad, seen)
        means = {n: sum(each[n] for each in numbers) / len(numbers) for n in numbers[0]}
        if not distributed.is_main():
            return
        seconds = time.monotonic() - self._began
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": done, "seconds": round(seconds, 3), **means}) + "\n")
        self._bar.set_postfix({n: f"{v:.3g}" for n, v in means.items()})
        tenth = max(1, self._iterations // 10)
        if self._bar.disable and done // tenth > (done - self._log_every) // tenth:
            # In a log file: ten lines a stage in place of a bar.
            left = seconds / max(1, done - self._start) * (self._iterations - done)
            latest = ", ".join(f"{n} {v:.3g}" for n, v in means.items())
            print(f"{self.folder.name} {done}/{self._iterations}, {left:.0f} s to go, {latest}", file=sys.stderr)

    def _refuse(self, iteration: int, bad: list[str], files: tuple[str, ...]) -> None:
        stage = self.folder.name
        saved = f"the state of iteration {self._saved} is kept" if self._saved else "nothing was saved yet"
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
            print("\nstopping after this iteration; once more stops now, without saving", file=sys.stderr)

        if threading.current_thread() is not threading.main_thread():
            return {}
        return {n: signal.signal(n, remember) for n in (signal.SIGINT, signal.SIGTERM)}

    def _truncate_metrics(self) -> None:
        """Forget what was logged after the state that the stage goes on from."""
        if self._metrics.is_file():
            lines = self._metrics.read_text("utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= self._start]
            self._metrics.write_text("".join(kept), "utf-8")
