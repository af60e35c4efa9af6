"""ProDA against a NumPy reading of its equations in float64, and its stages from end to end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interruptions import interrupted_after
from numpy_networks import Array, softmax
from safetensors.torch import load_file
from torch import Tensor, nn

from fada_deploy.common.errors import InterruptedRunError, UsageError
from fada_deploy.common.images import read_indices
from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data.augmentation import get_augmentation
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.methods.base import ForwardOutputs
from fada_deploy.training.methods.proda import PrototypeTeacher, PrototypeView
from fada_deploy.training.methods.self_training_base import SelfTrainingContext
from fada_deploy.training.models.segmentation import ModelSpec
from fada_deploy.training.optim import AveragedWeights, make_optimizer
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.stage_config import DistillStage, SelfTrainingStage
from fada_deploy.training.stages.distill import distillation_step, soft_label_divergence

K, C, B, HW = 4, 5, 2, (6, 7)
FILE = Path(__file__).parents[2] / "configs" / "selftrain" / "proda.toml"


class Pixels(nn.Module):
    """Features and logits that are linear in the colors of each pixel, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        space = LabelSpace("four", CITYSCAPES_19.classes[:K])
        self.spec = ModelSpec("segformer-b0", space, (64, 64))
        self.channels = C
        self.feature_extractor = nn.Conv2d(3, C, 1).double()
        self.classifier = nn.Conv2d(C, K, 1, bias=False).double()

    def features(self, frames: Tensor) -> Tensor:
        features: Tensor = self.feature_extractor((frames.double().permute(0, 3, 1, 2) - 128) / 32)
        return features

    def forward(self, frames: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(frames))
        return logits


def distances(features: Array, prototypes: Array) -> Array:
    return np.sqrt(((features[:, None] - prototypes[None, :, :, None, None]) ** 2).sum(2))


def numpy_loss(logits: Array, features: Array, view: dict[str, Array]) -> float:
    """Return 0.1 CE + RCE + 10 KL + 0.1 · mean(−log p), as in the paper and the authors' code."""
    p = softmax(logits)
    labels = view["labels"]
    labeled = labels != 255
    y = np.full(p.shape, 1e-4)
    np.put_along_axis(y, np.where(labeled, labels, 0)[:, None], 1.0, 1)
    ce = -(np.where(y == 1, np.log(p), 0).sum(1) * labeled).sum() / labeled.sum()
    rce = -((p * np.log(y)).sum(1) * labeled).sum() / labeled.sum()
    d = distances(features, view["prototypes"])
    d[:, ~view["exists"].astype(bool)] = np.inf
    student = softmax(-d)
    teacher = view["assignments"]
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(teacher > 0, teacher * (np.log(teacher) - np.log(student)), 0)
    return float(0.1 * ce + rce + 10 * terms.mean() + 0.1 * -np.log(p).mean())


@pytest.mark.parametrize("missing", [False, True])
def test_losses_and_gradients_are_those_of_the_paper(missing: bool) -> None:
    """The loss, and its derivative along random directions in the logits and in the features."""
    rng = np.random.default_rng(0)
    logits, features = rng.normal(size=(B, K, *HW)), rng.normal(size=(B, C, *HW))
    labels = rng.integers(0, K, (B, *HW))
    labels[0, :2] = 255
    exists = np.array([True, True, True, not missing])
    assignments = rng.random((B, K, *HW)) * exists[:, None, None]
    assignments /= assignments.sum(1, keepdims=True)
    arrays = {
        "labels": labels, "prototypes": rng.normal(size=(K, C)), "exists": exists,
        "assignments": assignments,
    }  # fmt: skip
    frames = torch.zeros(B, 12, 14, 3, dtype=torch.uint8)
    view = PrototypeView(
        Batch(frames, torch.from_numpy(labels), (0, 1)), *map(
            torch.from_numpy, (assignments, arrays["prototypes"], exists)
        ),
    )  # fmt: skip
    z, f = (torch.from_numpy(x).requires_grad_() for x in (logits, features))
    num_labeled = torch.tensor((labels != 255).sum())
    loss, terms = view.loss(ForwardOutputs(view.batch, f, z), num_labeled, 1)
    loss.backward()
    assert set(terms) == {"target", "reverse", "structure", "regularizer"}
    assert loss.item() == pytest.approx(numpy_loss(logits, features, arrays), rel=1e-9)
    for _ in range(5):
        dz, df = rng.normal(size=logits.shape), rng.normal(size=features.shape)
        e = 1e-5
        above = numpy_loss(logits + e * dz, features + e * df, arrays)
        below = numpy_loss(logits - e * dz, features - e * df, arrays)
        got = (z.grad.numpy() * dz).sum() + (f.grad.numpy() * df).sum()
        assert got == pytest.approx((above - below) / (2 * e), rel=1e-5)
    # The parts of a batch have the loss of the batch.
    parts = [
        part.loss(ForwardOutputs(part.batch, f[i : i + 1], z[i : i + 1]), num_labeled, 2)[0]
        for i, part in enumerate(view.split(2))
    ]
    torch.testing.assert_close(sum(parts), loss)


def frames(seed: int, count: int = B) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *HW, 3), generator=generator).byte()


def target_batch(seed: int, ego: Tensor | None = None) -> Batch:
    labels = torch.full((B, *HW), 255)
    return Batch(frames(seed), labels, tuple(range(B)), ego=ego)


def test_labels_are_rectified_by_prototypes_which_follow_the_teacher() -> None:
    model = Pixels()
    whole = [target_batch(seed) for seed in (1, 2, 3)]
    average = AveragedWeights(model, 0.5)
    context = SelfTrainingContext(
        model,  # type: ignore[arg-type]
        average,
        SelfTrainingStage(prototypes=True), get_augmentation("none"), False,
        count_target=lambda model: torch.zeros(()), whole_target=lambda: iter(whole),
    )  # fmt: skip
    method = PrototypeTeacher(context)

    def outputs(network: Any, batch: Batch) -> tuple[Array, Array]:
        with torch.no_grad():
            features = network.features(batch.frames_bhwc)
            return features.numpy(), network.classifier(features).numpy()

    # The prototypes are the mean features of the classes that the first network predicts.
    by_class: list[list[Array]] = [[] for _ in range(K)]
    for batch in whole:
        features, logits = outputs(model, batch)
        for k in range(K):
            by_class[k] += list(features.transpose(0, 2, 3, 1)[logits.argmax(1) == k])
    method.start_iteration(0)
    exists = np.array([bool(each) for each in by_class])
    eta = np.stack([np.mean(each, 0) if each else np.zeros(C) for each in by_class])
    np.testing.assert_allclose(method.prototypes.values, eta, rtol=1e-9)
    np.testing.assert_array_equal(method.prototypes.exists, exists)

    # Another teacher, while the soft labels stay those of the first network.
    ego = torch.zeros(HW, dtype=torch.bool)
    ego[-1] = True
    tgt, first = target_batch(9, ego), outputs(model, target_batch(9))[1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    average.update(100)
    method.start_iteration(1)
    features, logits = outputs(method.teacher, tgt)
    assert np.abs(logits - first).max() > 0.1
    source = target_batch(4)
    got = method.views(source, tgt, np.random.default_rng(0))
    d = distances(features, eta)
    d[:, ~exists] = np.inf
    weights = softmax(-d)
    labels = (weights * softmax(first)).argmax(1)
    assert (labels != first.argmax(1)).any(), "the prototypes change no label"
    labels[:, -1] = 255
    np.testing.assert_array_equal(got.labels, labels)
    (view,) = got.views
    assert isinstance(view, PrototypeView) and got.src is source
    np.testing.assert_allclose(view.assignments, weights, rtol=1e-9)
    np.testing.assert_allclose(view.prototypes, eta, rtol=1e-9)

    # One step of the prototypes, except those of classes with fewer than ten pixels.
    predicted = logits.argmax(1)
    predicted[:, -1] = 255
    for k in range(K):
        of_class = features.transpose(0, 2, 3, 1)[predicted == k]
        if len(of_class) >= 10:
            eta[k] += 1e-4 * (of_class.mean(0) - eta[k]) if exists[k] else of_class.mean(0)
    np.testing.assert_allclose(method.prototypes.values, eta, rtol=1e-9)


def test_one_distillation_step_is_the_sum_of_three_losses() -> None:
    """Cross entropy of pseudo-labels and of the source, and KL from the teacher, in NumPy."""
    student, teacher = Pixels(), Pixels()
    with torch.no_grad():
        teacher.classifier.weight += 0.5
    rng = np.random.default_rng(1)
    labels = {name: rng.integers(0, K, (count, *HW)) for name, count in (("tgt", 2), ("src", 2))}
    labels["tgt"][0, :3] = 255
    stage = DistillStage(
        iterations=1, max_iterations=1, lr=0.1, momentum=0.0, weight_decay=0.0,
        classifier_lr_factor=1.0, source_weight=0.7, soft_weight=0.4, norm="frozen",
    )  # fmt: skip
    tgt, src = (
        Batch(frames(seed), torch.from_numpy(labels[name]), (0, 1))
        for seed, name in ((5, "tgt"), (6, "src"))
    )

    def logits(network: Pixels, batch: Batch) -> Array:
        return np.asarray(network(batch.frames_bhwc).detach().numpy())

    def cross_entropy(z: Array, y: Array) -> float:
        log_p = np.log(softmax(z))
        picked = np.take_along_axis(log_p, np.where(y == 255, 0, y)[:, None], 1)[:, 0]
        return float(-picked[y != 255].mean())

    zt, zs, q = logits(student, tgt), logits(student, src), softmax(logits(teacher, tgt))

    def total() -> float:
        z, s = logits(student, tgt), logits(student, src)
        soft = (q * (np.log(q) - np.log(softmax(z)))).sum(1).mean()
        return cross_entropy(z, labels["tgt"]) + 0.7 * cross_entropy(s, labels["src"]) + 0.4 * soft

    loss_before = total()
    weight = student.classifier.weight
    gradient = np.zeros(tuple(weight.shape))
    for index in np.ndindex(K, C):
        with torch.no_grad():
            values = []
            for e in (1e-5, -1e-5):
                weight[index] += e
                values.append(total())
                weight[index] -= e
        gradient[index] = (values[0] - values[1]) / 2e-5
    before = weight.detach().numpy().copy()
    optimizer = make_optimizer(student, stage)  # type: ignore[arg-type]
    losses = distillation_step(
        student, teacher, optimizer, tgt, src, stage, amp=False  # type: ignore[arg-type]
    )  # fmt: skip
    assert losses["segmentation"].item() == pytest.approx(cross_entropy(zt, labels["tgt"]))
    assert losses["source"].item() == pytest.approx(cross_entropy(zs, labels["src"]))
    combined = losses["segmentation"] + 0.7 * losses["source"] + 0.4 * losses["soft"]
    assert combined.item() == pytest.approx(loss_before, rel=1e-9)
    step = before - weight.detach().numpy()
    np.testing.assert_allclose(step, 0.1 * gradient, rtol=1e-5, atol=1e-9)


SMALL = [
    "src_size=96x64", "size=96x64", "backbone=tiny", "init=none", "norm=batch", "amp=off",
    "label_space=cityscapes-13", "published=none", "distill.size=96x64", "distill.crop=96x64",
    *(f"{stage}.iterations=2" for stage in ("source", "adversarial", "distill")),
    *(f"{stage}.batch=2" for stage in ("source", "adversarial", "selftrain", "distill")),
    "selftrain.iterations=4", "selftrain.lr=1e-3",
]  # fmt: skip


def test_all_stages_of_the_settings_files(blocks: Path, tmp_path: Path) -> None:
    """Warm-up, self-training that is interrupted and continued, and two distillation stages."""
    options: dict[str, Any] = {
        "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"),
    }  # fmt: skip
    device = torch.device("cpu")
    config = make_config(recipe=None, file=FILE, settings=SMALL, options=options)
    whole = train(config, tmp_path / "whole", device=device)
    assert set(whole.scores) == {"source", "adversarial", "selftrain", "distill"}

    with interrupted_after(3, "selftrain"), pytest.raises(InterruptedRunError):
        train(config, tmp_path / "resumed", device=device)
    train(load_config(tmp_path / "resumed"), tmp_path / "resumed", device=device)
    want, got = (
        load_file(tmp_path / name / "selftrain" / "weights.safetensors")
        for name in ("whole", "resumed")
    )
    assert all(torch.equal(want[name], got[name]) for name in want)

    file = FILE.with_name("proda-distill.toml")
    options["start"] = str(tmp_path / "whole")
    config = make_config(recipe=None, file=file, settings=SMALL, options=options)
    assert set(train(config, tmp_path / "third", device=device).scores) == {"distill"}
    # An untrained network is nowhere sure enough for the published threshold.
    pseudo = read_indices(tmp_path / "third" / "distill" / "pseudo" / "000000.png")
    assert (pseudo == 255).any()


@pytest.mark.parametrize("other", ["rounds=2", "source_free=true", "weighting=confident_share"])
def test_prototypes_exclude_other_teachers(other: str) -> None:
    settings = ["selftrain.prototypes=true", f"selftrain.{other}"]
    with pytest.raises(UsageError, match=r"selftrain\.prototypes"):
        make_config(
            recipe=None, file=None, settings=settings, options={"src": "gta5", "tgt": "cityscapes"}
        )


def test_the_settings_files_have_the_published_values() -> None:
    config: RunConfig = make_config(recipe=None, file=FILE, settings=[], options={})
    third = make_config(
        recipe=None, file=FILE.with_name("proda-distill.toml"), settings=[], options={}
    )
    assert (config.published, third.published) == (56.9, 57.5)
    assert config.distill == third.distill and config.selftrain.prototypes
    stage = SimpleNamespace(threshold=0.95, source_weight=1.0, soft_weight=1.0)
    assert all(getattr(config.distill, name) == value for name, value in vars(stage).items())
    assert config.selftrain.ema == 0.999


def test_a_teacher_may_have_outputs_of_another_size() -> None:
    """The teacher's logits are interpolated to the size of the student's."""
    rng = np.random.default_rng(5)
    student, teacher = (
        torch.from_numpy(rng.normal(size=(2, K, *hw))) for hw in ((8, 10), (15, 19))
    )
    # With align_corners every second pixel of 15×19 is one of 8×10.
    smaller = teacher[..., ::2, ::2].numpy()
    p, q = (softmax(z) for z in (student.numpy(), smaller))
    want = (q * (np.log(q) - np.log(p))).sum(1).mean()
    assert soft_label_divergence(student, teacher).item() == pytest.approx(want, rel=1e-9)
