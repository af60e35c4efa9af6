"""What a run tells while it trains: numbers, TensorBoard, and the same training under torch's compiler."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fada_deploy.common.errors import MissingExtraError, UsageError
from fada_deploy.training import device as device_module
from fada_deploy.training.run import load_config, train
from fada_deploy.training.settings import make_config

SETTINGS = [
    f"{s}.{k}" for s in ("source", "adversarial") for k in ("iterations=4", "batch=2", "lr=1e-3")
]
SETTINGS += ["size=96x64", "src_size=96x64"]


def go(blocks: Path, run: Path, *settings: str, **options: Any) -> list[dict[str, float]]:
    """Train two stages; return the adversarial stage's numbers."""
    paths = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "backbone": "ddrnet23-slim",
    }
    config = make_config(
        preset="paper", file=None, settings=[*SETTINGS, *settings],
        options=paths | {"stages": ("source", "adversarial")},
    )  # fmt: skip
    train(config, run, device=torch.device("cpu"), say=lambda line: None, **options)
    return [
        json.loads(line)
        for line in (run / "adversarial/metrics.jsonl").read_text("utf-8").splitlines()
    ]


def test_every_line_of_numbers_is_whole(blocks: Path, tmp_path: Path) -> None:
    for line in go(blocks, tmp_path, "adversarial.discriminator_lr=2e-4"):
        factor = (1 - (line["iteration"] - 1) / 62_500) ** 0.9
        assert line["lr"] == pytest.approx(1e-3 * factor)
        assert line["discriminator_lr"] == pytest.approx(2e-4 * factor)
        assert 0 <= line["discriminator_accuracy"] <= 1
        assert line["images_per_second"] > 0 and 50 < line["memory_mib"] < 100_000


def test_tensorboard_gets_the_numbers_and_pictures_of_every_stage(
    blocks: Path, tmp_path: Path
) -> None:
    lines = go(blocks, tmp_path, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "adversarial"))
    events.Reload()
    for name in ("segmentation", "discriminator_accuracy", "lr", "images_per_second"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [1, 2, 3, 4]
        assert [s.value for s in scalars] == pytest.approx([line[name] for line in lines], rel=1e-6)
    pictures = events.Images("target/0")
    assert (pictures[-1].width, pictures[-1].height) == (2 * 96, 64)
    assert (tmp_path / "tensorboard" / "source").is_dir()


def test_looking_at_a_network_does_not_change_its_training(blocks: Path, tmp_path: Path) -> None:
    plain, watched = go(blocks, tmp_path / "a"), go(blocks, tmp_path / "b", tensorboard=True)
    assert [line["segmentation"] for line in plain] == [line["segmentation"] for line in watched]


def test_tensorboard_not_installed_is_said_before_anything_is_trained(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[tensorboard\]"):
        go(blocks, tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # dynamo looking about
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs a C++ compiler")
def test_a_compiled_run_learns_the_same(blocks: Path, tmp_path: Path) -> None:
    """At rates so low that rounding does not grow from step to step."""
    slow = ("source.lr=1e-6", "adversarial.lr=1e-6", "adversarial.discriminator_lr=1e-7")
    plain, compiled = (
        go(blocks, tmp_path / "a", *slow),
        go(blocks, tmp_path / "b", "compile=true", *slow),
    )
    for a, b in zip(plain, compiled, strict=True):
        for name in ("segmentation", "adversarial", "discriminator_source", "discriminator_target"):
            assert b[name] == pytest.approx(a[name], rel=5e-3)
    assert load_config(tmp_path / "b").compile


def test_a_machine_that_cannot_compile_says_so_at_once(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(function: Any) -> Any:
        raise RuntimeError("no C++ compiler was found\nmore")

    monkeypatch.setattr(device_module.torch, "compile", cannot)
    with pytest.raises(
        UsageError, match=r"--compile: .*no C\+\+ compiler was found\); leave it out"
    ):
        go(blocks, tmp_path / "run", "compile=true")
