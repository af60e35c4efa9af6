"""One update of each method beside FADA against its equations in NumPy, in float64.

The losses of segmentation network and discriminator are written out in NumPy, as functions of all
weights. Gradients are compared with central differences of these losses in random directions.
Source and target differ in size, and the network's outputs are smaller than the frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy_networks import Array, conv, discriminate, softmax, upsampled
from torch import Tensor, nn

from fada_deploy.common.label_space import CITYSCAPES_19, LabelSpace
from fada_deploy.training.data.loader import Batch
from fada_deploy.training.losses import count_labeled
from fada_deploy.training.methods import adaptpatch, cda, siban
from fada_deploy.training.methods.aligner import Aligner
from fada_deploy.training.methods.alignment import METHODS, make_method
from fada_deploy.training.methods.base import AlignmentMethod, MethodContext
from fada_deploy.training.models import segmentation
from fada_deploy.training.models.deeplab import PointClassifier
from fada_deploy.training.models.segmentation import ModelSpec
from fada_deploy.training.stage_config import AdversarialStage

K, C, A, B, WEIGHT = 3, 4, 5, 2, 0.3
HW = {"src": (32, 40), "tgt": (40, 32)}
LOW = {"src": (8, 10), "tgt": (10, 8)}
DOMAINS = ("src", "tgt")
ITERATION = 7
Weights = dict[str, Array]
Reading = Callable[[Weights, "Case"], float]


class Backbone(nn.Module):
    """Features and intermediate features as parameters, so that their gradients can be read."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.layer = nn.Identity()
        for domain, (height, width) in LOW.items():
            features = torch.from_numpy(rng.normal(size=(B, C, height, width)))
            auxiliary = torch.from_numpy(rng.normal(size=(B, A, height, width)))
            self.register_parameter(domain, nn.Parameter(features))
            self.register_parameter(f"{domain}_auxiliary", nn.Parameter(auxiliary))

    def forward(self, domain: str) -> Tensor:
        self.layer(self.get_parameter(f"{domain}_auxiliary"))
        return self.get_parameter(domain)


class TableNetwork(nn.Module):
    """F returns the features of the domain that the first value of the frames names."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        space = LabelSpace("three", CITYSCAPES_19.classes[:K])
        # Its classifier is a single 1×1 convolution.
        self.spec = ModelSpec("segformer-b0", space, (64, 64))
        self.channels = C
        self.feature_extractor = nn.ModuleDict({"backbone": Backbone(rng)})
        self.classifier = PointClassifier(C, K, nn.BatchNorm2d)

    def features(self, frames: Tensor) -> Tensor:
        features: Tensor = self.feature_extractor["backbone"](DOMAINS[int(frames[0, 0, 0, 0])])
        return features


class Case:
    """A network, a method and one batch of each domain, with the losses of one update."""

    def __init__(self, name: str, progress: float, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(3)
        torch.manual_seed(2)
        architecture = segmentation.BACKBONES["segformer-b0"]
        monkeypatch.setitem(
            segmentation.BACKBONES, "segformer-b0", replace(architecture, auxiliary="layer")
        )
        self.model = TableNetwork(rng).double()
        self.batches = {d: self._batch(rng, d) for d in DOMAINS}
        self.class_pixels = rng.integers(0, 50, (30, K))
        self.stage = AdversarialStage(adversarial_weight=WEIGHT)
        context = MethodContext(
            self.model,  # type: ignore[arg-type]
            self.stage,
            lambda: self.class_pixels,
            lambda: iter([self.batches["src"]]),
        )
        self.method: AlignmentMethod = make_method(name, context)
        self.networks = {
            "model": self.model,
            "heads": self.method.heads.double(),
            "d": self.method.discriminator.double(),
        }
        if name == "siban":
            self.beta = 0.4
            self.networks["heads"].beta.fill_(self.beta)
            nn.init.normal_(self.networks["heads"].log_variance.weight, std=0.3)
        if name == "cycada":
            # The discriminator was right in the iteration before.
            self.networks["heads"].accuracy.fill_(0.7)
        src = self.batches["src"]
        self.aligner = Aligner.create(self.method, self.stage)
        self.aligner.progress = progress
        if name == "siban":
            self.networks["heads"].iteration.fill_(ITERATION)
        self.losses = self.update(ITERATION)
        self.labels = src.labels.numpy()

    def update(self, iteration: int) -> dict[str, Tensor]:
        """Accumulate the gradients of one update."""
        self.aligner.iteration = iteration
        src = self.batches["src"]
        return self.aligner.accumulate_gradients(
            self.model,  # type: ignore[arg-type]
            src,
            self.batches["tgt"],
            amp=False,
            num_labeled=count_labeled(src.labels),
            num_parts=1,
        )

    def _batch(self, rng: np.random.Generator, domain: str) -> Batch:
        frames = np.full((B, *HW[domain], 3), DOMAINS.index(domain), np.uint8)
        # Areas instead of noise, so that patches differ.
        labels = rng.integers(0, K, (B, HW[domain][0] // 4, HW[domain][1] // 4))
        labels = labels.repeat(4, 1).repeat(4, 2)
        labels[:, :5] = 255
        return Batch(torch.from_numpy(frames), torch.from_numpy(labels), tuple(range(B)))

    def weights(self) -> Weights:
        return {
            f"{key}.{name}": value.detach().numpy().copy()
            for key, network in self.networks.items()
            for name, value in network.named_parameters()
        }

    def gradients(self) -> Weights:
        return {
            f"{key}.{name}": np.zeros(value.shape) if value.grad is None else value.grad.numpy()
            for key, network in self.networks.items()
            for name, value in network.named_parameters()
        }


# --- readings of the equations


def features(w: Weights, domain: str) -> Array:
    return w[f"model.feature_extractor.backbone.{domain}"]


def point(w: Weights, name: str, x: Array) -> Array:
    """Return a 1×1 convolution."""
    y, _ = conv(x, w[f"{name}.weight"], w[f"{name}.bias"], 1, 0)
    return y


def logits(w: Weights, domain: str) -> Array:
    return point(w, "model.classifier.linear_pred", features(w, domain))


def probabilities(z: Array, domain: str) -> Array:
    return softmax(upsampled(z, HW[domain])[0])


def cross_entropy(z: Array, labels: Array) -> float:
    p = probabilities(z, "src")
    truth = np.take_along_axis(p, np.minimum(labels, K - 1)[:, None], 1)[:, 0]
    return float(-np.log(truth[labels != 255]).mean())


def information(p: Array) -> Array:
    return -p * np.log(p) / np.log(K)


def output_discriminator(w: Weights, prefix: str, x: Array) -> Array:
    """Return the logit of "target" of five 4×4 convolutions of stride 2, (B, h, w)."""
    layers = [(w[f"{prefix}D.{i}.weight"], w[f"{prefix}D.{i}.bias"], 2) for i in (0, 2, 4, 6, 8)]
    return discriminate(layers, 1, x)[0][:, 0]


def pixel_discriminator(w: Weights, x: Array) -> Array:
    """Return the logit of "target" minus that of "source" of FADA's discriminator with K = 1."""
    names = ("D.0", "D.2", "cls1", "cls2")
    layers = [(w[f"d.{n}.weight"], w[f"d.{n}.bias"], 1) for n in names]
    z = discriminate(layers, 2, x)[0]
    return z[:, 1] - z[:, 0]


def bce(z: Array, *, target: bool) -> Array:
    """Return the binary cross entropy of each pixel."""
    return np.logaddexp(0, -z if target else z)


def multi_level(maps: Callable[[Array], Array]) -> tuple[Reading, Reading]:
    def outputs(w: Weights, domain: str) -> tuple[Array, Array]:
        hidden = w[f"model.feature_extractor.backbone.{domain}_auxiliary"]
        return logits(w, domain), point(w, "heads.linear_pred", hidden)

    def network(w: Weights, case: Case) -> float:
        main, auxiliary = outputs(w, "src")
        loss = cross_entropy(main, case.labels) + 0.1 * cross_entropy(auxiliary, case.labels)
        for level, (z, weight) in enumerate(zip(outputs(w, "tgt"), (1, 0.2), strict=True)):
            d = output_discriminator(w, f"d.{level}.", maps(probabilities(z, "tgt")))
            loss += WEIGHT * weight * bce(d, target=False).mean()
        return float(loss)

    def discriminator(w: Weights, case: Case) -> float:
        return sum(
            0.5 * float(bce(
                output_discriminator(w, f"d.{level}.", maps(probabilities(z, domain))),
                target=domain == "tgt",
            ).mean())
            for domain in DOMAINS
            for level, z in enumerate(outputs(w, domain))
        )  # fmt: skip

    return network, discriminator


def minent(w: Weights, case: Case) -> float:
    p = probabilities(logits(w, "tgt"), "tgt")
    return cross_entropy(logits(w, "src"), case.labels) + WEIGHT * float(
        information(p).sum(1).mean()
    )


def clan(preheat: bool) -> tuple[Reading, Reading]:
    def second(w: Weights, domain: str) -> Array:
        return point(w, "heads.linear_pred", features(w, domain))

    def weight_map(w: Weights) -> Array:
        p, q = (probabilities(z, "tgt") for z in (logits(w, "tgt"), second(w, "tgt")))
        cosine = (p * q).sum(1) / np.sqrt((p**2).sum(1) * (q**2).sum(1))
        return np.ones_like(cosine) if preheat else 0.4 + 40 * (1 - cosine)

    def d_map(w: Weights, domain: str) -> Array:
        p = probabilities(logits(w, domain) + second(w, domain), domain)
        return upsampled(output_discriminator(w, "d.", p)[:, None], HW[domain])[0][:, 0]

    def network(w: Weights, case: Case) -> float:
        one, two = w["model.classifier.linear_pred.weight"], w["heads.linear_pred.weight"]
        cosine = (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum())
        loss = cross_entropy(logits(w, "src"), case.labels)
        loss += cross_entropy(second(w, "src"), case.labels) + 0.01 * float(cosine + 1)
        adversarial = (weight_map(w) * bce(d_map(w, "tgt"), target=False)).mean()
        return loss + WEIGHT * float(adversarial)

    def discriminator(w: Weights, case: Case) -> float:
        src = bce(d_map(w, "src"), target=False).mean()
        tgt = (weight_map(w) * bce(d_map(w, "tgt"), target=True)).mean()
        return 0.5 * float(src + tgt)

    return network, discriminator


def feature_discriminator(w: Weights, case: Case) -> float:
    return 0.5 * sum(
        float(bce(pixel_discriminator(w, features(w, domain)), target=domain == "tgt").mean())
        for domain in DOMAINS
    )


def fcn_wild(w: Weights, case: Case) -> float:
    loss = cross_entropy(logits(w, "src"), case.labels)
    for domain in DOMAINS:
        d = pixel_discriminator(w, features(w, domain))
        both = 0.5 * (bce(d, target=False) + bce(d, target=True))
        loss += 0.5 * WEIGHT * float(both.mean())
    fractions = case.class_pixels / case.class_pixels.sum(1, keepdims=True)
    p = softmax(logits(w, "tgt"))
    for image in p:
        winners = image.argmax(0)
        for k in range(K):
            shown = np.sort(fractions[:, k][fractions[:, k] > 0])
            low, high = np.quantile(shown, 0.1), np.quantile(shown, 0.9)
            if (winners == k).mean() > 0.1 * low:
                size = image[k].mean()
                too_small, too_large = max(shown.mean() - size, 0), max(size - high, 0)
                loss += float(too_small**2 + too_large**2) / len(p)
    return loss


def bottleneck(w: Weights, case: Case) -> tuple[dict[str, Array], dict[str, float]]:
    """Return z and the weighted divergence of each domain."""
    generator = torch.Generator()
    entropy = np.random.SeedSequence([ITERATION, *range(B)])
    generator.manual_seed(int(entropy.generate_state(1)[0]))
    sums = np.abs(w["model.classifier.linear_pred.weight"]).sum((0, 2, 3))
    # The significance is a constant in the gradient, so it is that of the initial weights.
    sums = case.significance = getattr(case, "significance", sums)
    channel_weights = (1 - sums / sums.max())[:, None, None]
    z, divergence = {}, {}
    for domain in DOMAINS:
        f = features(w, domain)
        noise = torch.empty(f.shape, dtype=torch.float64).normal_(generator=generator).numpy()
        variance = np.exp(np.clip(point(w, "heads.log_variance", f), -12, 6))
        z[domain] = f + np.sqrt(variance) * noise
        kl = 0.5 * (f**2 + variance - 1 - np.log(variance))
        divergence[domain] = float((kl * channel_weights).mean())
    return z, divergence


def siban_network(w: Weights, case: Case) -> float:
    z, divergence = bottleneck(w, case)
    loss = cross_entropy(point(w, "model.classifier.linear_pred", z["src"]), case.labels)
    loss += WEIGHT * float(bce(pixel_discriminator(w, z["tgt"]), target=False).mean())
    return loss + 0.5 * case.beta * sum(value - siban.BOUND for value in divergence.values())


def siban_discriminator(w: Weights, case: Case) -> float:
    z, _ = bottleneck(w, case)
    return 0.5 * sum(
        float(bce(pixel_discriminator(w, z[d]), target=d == "tgt").mean()) for d in DOMAINS
    )


def adaptive_mean(x: Array, out: int) -> Array:
    """Return means over out×out areas of (B, C, H, W), whose borders may overlap."""
    h, w = x.shape[2:]
    y = np.zeros((*x.shape[:2], out, out))
    for i, j in np.ndindex(out, out):
        rows = slice(i * h // out, -(-(i + 1) * h // out))
        columns = slice(j * w // out, -(-(j + 1) * w // out))
        y[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
    return y


def clusters(w: Weights, domain: str) -> Array:
    """Return the probabilities of clusters of each patch, (B, N, 16, 16)."""
    z = logits(w, domain)
    hidden, _ = conv(z, w["heads.layers.0.weight"], w["heads.layers.0.bias"], 1, 1)
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    return softmax(point(w, "heads.layers.3", adaptive_mean(hidden, 16)))


def patch_discriminator(w: Weights, x: Array) -> Array:
    for i in (0, 2):
        x = point(w, f"d.1.D.{i}", x)
        x = np.where(x > 0, x, 0.2 * x)
    return point(w, "d.1.D.4", x)[:, 0]


def patch_truth(case: Case) -> Array:
    """Return the nearest cluster of each source patch, −1 without a label."""
    centers = case.networks["heads"].centers.numpy()
    one_hot = np.stack([(case.labels == k).astype(float) for k in range(K)], 1)
    counts = adaptive_mean(one_hot, 32)
    sums = counts.sum(1, keepdims=True)
    fractions = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
    truth = np.full((B, 16, 16), -1)
    for b, i, j in np.ndindex(B, 16, 16):
        quarters = fractions[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        histogram = quarters.transpose(1, 2, 0).ravel()
        if histogram.any():
            truth[b, i, j] = ((centers - histogram) ** 2).sum(1).argmin()
    return truth


def adaptpatch_network(w: Weights, case: Case) -> float:
    truth = patch_truth(case)
    p = clusters(w, "src")
    chosen = np.take_along_axis(p, np.maximum(truth, 0)[:, None], 1)[:, 0][truth >= 0]
    loss = cross_entropy(logits(w, "src"), case.labels) - 0.01 * float(np.log(chosen).mean())
    output = output_discriminator(w, "d.0.", probabilities(logits(w, "tgt"), "tgt"))
    patch = patch_discriminator(w, clusters(w, "tgt"))
    return loss + 0.5 * WEIGHT * float(
        bce(output, target=False).mean() + bce(patch, target=False).mean()
    )


def adaptpatch_discriminator(w: Weights, case: Case) -> float:
    loss = 0.0
    for domain in DOMAINS:
        output = output_discriminator(w, "d.0.", probabilities(logits(w, domain), domain))
        patch = patch_discriminator(w, clusters(w, domain))
        for z in (output, patch):
            loss += 0.5 * float(bce(z, target=domain == "tgt").mean())
    return loss


def slic_by_hand(height: int, width: int, rows: int, columns: int) -> Array:
    """Return the superpixels of a frame of one color, whose clusters differ in position only."""
    y, x = np.mgrid[:height, :width]
    labels = (y * rows // height) * columns + x * columns // width
    for _ in range(5):
        centers = [(y[labels == i].mean(), x[labels == i].mean()) for i in range(rows * columns)]
        labels = np.argmin([(y - cy) ** 2 + (x - cx) ** 2 for cy, cx in centers], 0)
    return labels


def cda_network(w: Weights, case: Case) -> float:
    loss = cross_entropy(logits(w, "src"), case.labels)
    properties = case.networks["heads"]
    initial = {f"model.{n}": p.numpy() for n, p in case.method.initial.named_parameters()}  # type: ignore[attr-defined]
    f, p = features(initial, "tgt"), softmax(logits(w, "tgt"))
    x = (f.mean((2, 3)) - properties.mean.numpy()) * properties.scale.numpy()
    expected = softmax(x @ properties.weight.numpy().T + properties.bias.numpy())
    counts = ((p / p.max(1, keepdims=True)) ** 5).mean((2, 3))
    counts /= counts.sum(1, keepdims=True)
    loss -= 0.1 * float((expected * np.log(counts)).sum(1).mean())
    # 80 pixels of at least 16 in a superpixel: two rows of two.
    superpixels = slic_by_hand(*LOW["tgt"], 2, 2)
    first = softmax(logits(initial, "tgt"))
    terms = []
    for image, before in zip(p, first, strict=True):
        means = [before[:, superpixels == i].mean(1) for i in range(4)]
        # 60 % of four are two.
        for i in sorted(range(4), key=lambda i: -means[i].max())[:2]:
            terms.append(-np.log(image[means[i].argmax(), superpixels == i]).mean())
    return loss + float(np.mean(terms))


def cycada(w: Weights, case: Case) -> float:
    d = pixel_discriminator(w, features(w, "tgt"))
    return cross_entropy(logits(w, "src"), case.labels) + WEIGHT * float(
        bce(d, target=False).mean()
    )


# Name, progress → the losses of F, G and the heads, and of D.
READINGS: dict[tuple[str, float], tuple[Reading, Reading | None]] = {
    ("adaptsegnet-multi", 0.5): multi_level(lambda p: p),
    ("advent-multi", 0.5): multi_level(information),
    ("minent", 0.5): (minent, None),
    ("clan", 0.5): clan(preheat=False),
    ("clan", 0.01): clan(preheat=True),
    ("fcn-wild", 0.5): (fcn_wild, feature_discriminator),
    ("siban", 0.5): (siban_network, siban_discriminator),
    ("adaptpatch", 0.5): (adaptpatch_network, adaptpatch_discriminator),
    ("cda", 0.5): (cda_network, None),
    ("cycada", 0.5): (cycada, feature_discriminator),
}


def unit(direction: Weights, names: list[str]) -> Weights:
    """Return a direction in the space of some weights with length 1."""
    length = np.sqrt(sum((direction[n] ** 2).sum() for n in names))
    return {n: direction[n] / length for n in names}


@pytest.mark.parametrize(("name", "progress"), READINGS)
def test_update_equals_the_equations(
    name: str, progress: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(name, progress, monkeypatch)
    network, discriminator = READINGS[name, progress]
    weights, gradients = case.weights(), case.gradients()
    rng = np.random.default_rng(0)
    for reading, is_discriminator in ((network, False), (discriminator, True)):
        if reading is None:
            continue
        names = [n for n in weights if n.startswith("d.") == is_discriminator]
        loss = reading(weights, case)
        for _ in range(4):
            # Half along the gradient and half at random, of length 1: the slope is not lost in
            # rounding, and few of the kinks of the leaky ReLUs are crossed.
            directions = {n: rng.normal(size=weights[n].shape) for n in names}
            directions = unit(directions, names)
            along = unit(gradients, names)
            directions = {n: along[n] + directions[n] for n in names}
            step = 1e-6
            ends = [
                reading(weights | {n: weights[n] + s * directions[n] for n in names}, case)
                for s in (step, -step)
            ]
            slope = (ends[0] - ends[1]) / (2 * step)
            got = sum(float((gradients[n] * directions[n]).sum()) for n in names)
            assert got == pytest.approx(slope, rel=1e-5, abs=1e-7 * abs(loss))
    # The reported losses, weighted as published, add up to those of the equations.
    reported = {n: v.item() for n, v in case.losses.items()}
    if discriminator is not None:
        parts = [v for n, v in reported.items() if n.endswith(("_source", "_target"))]
        assert sum(parts) == pytest.approx(discriminator(weights, case), rel=1e-6)
    if name == "cycada":
        # The accuracy of this iteration decides whether F is trained in the next one.
        d = {domain: pixel_discriminator(weights, features(weights, domain)) for domain in DOMAINS}
        accuracy = 0.5 * ((d["src"] < 0).mean() + (d["tgt"] > 0).mean())
        assert accuracy < 0.6
        for value in case.networks["model"].parameters():
            value.grad = None
        case.update(ITERATION + 1)
        assert not case.gradients()["model.feature_extractor.backbone.tgt"].any()
    if name == "siban":
        _, divergence = bottleneck(weights, case)
        mean = sum(divergence.values()) / 2
        assert case.networks["heads"].beta.item() == pytest.approx(case.beta, rel=1e-6)
        # The next iteration begins with the dual ascent, in its first part only.
        for _ in range(2):
            case.update(ITERATION + 1)
            beta = case.beta + siban.DUAL_STEP * (mean - siban.BOUND)
            assert case.networks["heads"].beta.item() == pytest.approx(beta, rel=1e-6)


def test_every_method_is_compared_with_its_equations() -> None:
    # The other file compares these, whose gradients are written by hand.
    fada_family = {"fada", "fada-hard", "feature", "adaptsegnet", "advent"}
    assert fada_family | {name for name, _ in READINGS} == METHODS.keys()


def test_class_fractions_are_those_of_a_logistic_regression(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the minimum of the penalized cross entropy, its gradient in NumPy is zero."""
    case = Case("cda", 0.5, monkeypatch)
    properties = case.networks["heads"]
    rng = np.random.default_rng(4)
    x, y = rng.normal(2, 3, (40, C)), rng.dirichlet(np.ones(K), 40)
    properties.fit(torch.from_numpy(x), torch.from_numpy(y))
    normalized = (x - x.mean(0)) / x.std(0)
    weight = properties.weight.numpy()
    error = softmax(normalized @ weight.T + properties.bias.numpy()) - y
    np.testing.assert_allclose(error.T @ normalized / 40 + 2 * cda.RIDGE * weight, 0, atol=1e-6)
    np.testing.assert_allclose(error.mean(0), 0, atol=1e-6)
    assert np.abs(weight).max() > 0.01
    # What the regression learns from: class fractions of the labeled pixels, and mean features.
    pooled, fractions = cda.source_fractions(
        case.method.initial,
        [  # type: ignore[attr-defined]
            case.batches["src"]
        ],
        K,
    )
    labels = case.labels
    counts = np.stack([[(each == k).sum() for k in range(K)] for each in labels])
    np.testing.assert_allclose(fractions, counts / (labels != 255).sum((1, 2))[:, None])
    np.testing.assert_allclose(pooled, features(case.weights(), "src").mean((2, 3)))


def test_superpixels_follow_colors_and_leave_out_the_own_car() -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[:, 31:] = 255
    superpixels = cda.slic(frame)
    assert not set(superpixels[:, :31].ravel()) & set(superpixels[:, 31:].ravel())
    assert 60 < len(np.unique(superpixels)) <= 150
    probabilities = torch.full((1, 2, 40, 60), 0.5)
    # Confident on the left, except on the car itself.
    probabilities[0, 1, :, :31], probabilities[0, 0, :, :31] = 0.9, 0.1
    ego = torch.zeros(1, 40, 60, dtype=torch.bool)
    ego[:, 30:] = True
    labels, areas = cda.superpixel_labels(torch.from_numpy(frame)[None], probabilities, ego)
    assert (labels[:, 30:] == 255).all() and (labels[:, :30, :31] == 1).all()
    assert int((areas > 0).sum()) == 30 * 60
    kept = labels != 255
    # All superpixels on the left, and as many on the right that 60 % of them are labeled.
    inverse = torch.where(areas > 0, 1 / areas.clamp(min=1), 0)
    assert (inverse * kept).sum() / inverse.sum() == pytest.approx(0.6, abs=0.01)


def test_clusters_are_those_of_the_histograms() -> None:
    """Frames of two halves of one class each have patches of two kinds, and some of both."""
    labels = torch.zeros(1, 128, 128, dtype=torch.int64)
    labels[:, :, 68:] = 2
    centers = adaptpatch.cluster_centers(adaptpatch.source_histograms([labels], K))
    kinds = {tuple(round(v, 3) for v in center.tolist()) for center in centers}
    left, right = (1, 0, 0) * 4, (0, 0, 1) * 4
    mixed = (1, 0, 0, 0, 0, 1) * 2
    assert kinds == {left, right, mixed}
    found = adaptpatch.nearest_cluster(labels, centers)
    assert found[0, 0, 0] != found[0, 0, -1] and (found[0, :, 0] == found[0, 0, 0]).all()
