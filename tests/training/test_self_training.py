"""Self-training against a NumPy reading of its definitions, and one step against plain autograd."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fada_deploy.common.errors import DataError
from fada_deploy.common.label_space import CITYSCAPES_13
from fada_deploy.training.data.augmentation import get_augmentation
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.data.samplers import RareClassSampler
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import make_method
from fada_deploy.training.methods.base import AlignmentMethod, MethodContext
from fada_deploy.training.methods.mean_teacher import MeanTeacher
from fada_deploy.training.methods.self_training import (
    CollapseMonitor,
    PseudoLabels,
    augment_colors,
    block_mask,
    class_mix,
    pseudo_labels,
    student_views,
    weighted_labels,
)
from fada_deploy.training.methods.self_training_base import SelfTrainingContext, StudentView
from fada_deploy.training.models.segmentation import ModelSpec, SegmentationModel
from fada_deploy.training.optim import AveragedWeights, make_optimizer
from fada_deploy.training.run import train
from fada_deploy.training.settings import make_config
from fada_deploy.training.stage_config import AdversarialStage, SelfTrainingStage
from fada_deploy.training.stages.adversarial import adversarial_step
from fada_deploy.training.stages.selftrain import self_training_step

CPU = torch.device("cpu")
STAGE = SelfTrainingStage(iterations=4, max_iterations=4, batch=2, lr=1e-3, warmup=0)


def random_logits(shape: tuple[int, ...] = (2, 5, 6, 8), seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("quantile", [0.0, 0.34, 1.0])
def test_thresholds_are_balanced_over_the_predicted_classes(quantile: float) -> None:
    """At the network's own resolution, where no interpolation blurs the comparison."""
    z = random_logits()
    got = pseudo_labels(z, (6, 8), max_threshold=0.7, quantile=quantile).numpy()
    p = softmax(z.double().numpy())
    confidence, classes = p.max(1), p.argmax(1)
    expected = np.full(classes.shape, 255)
    for k in np.unique(classes):
        of_class = confidence[classes == k]
        threshold = min(0.7, np.quantile(of_class, quantile))
        kept = (classes == k) & (confidence >= threshold - 1e-7)
        expected[kept] = k
    np.testing.assert_array_equal(got, expected)
    if quantile == 0.0:
        assert (got != 255).all()


def test_full_size_labels_come_from_interpolated_probabilities() -> None:
    z = random_logits()
    got = pseudo_labels(z, (24, 32), max_threshold=0.0, quantile=1.0)
    wide = F.interpolate(F.softmax(z, 1), (24, 32), mode="bilinear", align_corners=True)
    assert got.shape == (2, 24, 32) and torch.equal(got, wide.argmax(1))


def test_weighted_labels_follow_dacs() -> None:
    """All pixels are labeled; their weight is the share of confident pixels, in NumPy."""
    z = random_logits()
    got = weighted_labels(z, (24, 32), max_threshold=0.4)
    wide = F.interpolate(F.softmax(z, 1), (24, 32), mode="bilinear", align_corners=True).numpy()
    np.testing.assert_array_equal(got.labels, wide.argmax(1))
    assert got.weight is not None
    np.testing.assert_allclose(float(got.weight), (wide.max(1) >= 0.4).mean(), rtol=1e-6)


def test_weighted_views_average_over_pixels_and_paste_with_weight_one(
    model: SegmentationModel,
) -> None:
    """The loss of a mixed frame is mean(w · CE) with w = 1 where source classes were pasted."""
    src, tgt, _ = batches(torch.Generator().manual_seed(2))
    stage = replace(STAGE, mixed_weight=1.0, optimizer="sgd", lr=0.0)
    pseudo = PseudoLabels(torch.full_like(tgt.labels, 4), torch.tensor(0.25))
    (view,) = student_views(
        src, tgt, pseudo, stage, (0.5, 0.5, 0.5), get_augmentation("none"),
        np.random.default_rng(3),
    )  # fmt: skip
    weights = view.batch.weights
    assert weights is not None and set(weights.unique().tolist()) == {0.25, 1.0}
    assert (view.batch.labels[weights == 0.25] == 4).all()
    copy = deepcopy(model).train()
    with torch.no_grad():
        logits = deepcopy(model).train()(view.batch.frames_bhwc)
    losses = self_training_step(copy, make_optimizer(copy, stage), None, src, tgt, [view], stage)
    wide = F.interpolate(logits, weights.shape[1:], mode="bilinear", align_corners=True)
    each = F.cross_entropy(wide, view.batch.labels, ignore_index=255, reduction="none")
    expected = (each * weights).sum() / (view.batch.labels != 255).sum()
    torch.testing.assert_close(losses["mixed"], expected, rtol=1e-4, atol=1e-6)


def test_rare_classes_are_drawn_by_the_published_formula() -> None:
    """P(c) = exp((1 − f_c) / T) / Σ exp((1 − f) / T), then a file that contains the class."""
    pixels = np.array([[900, 90, 0, 0], [950, 0, 10, 0], [800, 50, 0, 0]])
    sampler = RareClassSampler(pixels, 0.1, seed=3)
    f = pixels.sum(0)[:3] / pixels.sum()
    expected = np.exp((1 - f) / 0.1)
    expected /= expected.sum()
    np.testing.assert_allclose(sampler.probabilities, expected)
    drawn = np.bincount([sampler[i] for i in range(4000)], minlength=3) / 4000
    # Class 0 is in all files, class 1 in the first and last, class 2 in the second.
    by_file = expected[0] / 3 + np.array([expected[1] / 2, expected[2], expected[1] / 2])
    np.testing.assert_allclose(drawn, by_file, atol=0.03)
    assert [sampler[i] for i in range(50)] == [
        RareClassSampler(pixels, 0.1, seed=3)[i] for i in range(50)
    ]
    assert np.isfinite(RareClassSampler(pixels, 1e-4, seed=3).probabilities).all()
    with pytest.raises(DataError, match="encoding"):
        RareClassSampler(np.zeros((2, 3), np.int64), 0.1, seed=0)


@pytest.mark.parametrize("name", ["daformer", "mic", "cbst", "crst", "st"])
def test_published_settings_train(name: str, blocks: Path, tmp_path: Path) -> None:
    """The settings files run at a small size; their published numbers are not changed."""
    file = Path(__file__).parents[2] / "configs" / "selftrain" / f"{name}.toml"
    published = make_config(
        recipe=None, file=file, settings=[], options={"src": "gta5", "tgt": "x"}
    )
    stage = published.selftrain
    expected = {
        "daformer": (0.999, 0.968, "confident_share", 0.01, 1.0, 0.0),
        "mic": (0.999, 0.968, "confident_share", 0.01, 1.0, 1.0),
        "cbst": (0.99, 0.9, "none", 0.0, 0.0, 1.0),
        "crst": (0.99, 0.9, "none", 0.0, 0.0, 1.0),
        "st": (0.99, 0.9, "none", 0.0, 0.0, 1.0),
    }[name]
    assert expected == (
        stage.ema, stage.max_threshold, stage.weighting, stage.rare_class_temperature,
        stage.mixed_weight, stage.masked_weight,
    )  # fmt: skip
    if name == "mic":
        assert (stage.mask_block, stage.mask_ratio) == (64, 0.7)
    small = [
        "src_size=96x64", "size=96x64", "source.iterations=2", "selftrain.iterations=2",
        "backbone=tiny", "init=none", "amp=off", "label_space=cityscapes-13",
    ]  # fmt: skip
    options = {"src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml")}
    config = make_config(recipe=None, file=file, settings=small, options=options)
    result = train(config, tmp_path / "run", device=torch.device("cpu"))
    assert set(result.scores) == {"source", "selftrain"}


def test_half_of_the_source_classes_are_pasted() -> None:
    rng = np.random.default_rng(0)
    src_labels = torch.from_numpy(rng.integers(0, 5, (2, 12, 16)))
    src_labels[1][src_labels[1] > 2] = 255
    src_frames = torch.full((2, 12, 16, 3), 200, dtype=torch.uint8)
    tgt_frames = torch.zeros(2, 12, 16, 3, dtype=torch.uint8)
    tgt_labels = torch.full((2, 12, 16), 7)
    frames, labels, all_pasted = class_mix(
        src_frames, src_labels, tgt_frames, tgt_labels, np.random.default_rng(1)
    )
    for slot, count in ((0, 3), (1, 2)):
        pasted = frames[slot, ..., 0] == 200
        assert torch.equal(pasted, all_pasted[slot])
        assert torch.equal(labels[slot][pasted], src_labels[slot][pasted])
        assert (labels[slot][~pasted] == 7).all()
        classes = src_labels[slot][pasted].unique()
        assert len(classes) == count and 255 not in classes
        # A pasted class is pasted completely.
        assert torch.equal(pasted, torch.isin(src_labels[slot], classes))
    assert (tgt_frames == 0).all() and (tgt_labels == 7).all()


def test_a_vanished_class_is_named_once() -> None:
    monitor = CollapseMonitor(("road", "sky", "car", "bus"), window=2)
    source = torch.tensor([0] * 500 + [1] * 300 + [2] * 199 + [255])
    target = torch.tensor([0] * 600 + [1] * 398 + [255] * 2)
    assert monitor.update(source, torch.where(target == 255, 2, target)) == []
    # Two of 2,000 pixels are cars, in the source 19.9 %; no source frame shows a bus.
    assert monitor.update(source, target) == ["car"]
    assert [monitor.update(source, target) for _ in range(4)] == [[]] * 4
    assert monitor.vanished == ["car"]


def test_a_resumed_monitor_goes_on_where_it_stopped() -> None:
    names = ("road", "sky", "car", "bus")
    source = torch.tensor([0] * 500 + [1] * 300 + [2] * 200)
    target = torch.tensor([0] * 600 + [1] * 400)
    whole, first, second = (CollapseMonitor(names, window=4) for _ in range(3))
    expected = [whole.update(source, target) for _ in range(8)]
    found = [first.update(source, target) for _ in range(3)]
    second.load_state_dict(first.state_dict())
    found += [second.update(source, target) for _ in range(5)]
    assert found == expected and expected[3] == ["car"]


@pytest.fixture
def model() -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(ModelSpec("ddrnet23-slim", CITYSCAPES_13, (64, 96), "batch"))


def test_one_step_equals_plain_autograd(model: SegmentationModel) -> None:
    generator = torch.Generator().manual_seed(1)
    frames, mixed = torch.randint(0, 256, (2, 2, 64, 96, 3), generator=generator).byte()
    labels, mixed_labels = torch.randint(0, 13, (2, 2, 64, 96), generator=generator)
    labels[0, :8], mixed_labels[1, :, :30] = 255, 255
    stage = replace(STAGE, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    plain = deepcopy(model).train()
    model.train()
    src, tgt = Batch(frames, labels, (0, 1)), Batch(mixed, mixed_labels, (0, 1))
    views = [StudentView("mixed", tgt, 0.5)]
    optimizer = make_optimizer(model, stage)
    losses = self_training_step(model, optimizer, None, src, tgt, views, stage)
    loss = torch.zeros(())
    for x, y, weight in ((frames, labels, 1.0), (mixed, mixed_labels, 0.5)):
        wide = F.interpolate(plain(x), (64, 96), mode="bilinear", align_corners=True)
        term = F.cross_entropy(wide, y, ignore_index=255)
        loss = loss + weight * term
    loss.backward()
    assert losses["segmentation"] + 0.5 * losses["mixed"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in plain.named_parameters():
        factor = 1.0 if name.startswith("feature_extractor") else stage.classifier_lr_factor
        assert parameter.grad is not None
        expected = parameter - stage.lr * factor * parameter.grad
        got = dict(model.named_parameters())[name]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def batches(generator: torch.Generator, count: int = 3, size: int = 2) -> list[Batch]:
    """Return random labeled batches."""
    return [
        Batch(
            torch.randint(0, 256, (size, 64, 96, 3), generator=generator).byte(),
            torch.randint(0, 13, (size, 64, 96), generator=generator),
            tuple(range(size)),
        )
        for _ in range(count)
    ]


def new_method(name: str, model: SegmentationModel, settings: AdversarialStage) -> AlignmentMethod:
    return make_method(name, MethodContext(model, settings, None, None))  # type: ignore[arg-type]


def test_a_joint_step_adds_the_gradients_of_alignment_and_self_training(
    model: SegmentationModel,
) -> None:
    """The adversarial gradients are compared with NumPy elsewhere; here only the sum is new."""
    src, tgt, mixed = batches(torch.Generator().manual_seed(1))
    stage = replace(STAGE, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    settings = AdversarialStage(adversarial_weight=0.1)
    method = new_method("fada", model, settings)

    def aligner() -> Aligner:
        return Aligner.create(deepcopy(method), settings)

    model.train()
    alone, joint = deepcopy(model), deepcopy(model)
    adversarial = aligner()
    adversarial_step(alone, make_optimizer(alone, replace(stage, lr=0.0)), adversarial, src, tgt)
    wide = F.interpolate(model(mixed.frames_bhwc), (64, 96), mode="bilinear", align_corners=True)
    (0.5 * F.cross_entropy(wide, mixed.labels)).backward()
    views = [StudentView("mixed", mixed, 0.5)]
    together = aligner()
    losses = self_training_step(
        joint, make_optimizer(joint, replace(stage, lr=0.0)), together, src, tgt, views, stage
    )
    assert {"segmentation", "mixed", "adversarial", "discriminator_accuracy"} <= losses.keys()
    for (name, got), first, second in zip(
        joint.named_parameters(), alone.parameters(), model.parameters(), strict=True
    ):
        assert got.grad is not None and first.grad is not None and second.grad is not None, name
        torch.testing.assert_close(got.grad, first.grad + second.grad, rtol=1e-3, atol=1e-5)
    for got, want in zip(
        together.method.discriminator.parameters(),
        adversarial.method.discriminator.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


def test_accumulation_does_not_change_the_step() -> None:
    """Without batch normalization; the parts have different numbers of labeled pixels."""
    torch.manual_seed(0)
    model = SegmentationModel(ModelSpec("ddrnet23-slim", CITYSCAPES_13, (64, 96), "frozen"))
    src, tgt, mixed = batches(torch.Generator().manual_seed(1), size=4)
    mixed.labels[:2, :40] = 255
    results = []
    for parts in (1, 2):
        stage = replace(STAGE, batch=4, accumulate=parts, optimizer="sgd", momentum=0.0)
        copy = deepcopy(model).train()
        settings = AdversarialStage()
        torch.manual_seed(1)
        aligner = Aligner.create(new_method("advent", copy, settings), settings)
        views = [StudentView("mixed", mixed, 1.0)]
        optimizer = make_optimizer(copy, stage)
        losses = self_training_step(copy, optimizer, aligner, src, tgt, views, stage)
        results.append([*losses.values(), *copy.parameters()])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_masked_frames_hide_whole_blocks_and_keep_the_labels() -> None:
    mask = block_mask((50, 70), 40, block=16, ratio=0.7, rng=np.random.default_rng(0))
    assert mask.shape == (40, 50, 70)
    corners = mask[:, ::16, ::16]
    assert abs(corners.mean() - 0.7) < 0.05
    for y, x in np.ndindex(50, 70):
        assert (mask[:, y, x] == corners[:, y // 16, x // 16]).all()

    src, tgt, _ = batches(torch.Generator().manual_seed(2))
    stage = replace(STAGE, mixed_weight=0.0, masked_weight=0.5, mask_block=32, mask_ratio=0.5)
    (view,) = student_views(
        src, tgt, PseudoLabels(tgt.labels), stage, (0.5, 0.25, 0.0), get_augmentation("none"),
        np.random.default_rng(3),
    )  # fmt: skip
    assert (view.name, view.weight) == ("masked", 0.5) and view.batch.labels is tgt.labels
    hidden = (view.batch.frames_bhwc == torch.tensor([128, 64, 0])).all(-1)
    assert 0.2 < hidden.float().mean() < 0.8
    assert torch.equal(view.batch.frames_bhwc[~hidden], tgt.frames_bhwc[~hidden])


def test_the_teacher_ignores_the_own_car_and_is_not_trained(model: SegmentationModel) -> None:
    frames = torch.randint(0, 256, (2, 64, 96, 3)).byte()
    ego = torch.zeros(64, 96, dtype=torch.bool)
    ego[50:] = True
    batch = Batch(frames, torch.full((2, 64, 96), 255), (0, 1), ego=ego)
    stage = replace(STAGE, max_threshold=0.0)
    teacher = MeanTeacher(
        SelfTrainingContext(
            model, AveragedWeights(model, 0.9), stage, get_augmentation("none"), False,
            count_target=lambda _: torch.zeros(()), whole_target=lambda: iter(()),
        )
    )  # fmt: skip
    source = Batch(frames, torch.zeros(2, 64, 96, dtype=torch.int64), (0, 1))
    labels = teacher.views(source, batch, np.random.default_rng(0)).labels
    assert (labels[:, 50:] == 255).all() and (labels[:, :50] < 13).all()
    assert not labels.requires_grad and all(p.grad is None for p in model.parameters())


def test_colors_of_mixed_frames_depend_on_the_generator_alone() -> None:
    frames = torch.randint(0, 256, (2, 32, 48, 3)).byte()
    strong = get_augmentation("strong")
    first, again = (augment_colors(frames, strong, np.random.default_rng(4)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, frames)


def test_the_stage_trains_after_the_source_and_resumes_exactly(
    blocks: Path, tmp_path: Path
) -> None:
    """A run that is stopped after its saved state has the weights of an uninterrupted one."""
    settings = [
        "src_size=96x64", "size=96x64", "save_every=2", "amp=off", "source.iterations=3",
        "selftrain.iterations=6", "augment=strong", "selftrain.masked_weight=0.5",
        "selftrain.align=true", "adversarial.full_resolution=false", "backbone=tiny",
    ]  # fmt: skip
    options = {
        "src": str(blocks / "source.toml"),
        "tgt": str(blocks / "target.toml"),
        "stages": ("source", "selftrain"),
        "label_space": "cityscapes-13",
    }
    config = make_config(recipe="small", file=None, settings=settings, options=options)
    whole = tmp_path / "whole"
    train(config, whole, device=CPU)
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        calls = 0

        def fail_late(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt
            return self_training_step(*args, **kwargs)  # type: ignore[arg-type]

        patch.setattr("fada_deploy.training.stages.selftrain.self_training_step", fail_late)
        with pytest.raises(KeyboardInterrupt):
            train(config, stopped, device=CPU)
    assert (stopped / "selftrain" / "state.pt").is_file()
    train(config, stopped, device=CPU)
    weights = [(run / "selftrain" / "weights.safetensors") for run in (whole, stopped)]
    first, second = map(load_file, weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
