"""`fada adapt`: a new target with and without a source, and the comparison afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fada_deploy import api
from fada_deploy.common.errors import ModelError, UsageError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.data import open_dataset
from fada_deploy.evaluation import evaluate
from fada_deploy.training.adapt import adaptation_config, compare_targets
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.self_training import PseudoLabels, rolled
from fada_deploy.training.optim import mix_running_statistics
from fada_deploy.training.predict import Predictor
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.weights.checkpoints import load_model, save_state, save_weights

Run = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapted(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the stages source and selftrain on the blocks."""
    settings = [
        "backbone=tiny", "src_size=96x64", "size=96x64", "amp=off", "source.iterations=30",
        "source.ema=0", "selftrain.iterations=4",
    ]  # fmt: skip
    options = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "stages": ("source", "selftrain"),
        "label_space": "cityscapes-13",
    }
    run = tmp_path_factory.mktemp("adapted") / "run"
    train(
        make_config(recipe="small", file=None, settings=settings, options=options), run, device=CPU
    )
    return run


@pytest.fixture(scope="module")
def recordings(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with darker frames of the target, without labels."""
    folder = tmp_path_factory.mktemp("dusk")
    for path in sorted((blocks / "target/train/images").glob("*.png")):
        cv2.imwrite(str(folder / path.name), cv2.imread(str(path)) // 2)
    return folder


def test_running_statistics_become_a_mixture() -> None:
    model = nn.BatchNorm2d(3).train()
    rng = np.random.default_rng(0)
    frames = [torch.from_numpy(rng.normal(3, 2, (4, 3, 5, 6))).float() for _ in range(7)]
    mix_running_statistics(model, frames)
    mean, variance = np.zeros(3), np.ones(3)
    for k, x in enumerate(frames):
        momentum = 0.1 * np.exp(-0.08 * k)
        values = x.numpy().transpose(1, 0, 2, 3).reshape(3, -1).astype(np.float64)
        mean = (1 - momentum) * mean + momentum * values.mean(1)
        variance = (1 - momentum) * variance + momentum * values.var(1, ddof=1)
    assert not model.training and model.momentum == 0.1
    torch.testing.assert_close(model.running_mean, torch.tensor(mean), check_dtype=False)
    torch.testing.assert_close(model.running_var, torch.tensor(variance), check_dtype=False)


def test_rolled_frames_keep_their_labels() -> None:
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 2, 2, 3)
    labels = 10 * torch.arange(3)[:, None, None].expand(3, 2, 2)
    target = Batch(frames, torch.full((3, 2, 2), 255), (4, 5, 6))
    got = rolled(target, PseudoLabels(labels))
    assert got.indices == (6, 4, 5)
    assert got.frames_bhwc[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert got.labels[:, 0, 0].tolist() == [20, 0, 10]


@pytest.mark.slow
def test_adapt_resume_and_evaluate_from_python(adapted: Path, blocks: Path, tmp_path: Path) -> None:
    out = tmp_path / "api"
    frames = tmp_path / "frames"
    result, targets = api.adapt(
        adapted, tgt=blocks / "source.toml", iterations=1, out=out, device="cpu", cache_gib=0.1,
        cache_folder=frames,
    )  # fmt: skip
    assert load_config(out).selftrain.iterations == 1 and any(frames.iterdir())
    assert result.run == out and [Path(each.target).name for each in targets] == [
        "source.toml",
        "target.toml",
    ]
    again = api.train(resume=out, device="cpu")
    assert again.scores == result.scores
    scores = api.evaluate(out, blocks / "source.toml", device="cpu").scores
    assert scores.miou == pytest.approx(targets[0].miou_after)
    with pytest.raises(UsageError, match="leave out src"):
        api.train(src="gta5", resume=out)


def chosen_weights(run: Path) -> Path:
    """Return the weights of the stage that was chosen without labels."""
    chosen = json.loads((run / "selection.json").read_text())["chosen"]
    return run / chosen / "weights.safetensors"


def test_adapt_compares_both_networks_on_both_targets(
    fada: Run, adapted: Path, blocks: Path, tmp_path: Path
) -> None:
    """The old target has labels; the new one is another data set with labels."""
    out = tmp_path / "again"
    code, stdout, err = fada(
        "adapt", adapted, "--tgt", blocks / "source.toml", "--iterations", 3, "--out", out,
        "--device", "cpu", "--json", "--cache", 0.1, "--cache-folder", tmp_path / "frames",
    )  # fmt: skip
    assert code == 0, err
    assert any((tmp_path / "frames").iterdir())
    comparisons = json.loads((out / "adaptation.json").read_text())
    document = json.loads(stdout)
    assert (document["run"], document["targets"]) == (str(out), comparisons)
    assert document["bad_files"] == [] and "selftrain" in document["scores"]
    assert [c["target"] for c in comparisons] == [
        str(blocks / "source.toml"), str(blocks / "target.toml"),
    ]  # fmt: skip
    for comparison, name in zip(comparisons, ("source", "target"), strict=True):
        frames = open_dataset(str(blocks / f"{name}.toml"), None, split="val", space=CITYSCAPES_13)
        for key, weights in (
            ("miou_before", chosen_weights(adapted)),
            ("miou_after", out / "selftrain" / "weights.safetensors"),
        ):
            model, _ = load_model(weights)
            miou = evaluate(Predictor(model, CPU).labels, frames).scores.miou
            assert comparison[key] == pytest.approx(miou)
        assert comparison["frames"] == 6 and comparison["agreement"] is None
    assert "mIoU before" in err and "target.toml" in err


def test_the_result_is_an_average_with_the_network_before(
    fada: Run, adapted: Path, blocks: Path, tmp_path: Path
) -> None:
    """(1 − w) · after + w · before, also of running statistics and of checkpoints."""
    before = load_file(chosen_weights(adapted))
    arguments = (
        "adapt", adapted, "--tgt", blocks / "source.toml", "--iterations", 2, "--device", "cpu",
        "--set", "checkpoint_every=1", "--out",
    )  # fmt: skip
    results = {}
    for name, more in (("0", ("--start-weight", 0)), ("0.5", ()), ("0.7", ("--start-weight", 0.7))):
        code, _, err = fada(*arguments, tmp_path / name, *more)
        assert code == 0, err
        stage = tmp_path / name / "selftrain"
        files = [stage / "weights.safetensors", stage / "checkpoints/000001.safetensors"]
        results[float(name)] = [load_file(file) for file in files]
    for weight in (0.5, 0.7):
        for result, after in zip(results[weight], results[0.0], strict=True):
            assert any(not torch.equal(after[name], before[name]) for name in after)
            for name, tensor in after.items():
                if tensor.is_floating_point():
                    old, new = (x.numpy().astype(np.float64) for x in (before[name], tensor))
                    want = weight * old + (1 - weight) * new
                    np.testing.assert_allclose(result[name].numpy(), want, rtol=1e-5, atol=1e-7)
                else:
                    assert torch.equal(result[name], tensor)


def test_source_free_adaptation_needs_no_source_and_resumes_exactly(
    fada: Run, adapted: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a source was opened")

    monkeypatch.setattr("fada_deploy.training.data.run_data.open_sources", refuse)
    monkeypatch.setattr("fada_deploy.training.stages.selftrain.STATISTICS_BATCHES", 3)
    before = load_file(adapted / "selftrain" / "weights.safetensors")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = (
        "adapt", adapted / "selftrain", "--tgt", recordings, "--source-free", "--iterations", 4,
        "--set", "save_every=2", "--device", "cpu", "--out",
    )  # fmt: skip
    code, _, err = fada(*arguments, whole)
    assert code == 0, err
    config = json.loads((whole / "config.json").read_text())
    assert config["stages"] == ["selftrain"] and config["selftrain"]["source_free"]
    after = load_file(whole / "selftrain" / "weights.safetensors")
    norms = [name for name in after if name.endswith("running_mean")]
    assert any(not torch.equal(before[name], after[name]) for name in norms)
    # The recordings have no labels, the old target does.
    new, old = json.loads((whole / "adaptation.json").read_text())
    assert 0 < new["agreement"] <= 1 and new["miou_after"] is None and old["miou_after"] > 0

    with monkeypatch.context() as patch:
        saved: list[int] = []

        def stop_after_saving(path: Path, iteration: int, parts: object) -> None:
            save_state(path, iteration, parts)  # type: ignore[arg-type]
            saved.append(iteration)
            raise KeyboardInterrupt

        patch.setattr("fada_deploy.training.loop.save_state", stop_after_saving)
        code, _, err = fada(*arguments, stopped)
        assert code == 130 and saved == [2] and f"--out {stopped}" in err
    other = [*arguments]
    other[other.index("--iterations") + 1] = 5
    assert fada(*other, stopped)[0] == 2, "another run cannot be continued"
    code, _, err = fada(*arguments, stopped)
    assert code == 0, err
    again = load_file(stopped / "selftrain" / "weights.safetensors")
    assert all(torch.equal(again[name], after[name]) for name in after)
    assert json.loads((stopped / "adaptation.json").read_text())[0]["target"] == str(recordings)


def test_changes_are_checked_and_the_old_settings_stay(adapted: Path, tmp_path: Path) -> None:
    config = adaptation_config(adapted, tgt="drives/", settings=["selftrain.lr=1e-4"])
    previous = json.loads((adapted / "config.json").read_text())
    assert (config.tgt, config.stages, config.selftrain.lr) == ("drives/", ("selftrain",), 1e-4)
    assert config.src == previous["src"] and config.augment == previous["augment"]
    assert config.start == str(chosen_weights(adapted))
    selftrain = config.selftrain
    shorter = adaptation_config(adapted, tgt="drives/", iterations=2).selftrain
    # The warm-up is kept, up to half of the iterations.
    assert (selftrain.iterations, selftrain.warmup) == (4, 20)
    assert (shorter.iterations, shorter.warmup) == (2, 1)
    assert adaptation_config(adapted, tgt="drives/", iterations=90).selftrain.warmup == 20
    assert shorter.max_iterations == pytest.approx(selftrain.max_iterations / 2, abs=1)
    with pytest.raises(UsageError, match=r"selftrain\.lr"):
        adaptation_config(adapted, tgt="drives/", settings=["selftrain.lr=fast"])
    with pytest.raises(UsageError, match="needs a source"):
        adaptation_config(
            adapted, tgt="drives/", source_free=True, options={"selftrain.align": True}
        )
    model, _ = load_model(adapted / "selftrain" / "weights.safetensors")
    unknown = tmp_path / "weights.safetensors"
    save_weights(unknown, model.state_dict(), model.spec, {})
    with pytest.raises(ModelError, match=r"settings.*--start"):
        adaptation_config(unknown, tgt="drives/")


def test_a_network_that_only_learned_the_source_can_be_adapted(
    blocks: Path, adapted: Path, tmp_path: Path
) -> None:
    """Its recipe would align the domains by its method.

    The files of its initial weights and of its label space are on another machine.
    """
    model, provenance = load_model(adapted / "source" / "weights.safetensors")
    config = provenance["config"] | {
        "method": "source", "stages": ["source"], "init": str(tmp_path / "no-such-file.pth"),
    }  # fmt: skip
    config["selftrain"] |= {"align": True}
    config["label_space"] = str(tmp_path / "no-such-space.toml")
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, model.state_dict(), model.spec, {**provenance, "config": config})
    settings = ["selftrain.iterations=1", "selftrain.max_iterations=1"]
    tgt = str(blocks / "target.toml")
    changed = adaptation_config(weights, tgt=tgt, settings=settings)
    assert not changed.selftrain.align
    train(changed, tmp_path / "run", device=CPU)
    (comparison,) = compare_targets(tmp_path / "run", changed, CPU)
    assert comparison.frames == 6 and comparison.miou_after is not None


def test_mixing_target_frames_with_each_other_needs_two(
    adapted: Path, recordings: Path, tmp_path: Path
) -> None:
    settings = ["selftrain.batch=1"]
    config = adaptation_config(adapted, tgt=str(recordings), source_free=True, settings=settings)
    with pytest.raises(
        UsageError, match=r"pairs .* got 1 frame per process; use --set selftrain\.batch=2"
    ):
        train(config, tmp_path / "run", device=CPU)
