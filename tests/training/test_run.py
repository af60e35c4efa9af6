"""Complete small runs: files, exact resume, errors."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from interruptions import interrupted_after
from safetensors.torch import load_file

from fada_deploy.common.errors import (
    DataError,
    FadaError,
    InterruptedRunError,
    ModelError,
    UsageError,
)
from fada_deploy.common.files import lock
from fada_deploy.common.runs import STAGES, all_weights
from fada_deploy.data.base import FrameDataset
from fada_deploy.training import scoring
from fada_deploy.training.config import RunConfig
from fada_deploy.training.loop import TrainingLoop
from fada_deploy.training.result import TrainingResult
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights.checkpoints import load_model, load_state, save_state
from fada_deploy.training.weights.pretrained import load_backbone

# Metrics that depend on the machine.
MACHINE_METRICS = {"seconds", "images_per_second", "loader_wait", "memory_mib"}
CPU = torch.device("cpu")
ITERATIONS = 5


def config(blocks: Path, *settings: str, **options: Any) -> RunConfig:
    small = [
        f"{stage}.{key}"
        for stage in STAGES
        for key in (f"iterations={ITERATIONS}", "batch=2", "ema=0.9")
    ]
    small += [
        "distill.size=96x64",
        "distill.crop=64x64",
        "size=96x64",
        "src_size=96x64",
        "save_every=2",
    ]
    paths: dict[str, Any] = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "backbone": "tiny",
        "init": "none",
        "stages": STAGES,
    }
    return make_config(
        recipe="paper", file=None, settings=[*small, *settings], options=paths | options
    )


def run(config: RunConfig, folder: Path) -> TrainingResult:
    return train(config, folder, device=CPU)


@pytest.fixture(scope="module")
def finished(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of all stages, none of which has read a label of the target's training split."""
    folder, original = tmp_path_factory.mktemp("finished"), FrameDataset.labels

    def guarded(self: Any, i: int) -> np.ndarray:
        assert not (self.name == "target" and self.split == "train"), (
            "a target training label was read"
        )
        return original(self, i)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameDataset, "labels", guarded)
        run(config(blocks), folder)
    return folder


@pytest.fixture(autouse=True)
def no_choice_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not choose a stage at the end of a run; `test_selection` is about that."""
    monkeypatch.setattr("fada_deploy.training.run.select_stage", lambda *_, **__: None)


def test_run_writes_weights_scores_and_metrics(finished: Path) -> None:
    for stage in STAGES:
        model, provenance = load_model(finished / stage / "weights.safetensors")
        assert model.spec.size_hw == (64, 96) and provenance["stage"] == stage
        lines = [
            json.loads(line)
            for line in (finished / stage / "metrics.jsonl").read_text().splitlines()
        ]
        assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
        assert not (finished / stage / "state.pt").exists()
        scores = json.loads((finished / stage / "scores.json").read_text())
        assert (
            scores["input"] == "96x64" and 0 <= scores["miou"] <= 1 and "pole" in scores["absent"]
        )
    assert load_config(finished).backbone == "tiny"
    assert len(list((finished / "distill" / "pseudo").glob("*.png"))) == 6


def test_checkpoints_equal_the_weights_of_a_shorter_run(blocks: Path, tmp_path: Path) -> None:
    run(config(blocks, "checkpoint_every=2", stages=("source",)), tmp_path / "long")
    checkpoints = sorted((tmp_path / "long/source/checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["000002.safetensors", "000004.safetensors"]
    run(config(blocks, "source.iterations=4", stages=("source",)), tmp_path / "short")
    want = load_file(tmp_path / "short/source/weights.safetensors")
    got = load_file(checkpoints[-1])
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert all_weights(tmp_path / "long") == [
        *checkpoints,
        tmp_path / "long/source/weights.safetensors",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["feature", "fada-hard", "adaptsegnet", "advent"])
def test_discriminator_starts_at_chance_with_every_method(
    blocks: Path, finished: Path, tmp_path: Path, method: str
) -> None:
    start: dict[str, Any] = {
        "start": str(finished / "source"),
        "stages": ("adversarial",),
        "method": method,
    }
    run(config(blocks, "adversarial.iterations=1", **start), tmp_path)
    lines = [
        json.loads(line)
        for line in (tmp_path / "adversarial/metrics.jsonl").read_text().splitlines()
    ]
    first = {
        k: lines[0][k] for k in ("adversarial", "discriminator_source", "discriminator_target")
    }
    # The loss of an untrained D is log 2 for two domains and log 2K for K classes per domain.
    chance = np.log(38) if method == "fada-hard" else np.log(2)
    assert first["adversarial"] == pytest.approx(chance, rel=0.1)
    assert first["discriminator_source"] == pytest.approx(chance / 2, rel=0.1)


@pytest.mark.parametrize(
    ("method", "metrics"),
    [
        ("adaptsegnet-multi", {"segmentation_auxiliary", "adversarial_auxiliary"}),
        ("minent", {"entropy"}),
        ("clan", {"weight_similarity", "adversarial"}),
        ("fcn-wild", {"class_size", "adversarial"}),
        ("siban", {"divergence", "adversarial"}),
        ("adaptpatch", {"patch", "adversarial_patch"}),
    ],
)
def test_every_method_trains(
    blocks: Path, finished: Path, tmp_path: Path, method: str, metrics: set[str]
) -> None:
    start: dict[str, Any] = {
        "start": str(finished / "source"),
        "stages": ("adversarial",),
        "method": method,
    }
    run(config(blocks, "adversarial.iterations=1", **start), tmp_path)
    for line in (tmp_path / "adversarial/metrics.jsonl").read_text().splitlines():
        values = {k: v for k, v in json.loads(line).items() if isinstance(v, float)}
        assert metrics <= values.keys() and np.isfinite(list(values.values())).all()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["adversarial", "selftrain"])
def test_heads_and_noise_of_a_method_are_resumed_exactly(
    blocks: Path, finished: Path, tmp_path: Path, stage: str
) -> None:
    """SIBAN has a head, a buffer and noise; it also trains jointly with self-training."""
    start: dict[str, Any] = {
        "start": str(finished / "source"), "stages": (stage,), "method": "siban",
    }  # fmt: skip
    settings = config(
        blocks, "selftrain.align=true", f"{stage}.iterations=3", f"{stage}.lr=1e-3", **start
    )
    run(settings, tmp_path / "whole")
    with interrupted_after(1, stage), pytest.raises(InterruptedRunError):
        run(settings, tmp_path / "resumed")
    run(load_config(tmp_path / "resumed"), tmp_path / "resumed")
    want, got = (
        load_file(tmp_path / name / stage / "weights.safetensors") for name in ("whole", "resumed")
    )
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_two_levels_need_an_auxiliary_layer(blocks: Path, tmp_path: Path) -> None:
    options = {"method": "advent-multi", "backbone": "vgg16", "stages": ("source", "adversarial")}
    with pytest.raises(UsageError, match="vgg16 has no auxiliary output") as caught:
        run(config(blocks, **options), tmp_path)
    assert "resnet101" in str(caught.value)


def test_published_score_is_logged_with_the_last_stage(
    blocks: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fada_deploy")
    start: dict[str, Any] = {"start": str(finished / "source"), "stages": ("adversarial",)}
    run(config(blocks, "published=46.9", "adversarial.iterations=1", **start), tmp_path)
    assert [("46.9" in line) for line in caplog.messages if "mIoU" in line] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_run_resumes_to_identical_weights(
    blocks: Path, finished: Path, tmp_path: Path, stage: str
) -> None:
    """Interrupt one stage after its third iteration; compare with the uninterrupted run.

    The earlier stages are taken from that run. The first one is interrupted in a whole run.
    """
    last = STAGES.index(stage)
    stages = STAGES[: last + 1] if last else STAGES
    for name in STAGES[:last]:
        shutil.copytree(finished / name, tmp_path / name)
    message = rf"after 3 iterations of {stage}; resume with: fada train --resume"
    with interrupted_after(3, stage), pytest.raises(InterruptedRunError, match=message):
        run(config(blocks, stages=stages), tmp_path)
    run(load_config(tmp_path), tmp_path)
    for name in stages:
        want, got = (
            load_file(folder / name / "weights.safetensors") for folder in (finished, tmp_path)
        )
        assert all(torch.equal(want[k], got[k]) for k in want), name
        lines = [
            (f / name / "metrics.jsonl").read_text().splitlines() for f in (finished, tmp_path)
        ]
        series = [
            [{k: v for k, v in json.loads(x).items() if k not in MACHINE_METRICS} for x in part]
            for part in lines
        ]
        assert series[0] == series[1]


def test_second_signal_stops_at_once(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TrainingLoop.log

    def signalling_log(self: TrainingLoop, *values: Any) -> None:
        log(self, *values)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingLoop, "log", signalling_log)
        run(config(blocks, stages=("source",)), tmp_path)
    run(load_config(tmp_path), tmp_path)


def test_run_killed_between_saves_resumes_from_the_last_state(
    blocks: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killing(original: Callable[..., None]) -> Callable[..., None]:
        def log(self: TrainingLoop, *values: Any) -> None:
            original(self, *values)
            if self._metrics_path.is_file() and self._metrics_path.read_text().count("\n") == 3:
                raise Killed

        return log

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "log", killing(TrainingLoop.log))
        with pytest.raises(Killed):
            run(config(blocks, stages=("source",)), tmp_path)
    assert (tmp_path / "source" / "state.pt").is_file()
    run(load_config(tmp_path), tmp_path)
    want, got = (
        load_file(folder / "source" / "weights.safetensors") for folder in (finished, tmp_path)
    )
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_unusable_source_file_is_reported_and_the_run_finishes(
    blocks: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(blocks, root)
    assert cv2.imwrite(str(root / "source/train/labels/03.png"), np.zeros((10, 10), np.uint8))
    (root / "source/train/labels/04.png").write_bytes(b"nothing")
    result = run(config(root, "source.iterations=12", stages=("source",)), tmp_path / "run")
    errors = " ".join(result.bad_files)
    assert "03.png: the frame is 96x64 but its labels are 10x10" in errors and "04.png" in errors
    # A run that is resumed does not read all labels again, but names their errors again.
    again = run(load_config(tmp_path / "run"), tmp_path / "run")
    assert set(again.bad_files) <= set(result.bad_files) and "04.png" in " ".join(again.bad_files)


def test_loss_that_is_not_finite_stops_the_stage_and_names_its_files(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the files of the first bad iteration; the saved state can be resumed."""
    logged: list[tuple[str, ...]] = []
    log = TrainingLoop.log

    def spoiling(self: TrainingLoop, files: tuple[str, ...], rates: Any, losses: Any) -> None:
        logged.append(files)
        log(
            self,
            files,
            rates,
            {"segmentation": torch.tensor(float("nan"))} if len(logged) == 4 else losses,
        )

    with monkeypatch.context() as patch, pytest.raises(FadaError) as caught:
        patch.setattr(TrainingLoop, "log", spoiling)
        run(config(blocks, stages=("source",)), tmp_path)
    message = str(caught.value)
    assert (
        "source: segmentation is not finite at iteration 4 on " in message and "\n" not in message
    )
    assert len(logged[3]) == 2 and all(
        name in message and Path(name).is_file() for name in logged[3]
    )
    assert "the state of iteration 2 is saved" in message and "lower source.lr" in message
    assert not (tmp_path / "source" / "weights.safetensors").exists()
    run(load_config(tmp_path), tmp_path)


def test_too_high_learning_rate_is_reported(blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FadaError, match=r"segmentation is not finite at iteration \d.*lower source\.lr"
    ):
        run(config(blocks, "source.lr=1e30", stages=("source",)), tmp_path)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (["norm=frozen"], {}, "source: frozen normalization needs pretrained statistics"),
        ([], {"init": "no.pth"}, "--init no.pth: no such file"),
        ([], {"backbone": "vgg99"}, "unknown backbone 'vgg99'; choose from resnet101, "),
        ([], {"method": "softer"}, "method: found 'softer', expected source or one of fada, "),
        ([], {"src": "kitti"}, "no data set 'kitti'"),
        ([], {"tgt": "drives"}, "no target 'drives'; a target is a data set (gta5, "),
        ([], {"tgt": "nowhere/"}, "nowhere/: no such file or folder"),
        (["distill.norm=frozen"], {}, "distill: frozen normalization needs pretrained statistics"),
        (
            [],
            {"stages": ("adversarial",)},
            "the stage adversarial needs the network of an earlier stage",
        ),
        (
            ["distill.batch=1"],
            {},
            "distill: trainable batch normalization needs at least 2 images at a time, got 1",
        ),
        (["size=100x64"], {}, "input size 100x64"),
        (
            ["norm=frozen"],
            {"backbone": "efficientnet-lite0", "init": "FILE"},
            "ImageNet weights of efficientnet-lite0 do not contain all normalization layers",
        ),
        (["published=46.9"], {}, "starts from ImageNet weights of tiny; use --init FILE"),
        ([], {"init_norm": "caffe"}, "--init-norm caffe"),
    ],
)
def test_invalid_run_is_one_line_and_leaves_no_folder(
    blocks: Path, tmp_path: Path, settings: list[str], options: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if options.get("init") == "FILE":
        (tmp_path / "init.pth").write_bytes(b"")
        options = options | {"init": str(tmp_path / "init.pth")}
    # A missing file or folder is no usage error.
    error = ModelError if "no.pth" in message else DataError if "nowhere" in message else UsageError
    with pytest.raises(error, match=re.escape(message)) as caught:
        run(config(blocks, *settings, **options), folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_rejects_source_without_labels(blocks: Path, tmp_path: Path) -> None:
    # Globs are relative to the TOML file.
    (tmp_path / "source").symlink_to(blocks / "source")
    (tmp_path / "unlabeled.toml").write_text(
        '[splits.train]\nimages = "source/train/images/*.png"\n'
    )
    with pytest.raises(DataError, match="source must be labeled"):
        run(config(blocks, src=str(tmp_path / "unlabeled.toml")), tmp_path / "run")


def test_recordings_as_target_are_not_scored(
    blocks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fada_deploy")
    target = str(blocks / "target" / "train" / "images")
    result = run(config(blocks, tgt=target, stages=("source", "adversarial")), tmp_path)
    assert not result.scores and (tmp_path / "adversarial" / "weights.safetensors").is_file()
    assert any("6 of 6 images" in line for line in caplog.messages)


def test_load_backbone_accepts_torchvision_names_and_counts_missing_parameters(
    blocks: Path, tmp_path: Path
) -> None:
    model, _ = trained_model(blocks, tmp_path)
    backbone = model.feature_extractor["backbone"].state_dict()
    state = {
        f"module.{k}": torch.randn_like(v) if v.is_floating_point() else v
        for k, v in backbone.items()
    }
    torch.save(
        {"state_dict": state | {"module.linear.weight": torch.zeros(3)}}, tmp_path / "init.pth"
    )
    load_backbone(model, tmp_path / "init.pth")
    for name, value in model.feature_extractor["backbone"].state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[f"module.{name}"])
    del state["module.layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(
        ModelError, match=r"1 of \d+ parameters missing.*: layer1\.0\.conv1\.weight"
    ):
        load_backbone(model, tmp_path / "less.pth")
    (tmp_path / "text.pth").write_text("words")
    with pytest.raises(ModelError, match="not a readable weights file"):
        load_backbone(model, tmp_path / "text.pth")


def trained_model(blocks: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    settings = config(blocks, "source.iterations=1", stages=("source",), backbone="ddrnet23-slim")
    run(settings, folder / "run")
    return load_model(folder / "run" / "source" / "weights.safetensors")


def test_pickled_code_is_not_executed(tmp_path: Path, blocks: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="not a readable weights file"):
        run(config(blocks, init=str(tmp_path / "evil.pth")), tmp_path / "run")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), torch.OutOfMemoryError("no room")], ids=["host", "device"]
)
def test_too_little_memory_does_not_condemn_a_training_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Full(torch.nn.Linear):
        def load_state_dict(self, *_: object, **__: object) -> None:
            raise error

    layer = Full(1, 1)
    save_state(tmp_path / "state.pt", 3, {"model": layer})
    with pytest.raises(type(error), match="no room"):
        load_state(tmp_path / "state.pt", {"model": layer})


def test_rejects_training_state_of_another_run(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_state(tmp_path / "source" / "state.pt", 3, {"model": torch.nn.Linear(1, 1)})
    with pytest.raises(ModelError, match="not a training state of this run"):
        run(config(blocks, stages=("source",)), tmp_path)


def test_ego_mask_applies_to_recordings_only(blocks: Path, tmp_path: Path) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[56:] = 255
    assert cv2.imwrite(str(tmp_path / "ego.png"), mask)
    options: dict[str, Any] = {"ego_mask": str(tmp_path / "ego.png")}
    recordings = str(blocks / "target" / "train" / "images")
    stages = ("source", "adversarial", "distill")
    run(config(blocks, tgt=recordings, stages=stages, **options), tmp_path / "run")
    pseudo = cv2.imread(str(tmp_path / "run/distill/pseudo/000000.png"), cv2.IMREAD_UNCHANGED)
    assert (pseudo[56:] == 255).all() and (pseudo[:56] != 255).all()
    with pytest.raises(UsageError, match="--ego-mask applies to recordings only"):
        run(config(blocks, **options), tmp_path / "other")


def test_rejects_cityscapes_folder_as_recordings(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "city" / "leftImg8bit").mkdir(parents=True)
    with pytest.raises(UsageError, match="--tgt cityscapes --tgt-root"):
        run(config(blocks, tgt=str(tmp_path / "city")), tmp_path / "run")


def test_start_must_match_the_run(blocks: Path, finished: Path, tmp_path: Path) -> None:
    start: dict[str, Any] = {"start": str(finished), "stages": ("adversarial",)}
    with pytest.raises(UsageError, match=r"label space cityscapes-19.*use --label-space"):
        run(config(blocks, label_space="cityscapes-13", **start), tmp_path / "a")
    with pytest.raises(UsageError, match="use --backbone tiny"):
        run(config(blocks, **start | {"backbone": "resnet101"}), tmp_path / "b")
    with pytest.raises(UsageError, match="--start replaces the source stage"):
        run(config(blocks, start=str(finished)), tmp_path / "d")
    with pytest.raises(UsageError, match=r"was trained with norm=batch.*use --set norm=batch"):
        run(config(blocks, "norm=frozen", **start), tmp_path / "f")
    with pytest.raises(ModelError, match="gone: no such run"):
        run(config(blocks, **start | {"start": "gone"}), tmp_path / "e")
    run(config(blocks, "size=128x64", **start), tmp_path / "c")
    model, _ = load_model(tmp_path / "c" / "adversarial" / "weights.safetensors")
    assert model.spec.size_hw == (64, 128)


def test_resume_rejects_changed_frames(blocks: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(blocks, root)
    run(config(root, stages=("source",)), tmp_path / "run")
    for sub in ("images", "labels"):
        folder = root / "target" / "train" / sub
        shutil.copy(folder / "00.png", folder / "000.png")
    with pytest.raises(DataError, match="frames or classes of the target have changed"):
        run(config(root), tmp_path / "run")


def test_resume_rejects_another_encoding_of_the_source(blocks: Path, tmp_path: Path) -> None:
    """The class counts of the run are those of the encoding that it began with."""
    root = tmp_path / "copy"
    shutil.copytree(blocks, root)
    run(config(root, stages=("source",)), tmp_path / "run")
    text = (root / "source.toml").read_text()
    (root / "source.toml").write_text('[labels]\nencoding = "labelId"\n' + text)
    with pytest.raises(DataError, match="encoding or ego mask of a source have changed"):
        run(config(root), tmp_path / "run")


def test_start_is_resolved_once(finished: Path, blocks: Path, tmp_path: Path) -> None:
    """A later choice in the other run does not change what this run continues from."""
    chosen = json.loads((finished / "selection.json").read_text())["chosen"]
    started = config(blocks, start=str(finished), stages=("distill",))
    assert started.start == str(finished / chosen / "weights.safetensors")


def test_torchrun_trains_only_by_the_command(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="torchrun"):
        run(config(blocks, stages=("source",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_finished_stage_is_scored_once(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fada_deploy")
    before = json.loads((finished / "source" / "scores.json").read_text())

    def never(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(scoring, "compute_scores", never)
    result = run(load_config(finished), finished)
    assert result.scores["source"] == before
    assert sum("mIoU" in line for line in caplog.messages) == len(STAGES)


def test_run_is_locked_while_it_trains(blocks: Path, tmp_path: Path) -> None:
    with (
        lock(tmp_path / "run"),
        pytest.raises(UsageError, match="another process is working in this folder"),
    ):
        run(config(blocks, stages=("source",)), tmp_path / "run")
    run(config(blocks, stages=("source",)), tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_student_may_have_another_backbone_than_its_teacher(
    blocks: Path, finished: Path, tmp_path: Path
) -> None:
    settings = config(
        blocks, "norm=batch", start=str(finished), stages=("distill",), backbone="pidnet-s"
    )
    run(settings, tmp_path / "student")
    student, provenance = load_model(tmp_path / "student" / "distill" / "weights.safetensors")
    assert student.spec.backbone == "pidnet-s" and provenance["stage"] == "distill"
    with pytest.raises(UsageError, match="use --backbone tiny"):
        run(replace(settings, stages=("selftrain", "distill")), tmp_path / "refused")
