"""Metrics of a run, TensorBoard, and training with torch.compile."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_config

from fada_deploy.common.errors import MissingExtraError, UsageError
from fada_deploy.training import device as device_module
from fada_deploy.training.loop import TrainingLoop
from fada_deploy.training.optim import mix_running_statistics
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.stages import selftrain

# `make torture` uses the compiler of torch.
TORTURE = int(os.environ.get("FADA_TORTURE", "1")) > 1
SETTINGS = [
    f"{s}.{k}" for s in ("source", "adversarial") for k in ("iterations=4", "batch=2", "lr=1e-3")
]
SETTINGS += ["size=96x64", "src_size=96x64"]


def train_run(
    blocks: Path, run: Path, *settings: str, start: Path | None = None, **options: Any
) -> list[dict[str, float]]:
    """Train two stages, or one after a start; return the metrics of the adversarial stage."""
    paths = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "backbone": "ddrnet23-slim",
        "init": "none",
    }
    config = make_config(
        recipe="paper", file=None, settings=[*SETTINGS, *settings],
        options=paths
        | ({"stages": ("source", "adversarial")} if start is None
           else {"stages": ("adversarial",), "start": str(start)}),
    )  # fmt: skip
    train(config, run, device=torch.device("cpu"), **options)
    return [
        json.loads(line)
        for line in (run / "adversarial/metrics.jsonl").read_text("utf-8").splitlines()
    ]


@pytest.fixture(scope="module")
def logged(
    blocks: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, float]]]:
    """Return a run with TensorBoard, and its metrics."""
    run = tmp_path_factory.mktemp("tensorboard") / "run"
    return run, train_run(blocks, run, "adversarial.discriminator_lr=2e-4", tensorboard=True)


def test_every_line_of_metrics_is_complete(logged: tuple[Path, list[dict[str, float]]]) -> None:
    for line in logged[1]:
        factor = (1 - (line["iteration"] - 1) / 62_500) ** 0.9
        assert line["lr"] == pytest.approx(1e-3 * factor)
        assert line["discriminator_lr"] == pytest.approx(2e-4 * factor)
        assert 0 <= line["discriminator_accuracy"] <= 1
        assert line["images_per_second"] > 0 and 50 < line["memory_mib"] < 100_000


def test_tensorboard_shows_metrics_and_images_of_every_stage(
    logged: tuple[Path, list[dict[str, float]]],
) -> None:
    run, lines = logged
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "adversarial"))
    events.Reload()
    for name in ("segmentation", "discriminator_accuracy", "lr", "images_per_second"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [1, 2, 3, 4]
        assert [s.value for s in scalars] == pytest.approx([line[name] for line in lines], rel=1e-6)
    images = events.Images("target/0")
    assert (images[-1].width, images[-1].height) == (2 * 96, 64)
    assert (run / "tensorboard" / "source").is_dir()


def test_tensorboard_does_not_change_the_training(
    logged: tuple[Path, list[dict[str, float]]], blocks: Path, tmp_path: Path
) -> None:
    plain = train_run(blocks, tmp_path, "adversarial.discriminator_lr=2e-4")
    assert [line["segmentation"] for line in plain] == [line["segmentation"] for line in logged[1]]


def test_missing_tensorboard_is_an_error_before_training(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[tensorboard\]"):
        train_run(blocks, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method:DeprecationWarning"
)  # raised inside torch
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile inspects .grad
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs a C++ compiler")
def test_compiled_run_has_the_same_losses(
    logged: tuple[Path, list[dict[str, float]]],
    blocks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The learning rates are so low that rounding errors do not grow between iterations."""
    slow = ("adversarial.lr=1e-6", "adversarial.discriminator_lr=1e-7")
    start = logged[0] / "source" / "weights.safetensors"
    compiler, compiled = torch.compile, []

    def recorded(part: Any, **options: Any) -> Any:
        compiled.append(type(part).__name__)
        # Networks are captured and differentiated, but not translated to C++, which takes minutes.
        uses_inductor = TORTURE or compiled[-1] == "function"
        return compiler(part, **options, backend="inductor" if uses_inductor else "aot_eager")

    monkeypatch.setattr(device_module.torch, "compile", recorded)
    plain, other = (
        train_run(blocks, tmp_path / "a", *slow, start=start),
        train_run(blocks, tmp_path / "b", "compile=true", *slow, start=start),
    )
    # The function of the check; F, G and D.
    assert compiled == ["function", *["method"] * 3]
    for a, b in zip(plain, other, strict=True):
        for name in ("segmentation", "adversarial", "discriminator_source", "discriminator_target"):
            assert b[name] == pytest.approx(a[name], rel=5e-3)
    assert load_config(tmp_path / "b").compile


def test_missing_compiler_is_an_error_before_training(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(function: Any) -> Any:
        raise RuntimeError("no C++ compiler was found\nmore")

    monkeypatch.setattr(device_module.torch, "compile", cannot)
    with pytest.raises(UsageError, match=r"no C\+\+ compiler was found.*--compile"):
        train_run(blocks, tmp_path / "run", "compile=true")


def test_cuda_graphs_are_used_for_all_networks_and_marked_in_each_iteration(
    blocks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where there are none, a warning says so, and the run is that without them."""
    networks: list[str] = []
    marks = 0

    def recorded(part: Any, **options: Any) -> Any:
        if options:
            assert options == {"dynamic": False, "mode": "reduce-overhead"}
            networks.append(type(part.__self__).__name__)
        return part

    def mark() -> None:
        nonlocal marks
        marks += 1

    monkeypatch.setattr(device_module.torch, "compile", recorded)
    monkeypatch.setattr(device_module.torch.compiler, "cudagraph_mark_step_begin", mark)
    config = tiny_config(
        blocks,
        ("source", "selftrain"),
        "cuda_graphs=true",
        "source.iterations=2",
        "selftrain.iterations=3",
        "selftrain.align=true",
    )
    result = train(config, tmp_path / "run", device=torch.device("cpu"))
    assert set(result.scores) == {"source", "selftrain"} and marks == 2 + 3
    # F and G of the source stage; F and G, its teacher, and the discriminator.
    assert len(networks) == 2 + 2 + 2 + 1 and len(set(networks)) == 3
    assert "CUDA graphs" in caplog.text
    assert load_config(tmp_path / "run").cuda_graphs


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_algorithms_are_used_in_the_run_alone(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is removed after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    used = []

    def log(self: TrainingLoop, *values: Any) -> None:
        used.append(torch.are_deterministic_algorithms_enabled())

    monkeypatch.setattr(TrainingLoop, "log", log)
    config = tiny_config(
        blocks, ("source",), "source.iterations=1", f"deterministic={str(deterministic).lower()}"
    )
    train(config, tmp_path / "run", device=torch.device("cpu"))
    assert used == [deterministic] and not torch.are_deterministic_algorithms_enabled()
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == deterministic


def test_networks_are_compiled_after_the_statistics_of_the_target(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, they would be compiled for each momentum of the 50 batches."""
    events: list[str] = []

    def recorded(part: Any, **options: Any) -> Any:
        events.append("compiled")
        return part

    def mixed(*arguments: Any) -> None:
        events.append("mixed")
        mix_running_statistics(*arguments)

    monkeypatch.setattr(device_module.torch, "compile", recorded)
    monkeypatch.setattr(selftrain, "mix_running_statistics", mixed)
    monkeypatch.setattr(selftrain, "STATISTICS_BATCHES", 2)
    config = tiny_config(
        blocks,
        ("source", "selftrain"),
        "compile=true",
        "source.iterations=1",
        "selftrain.iterations=1",
        "selftrain.source_free=true",
    )
    train(config, tmp_path / "run", device=torch.device("cpu"))
    # The check of the compiler, F and G; then F and G, also of the teacher.
    assert events == ["compiled"] * 3 + ["mixed"] + ["compiled"] * 4


@pytest.mark.skipif(not TORTURE, reason="takes a minute; run by make torture")
@pytest.mark.filterwarnings("ignore")  # raised inside torch's compiler
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs a C++ compiler")
def test_the_compiler_mode_of_cuda_graphs_keeps_the_losses_of_all_stages(
    blocks: Path, tmp_path: Path
) -> None:
    """On a CPU, which has no graphs; with its teacher and aligner, in steps of SGD."""
    stages = ("source", "adversarial", "selftrain", "distill")
    losses = {}
    for graphs in ("false", "true"):
        config = tiny_config(
            blocks,
            stages,
            "distill.size=96x64",
            "distill.crop=96x64",
            "selftrain.align=true",
            f"cuda_graphs={graphs}",
            *(
                f"{stage}.{setting}"
                for stage in stages
                for setting in ("iterations=4", "optimizer=sgd", "lr=1e-3", "warmup=0")
            ),
        )
        run = tmp_path / graphs
        train(config, run, device=torch.device("cpu"))
        losses[graphs] = [
            json.loads((run / stage / "metrics.jsonl").read_text().splitlines()[-1])["segmentation"]
            for stage in stages
        ]
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)
