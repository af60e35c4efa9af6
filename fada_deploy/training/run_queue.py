"""Train several runs, some at the same time, each in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fada_deploy.common.files import write_text
from fada_deploy.common.progress import progress_bar
from fada_deploy.common.runs import METRICS
from fada_deploy.common.system import usable_cores
from fada_deploy.training.config import RunConfig
from fada_deploy.training.run_files import save_config

logger = logging.getLogger(__name__)

# The JSON document that `fada train` printed at the end of a run, and its messages.
RESULT, LOG = "result.json", "train.log"
_POLL_S = 0.5
# How long interrupted runs may take to save their state.
_SAVE_S = 300.0


@dataclass(frozen=True)
class Job:
    """One run to train: its folder, its settings and the run that it starts from."""

    folder: Path
    config: RunConfig
    start: Path | None = None

    @property
    def stage(self) -> str:
        return self.config.stages[-1]

    @property
    def finished(self) -> bool:
        """Whether the run was trained and scored to its end."""
        return (self.folder / RESULT).is_file()

    @property
    def iterations(self) -> int:
        return sum(int(getattr(self.config, stage).iterations) for stage in self.config.stages)

    def done(self) -> int:
        """Return how many iterations of its stages are logged."""
        return sum(self._done(stage) for stage in self.config.stages)

    def _done(self, stage: str) -> int:
        try:
            lines = (self.folder / stage / METRICS).read_bytes().splitlines()
            return int(json.loads(lines[-1])["iteration"])
        except (OSError, ValueError, IndexError):
            return 0


def train_jobs(
    jobs: Sequence[Job], *, parallel: int, device: str, arguments: Sequence[str] = ()
) -> dict[Path, str]:
    """Train the unfinished runs, each after the one that it starts from.

    `arguments` are further ones of each `fada train --resume`. Return one error line for each run
    that could not be trained. After Ctrl-C the runs save their state, and `KeyboardInterrupt` is
    raised.
    """
    everything = [job for job in jobs if not job.finished]
    waiting = list(everything)
    errors: dict[Path, str] = {}
    running: dict[Future[str], tuple[Job, int]] = {}
    slots = list(range(parallel))
    shown = sum(job.done() for job in everything)
    total = sum(job.iterations for job in everything)
    with (
        ThreadPoolExecutor(parallel) as pool,
        _Processes(parallel, device, arguments) as processes,
        progress_bar(total, "compare", unit="iteration", initial=shown) as bar,
    ):
        while waiting or running:
            for job in [each for each in waiting if _ready(each)][: len(slots)]:
                waiting.remove(job)
                slot = slots.pop(0)
                running[pool.submit(processes.run, job, slot)] = job, slot
            if not running:
                errors |= {job.folder: f"{job.start} could not be trained" for job in waiting}
                break
            finished, _ = wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in finished:
                job, slot = running.pop(future)
                slots.append(slot)
                if error := future.result():
                    errors[job.folder] = error
                    logger.error("%s: %s", job.folder, error)
            done = sum(min(job.done(), job.iterations) for job in everything)
            bar.update(done - shown)
            bar.set_postfix({"runs left": str(len(waiting) + len(running))})
            shown = done
    return errors


def _ready(job: Job) -> bool:
    return job.start is None or (job.start / RESULT).is_file()


class _Processes:
    """Processes of `fada train`, which are interrupted together."""

    def __init__(self, parallel: int, device: str, arguments: Sequence[str]) -> None:
        self._parallel, self._device, self._arguments = parallel, device, arguments
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                # Like Ctrl-C; SIGINT may be ignored by processes that a shell started in the
                # background, and by theirs.
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _SAVE_S
        while self._running:
            time.sleep(_POLL_S)
            if time.monotonic() > deadline:
                with self._lock:
                    for process in self._running:
                        # With its own processes, such as those of the renderer.
                        with suppress(ProcessLookupError):  # it has just ended
                            os.killpg(process.pid, signal.SIGKILL)

    def run(self, job: Job, slot: int) -> str:
        """Train a run; return "" or one line about why it failed."""
        job.folder.mkdir(parents=True, exist_ok=True)
        # Also for a run that exists: the comparison may have been moved.
        save_config(job.config, job.folder)
        threads = str(max(1, usable_cores() // self._parallel))
        command = [*_command(job.folder, self._device_of(slot)), *self._arguments]
        log = job.folder / LOG
        with log.open("a") as err:
            begin = err.tell()
            with self._lock:
                if self._stopped:
                    return "interrupted"
                # A session of its own: Ctrl-C reaches it through `__exit__` only, and only once.
                process = subprocess.Popen(  # noqa: S603 -- our own command
                    command, env={"OMP_NUM_THREADS": threads, **os.environ},
                    stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            out, _ = process.communicate()
        with self._lock:
            self._running.discard(process)
        # The document is printed when all stages are trained and scored, also if files were bad.
        if process.returncode in (0, 1) and _is_document(out):
            write_text(job.folder / RESULT, out)
            return ""
        text = log.read_bytes()[begin:].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        return lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"

    def _device_of(self, slot: int) -> str:
        """Return the device of a run: one GPU after another for several runs."""
        import torch

        if self._parallel == 1 or self._device not in ("auto", "cuda"):
            return self._device
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{slot % count}" if count else self._device


def _command(run: Path, device: str) -> list[str]:
    return [
        sys.executable, "-m", "fada_deploy", "train", "--resume", str(run), "--device", device,
        "--json",
    ]  # fmt: skip


def _is_document(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
