"""A whole small run: exact resume, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fada_deploy.common.errors import (
    DataError,
    FadaError,
    InterruptedRunError,
    ModelError,
    UsageError,
)
from fada_deploy.common.files import lock
from fada_deploy.common.runs import all_weights
from fada_deploy.training import run as run_module
from fada_deploy.training.config import STAGES, RunConfig
from fada_deploy.training.loop import TrainingLoop
from fada_deploy.training.run import TrainingResult, load_config, train
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights.checkpoints import load_model, save_state
from fada_deploy.training.weights.pretrained import load_backbone

# What a run measures of the machine, and not of its data.
MEASURED = {"seconds", "images_per_second", "memory_mib"}
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
    paths = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "backbone": "ddrnet23-slim",
    }
    return make_config(
        preset="paper", file=None, settings=[*small, *settings], options=paths | options
    )


def go(config: RunConfig, folder: Path, said: list[str] | None = None) -> TrainingResult:
    return train(config, folder, device=CPU, say=(said if said is not None else []).append)


@pytest.fixture(scope="module")
def whole(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    go(config(blocks), folder)
    return folder


def test_a_run_leaves_weights_scores_and_metrics(whole: Path) -> None:
    for stage in STAGES:
        model, provenance = load_model(whole / stage / "weights.safetensors")
        assert model.spec.size_hw == (64, 96) and provenance["stage"] == stage
        lines = [
            json.loads(line) for line in (whole / stage / "metrics.jsonl").read_text().splitlines()
        ]
        assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
        assert not (whole / stage / "state.pt").exists()
        scores = json.loads((whole / stage / "scores.json").read_text())
        assert (
            scores["input"] == "96x64" and 0 <= scores["miou"] <= 1 and "pole" in scores["absent"]
        )
    assert load_config(whole).backbone == "ddrnet23-slim"
    assert len(list((whole / "distill" / "pseudo").glob("*.png"))) == 12


def test_weights_are_kept_on_the_way_and_are_those_of_a_shorter_run(
    blocks: Path, tmp_path: Path
) -> None:
    go(config(blocks, "checkpoint_every=2", stages=("source",)), tmp_path / "long")
    kept = sorted((tmp_path / "long/source/checkpoints").iterdir())
    assert [p.name for p in kept] == ["000002.safetensors", "000004.safetensors"]
    go(config(blocks, "source.iterations=4", stages=("source",)), tmp_path / "short")
    want = load_file(tmp_path / "short/source/weights.safetensors")
    got = load_file(kept[-1])
    assert all(torch.equal(want[k], got[k]) for k in want)
    assert all_weights(tmp_path / "long") == [*kept, tmp_path / "long/source/weights.safetensors"]


@pytest.mark.parametrize("method", ["feature", "fada-hard", "adaptsegnet", "advent"])
def test_every_method_adapts_from_the_same_start(
    blocks: Path, whole: Path, tmp_path: Path, method: str
) -> None:
    start: dict[str, Any] = {
        "start": str(whole / "source"),
        "stages": ("adversarial",),
        "method": method,
    }
    go(config(blocks, **start), tmp_path)
    lines = [
        json.loads(line)
        for line in (tmp_path / "adversarial/metrics.jsonl").read_text().splitlines()
    ]
    first = {
        k: lines[0][k] for k in ("adversarial", "discriminator_source", "discriminator_target")
    }
    # An untrained two-way D is at chance, log 2; with 2K outputs the encodings' sum weighs log 2K.
    chance = np.log(38) if method == "fada-hard" else np.log(2)
    assert first["adversarial"] == pytest.approx(chance, rel=0.1)
    assert first["discriminator_source"] == pytest.approx(chance / 2, rel=0.1)


def test_the_published_score_stands_beside_the_last_one(
    blocks: Path, whole: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    start: dict[str, Any] = {"start": str(whole / "source"), "stages": ("adversarial",)}
    go(config(blocks, "published=46.9", **start), tmp_path, said)
    assert [("46.9" in line) for line in said if "mIoU" in line] == [True]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_resumes_to_the_same_bits(
    blocks: Path, whole: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupt one stage after its third iteration; the weights of all must equal the whole run's."""
    logged = 0
    log = TrainingLoop.log

    def interrupting_log(self: TrainingLoop, *values: Any) -> None:
        nonlocal logged
        log(self, *values)
        if self.folder.name == stage:
            logged += 1
            if logged == 3:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingLoop, "log", interrupting_log)
    with pytest.raises(
        InterruptedRunError,
        match=rf"after 3 iterations of {stage}; go on with: fada train --resume",
    ):
        go(config(blocks), tmp_path)
    go(load_config(tmp_path), tmp_path)
    for name in STAGES:
        want, got = (
            load_file(folder / name / "weights.safetensors") for folder in (whole, tmp_path)
        )
        assert all(torch.equal(want[k], got[k]) for k in want), name
        lines = [(f / name / "metrics.jsonl").read_text().splitlines() for f in (whole, tmp_path)]
        series = [
            [{k: v for k, v in json.loads(x).items() if k not in MEASURED} for x in part]
            for part in lines
        ]
        assert series[0] == series[1]


def test_a_second_signal_stops_at_once(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = TrainingLoop.log

    def signalling_log(self: TrainingLoop, *values: Any) -> None:
        log(self, *values)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingLoop, "log", signalling_log)
        go(config(blocks, stages=("source",)), tmp_path)
    go(load_config(tmp_path), tmp_path)


def test_a_run_killed_between_saves_goes_on_from_the_last_one(
    blocks: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killing(original: Callable[..., None]) -> Callable[..., None]:
        def log(self: TrainingLoop, *values: Any) -> None:
            original(self, *values)
            if len(self._metrics.read_text().splitlines() if self._metrics.is_file() else []) == 3:
                raise Killed

        return log

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "log", killing(TrainingLoop.log))
        with pytest.raises(Killed):
            go(config(blocks, stages=("source",)), tmp_path)
    assert (tmp_path / "source" / "state.pt").is_file()
    go(load_config(tmp_path), tmp_path)
    want, got = (
        load_file(folder / "source" / "weights.safetensors") for folder in (whole, tmp_path)
    )
    assert all(torch.equal(want[k], got[k]) for k in want)


def test_adaptation_never_reads_a_target_label(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames_class = run_module.FrameDataset
    original = frames_class.labels

    def guarded(self: Any, i: int) -> np.ndarray:
        assert not (self.name == "target" and self.split == "train"), (
            "a target training label was read"
        )
        return original(self, i)

    monkeypatch.setattr(frames_class, "labels", guarded)
    go(config(blocks), tmp_path)


def test_a_bad_source_file_is_named_and_the_run_finishes(blocks: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(blocks, root)
    assert cv2.imwrite(str(root / "source/train/labels/03.png"), np.zeros((10, 10), np.uint8))
    (root / "source/train/labels/04.png").write_bytes(b"nothing")
    outcome = go(config(root, "source.iterations=12", stages=("source",)), tmp_path / "run")
    named = " ".join(outcome.bad_files)
    assert "03.png: the frame is 96x64 but its labels are 10x10" in named and "04.png" in named


def test_a_loss_that_is_not_finite_stops_the_stage_and_names_its_frames(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames named are those of the first bad iteration, and the state before it is kept and goes on."""
    drawn: list[tuple[str, ...]] = []
    log = TrainingLoop.log

    def spoiling(self: TrainingLoop, files: tuple[str, ...], rates: Any, losses: Any) -> None:
        drawn.append(files)
        log(
            self,
            files,
            rates,
            {"segmentation": torch.tensor(float("nan"))} if len(drawn) == 4 else losses,
        )

    with monkeypatch.context() as patch, pytest.raises(FadaError) as caught:
        patch.setattr(TrainingLoop, "log", spoiling)
        go(config(blocks, stages=("source",)), tmp_path)
    message = str(caught.value)
    assert (
        "source: segmentation is no finite number at iteration 4 on " in message
        and "\n" not in message
    )
    assert len(drawn[3]) == 2 and all(name in message and Path(name).is_file() for name in drawn[3])
    assert "the state of iteration 2 is kept" in message and "lower source.lr" in message
    assert not (tmp_path / "source" / "weights.safetensors").exists()
    go(load_config(tmp_path), tmp_path)


def test_a_rate_too_high_is_said(blocks: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FadaError, match=r"segmentation is no finite number at iteration \d.*lower source\.lr"
    ):
        go(config(blocks, "source.lr=1e30", stages=("source",)), tmp_path)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (["norm=frozen"], {}, "frozen normalization over random weights cannot learn"),
        ([], {"init": "no.pth"}, "--init no.pth: no such file"),
        ([], {"backbone": "vgg99"}, "unknown backbone 'vgg99'; choose from resnet101, "),
        ([], {"src": "kitti"}, "no data set 'kitti'; there are gta5, "),
        ([], {"tgt": "drives"}, "no target 'drives'; a target is a data set (gta5, "),
        (
            ["distill.norm=frozen"],
            {},
            "distill: frozen normalization over random weights cannot learn",
        ),
        ([], {"stages": ("adversarial",)}, "adversarial builds on an earlier stage"),
        (
            ["distill.batch=1"],
            {},
            "distill: trainable normalization needs 2 or more images at a time; found 1",
        ),
        (["size=100x64"], {}, "input size 100x64"),
        (
            ["norm=frozen"],
            {"backbone": "efficientnet-lite0", "init": "FILE"},
            "leave a part out, so let norm be batch",
        ),
        (["published=46.9"], {}, "begun from ImageNet weights of ddrnet23-slim; give --init FILE"),
        ([], {"init_norm": "caffe"}, "give --init FILE, or neither"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_no_run(
    blocks: Path, tmp_path: Path, settings: list[str], options: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if options.get("init") == "FILE":
        (tmp_path / "init.pth").write_bytes(b"")
        options = options | {"init": str(tmp_path / "init.pth")}
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        go(config(blocks, *settings, **options), folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_a_source_without_labels_is_refused(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text(
        f'[splits.train]\nimages = "{blocks}/source/train/images/*.png"\n'
    )
    # Globs are relative to the file, so the pictures are found by a link.
    (tmp_path / "source").symlink_to(blocks / "source")
    (tmp_path / "bare.toml").write_text('[splits.train]\nimages = "source/train/images/*.png"\n')
    with pytest.raises(DataError, match="the source must be labeled"):
        go(config(blocks, src=str(tmp_path / "bare.toml")), tmp_path / "run")


def test_recordings_are_a_target_and_nothing_is_scored(blocks: Path, tmp_path: Path) -> None:
    said: list[str] = []
    target = str(blocks / "target" / "train" / "images")
    outcome = go(config(blocks, tgt=target, stages=("source", "adversarial")), tmp_path, said)
    assert not outcome.scores and (tmp_path / "adversarial" / "weights.safetensors").is_file()
    assert any("12 of 12 pictures" in line for line in said)


def test_init_loads_torchvisions_names_and_counts_what_is_missing(
    blocks: Path, tmp_path: Path
) -> None:
    model, _ = load_segmenter_of(blocks, tmp_path)
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


def load_segmenter_of(blocks: Path, folder: Path) -> tuple[Any, dict[str, Any]]:
    go(config(blocks, "source.iterations=1", stages=("source",)), folder / "made")
    return load_model(folder / "made" / "source" / "weights.safetensors")


def test_a_pickle_of_code_is_never_run(tmp_path: Path, blocks: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="not a readable weights file"):
        go(config(blocks, init=str(tmp_path / "evil.pth")), tmp_path / "run")
    assert not (tmp_path / "owned").exists()


def test_another_stages_state_is_refused(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_state(tmp_path / "source" / "state.pt", 3, {"model": torch.nn.Linear(1, 1)})
    with pytest.raises(ModelError, match="not a training state of this run"):
        go(config(blocks, stages=("source",)), tmp_path)


def test_a_bonnet_mask_is_for_recordings(blocks: Path, tmp_path: Path) -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[56:] = 255
    assert cv2.imwrite(str(tmp_path / "bonnet.png"), mask)
    options: dict[str, Any] = {"ego_mask": str(tmp_path / "bonnet.png")}
    recordings = str(blocks / "target" / "train" / "images")
    stages = ("source", "adversarial", "distill")
    go(config(blocks, tgt=recordings, stages=stages, **options), tmp_path / "run")
    pseudo = cv2.imread(str(tmp_path / "run/distill/pseudo/000000.png"), cv2.IMREAD_UNCHANGED)
    assert (pseudo[56:] == 255).all() and (pseudo[:56] != 255).all()
    with pytest.raises(UsageError, match="--ego-mask is for recordings"):
        go(config(blocks, **options), tmp_path / "other")


def test_a_data_sets_folder_is_no_recording(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "city" / "leftImg8bit").mkdir(parents=True)
    with pytest.raises(UsageError, match="say --tgt cityscapes --tgt-root"):
        go(config(blocks, tgt=str(tmp_path / "city")), tmp_path / "run")


def test_a_start_must_fit_the_run(blocks: Path, whole: Path, tmp_path: Path) -> None:
    start: dict[str, Any] = {"start": str(whole), "stages": ("adversarial",)}
    with pytest.raises(UsageError, match="give --label-space what it was trained with"):
        go(config(blocks, label_space="cityscapes-13", **start), tmp_path / "a")
    with pytest.raises(UsageError, match="give --backbone ddrnet23-slim"):
        go(config(blocks, **start | {"backbone": "resnet101"}), tmp_path / "b")
    with pytest.raises(UsageError, match="--start stands in for the source stage"):
        go(config(blocks, start=str(whole)), tmp_path / "d")
    with pytest.raises(UsageError, match="was trained with norm batch; give --set norm=batch"):
        go(config(blocks, "norm=frozen", **start), tmp_path / "f")
    with pytest.raises(ModelError, match="gone: no such run"):
        go(config(blocks, **start | {"start": "gone"}), tmp_path / "e")
    go(config(blocks, "size=128x64", **start), tmp_path / "c")
    model, _ = load_model(tmp_path / "c" / "adversarial" / "weights.safetensors")
    assert model.spec.size_hw == (64, 128)


def test_a_run_does_not_go_on_with_other_frames(blocks: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(blocks, root)
    go(config(root, stages=("source",)), tmp_path / "run")
    for sub in ("images", "labels"):
        folder = root / "target" / "train" / sub
        shutil.copy(folder / "00.png", folder / "000.png")
    with pytest.raises(DataError, match="frames or classes of the target changed since"):
        go(config(root), tmp_path / "run")


def test_a_finished_stage_is_scored_once(
    blocks: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((whole / "source" / "scores.json").read_text())

    def never(*_: Any) -> None:
        raise AssertionError("the score is there")

    monkeypatch.setattr(run_module.Run, "_evaluate", never)
    said: list[str] = []
    outcome = go(load_config(whole), whole, said)
    assert outcome.scores["source"] == before and sum("mIoU" in line for line in said) == 3


def test_two_processes_do_not_train_one_run(blocks: Path, tmp_path: Path) -> None:
    with (
        lock(tmp_path / "run"),
        pytest.raises(UsageError, match="another process is working in this folder"),
    ):
        go(config(blocks, stages=("source",)), tmp_path / "run")
    go(config(blocks, stages=("source",)), tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()
