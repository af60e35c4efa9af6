"""The training loop: iterations, metrics, callbacks, progress and messages."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fada_deploy.common.progress import set_progress_factory
from fada_deploy.training.loop import TrainingLoop

CPU = torch.device("cpu")
ITERATIONS = 100


class RecordingBar:
    def __init__(self) -> None:
        self.count, self.postfix = 0, dict[str, str]()

    def update(self, n: int = 1) -> None:
        self.count += n

    def set_postfix(self, values: Mapping[str, str]) -> None:
        self.postfix = dict(values)


def train(folder: Path, **options: Any) -> list[int]:
    """Run a loop whose loss equals the iteration; return the iterations."""
    state = {"model": torch.nn.Linear(1, 1)}
    loop = TrainingLoop(folder, state, iterations=ITERATIONS, device=CPU, save_every=30, **options)
    iterations = []
    for iteration in loop:
        iterations.append(iteration)
        loop.log(("a.png", "b.png"), {"lr": 0.5}, {"segmentation": torch.tensor(float(iteration))})
    return iterations


def test_metrics_are_means_over_the_interval(tmp_path: Path) -> None:
    logged: list[tuple[int, Mapping[str, float]]] = []
    assert train(tmp_path, on_log=lambda *line: logged.append(line)) == list(range(ITERATIONS))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # Every second iteration, for 100 iterations.
    assert [line["iteration"] for line in lines] == list(range(2, ITERATIONS + 1, 2))
    assert [line["segmentation"] for line in lines] == [i - 1.5 for i in range(2, 101, 2)]
    assert all(line["lr"] == 0.5 and line["images_per_second"] > 0 for line in lines)
    assert all(line["loader_wait"] == 0 for line in lines)
    assert [(i, m["segmentation"]) for i, m in logged] == [
        (line["iteration"], line["segmentation"]) for line in lines
    ]


def test_callbacks_get_finished_iterations_and_state(tmp_path: Path) -> None:
    checkpoints: list[int] = []
    visualized: list[int] = []

    def on_checkpoint(iteration: int, state: Mapping[str, Any]) -> None:
        assert set(state) == {"model"}
        checkpoints.append(iteration)

    train(
        tmp_path,
        checkpoint_every=40,
        on_checkpoint=on_checkpoint,
        on_visualize=lambda iteration, state: visualized.append(iteration),
    )
    assert checkpoints == [40, 80]
    assert visualized == list(range(10, ITERATIONS + 1, 10))


def test_reports_progress_and_ten_messages_per_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bar, arguments = RecordingBar(), dict[str, Any]()

    @contextmanager
    def factory(**options: Any) -> Iterator[RecordingBar]:
        arguments.update(options)
        yield bar

    caplog.set_level(logging.INFO, "fada_deploy")
    set_progress_factory(factory)
    try:
        train(tmp_path / "source")
    finally:
        set_progress_factory(None)
    assert arguments == {"total": ITERATIONS, "description": "source", "unit": "it", "initial": 0}
    assert bar.count == ITERATIONS
    assert bar.postfix["segmentation"] == "98.5" and "GiB" in bar.postfix
    progress = [line.split(",")[0] for line in caplog.messages]
    assert progress == [f"source {i}/100" for i in range(10, ITERATIONS + 1, 10)]
