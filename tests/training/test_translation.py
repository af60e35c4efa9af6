"""Translation of source frames: one update against NumPy, and a run of CyCADA from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from interruptions import interrupted_after
from safetensors.torch import load_file
from torch import Tensor, nn

from fada_deploy.common.errors import DataError, InterruptedRunError, ModelError, UsageError
from fada_deploy.data.base import FrameDataset
from fada_deploy.training import distributed
from fada_deploy.training.config import RunConfig
from fada_deploy.training.models.translation import (
    FrameDiscriminator,
    Generator,
    to_frames,
    to_network,
)
from fada_deploy.training.run import train
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import make_config
from fada_deploy.training.stage_config import TranslationStage
from fada_deploy.training.stages.translation import (
    History,
    SemanticConsistency,
    TranslationNetworks,
    translated_frames,
    translation_step,
    write_translations,
)
from fada_deploy.training.translate_sources import check_translation

CPU = torch.device("cpu")
Array = np.ndarray
STAGE = TranslationStage(lr=0.1, cycle_weight=10.0, identity_weight=0.5, width=4, blocks=1)


class Scale(nn.Module):
    """A generator or discriminator of one number in float64."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value


# A segmentation network of three classes: a matrix for each pixel, on frames of 0…255.
MATRIX = np.array([[0.01, 0.02, -0.02], [-0.03, 0.01, 0.01], [0.02, -0.01, 0.02]])
SEMANTIC_WEIGHT = 0.7


class PixelNetwork(nn.Module):
    """The segmentation network of `MATRIX`, for frames (B, H, W, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.from_numpy(MATRIX).float())

    def forward(self, frames: Tensor) -> Tensor:
        return (frames @ self.matrix.T).permute(0, 3, 1, 2)


def numpy_semantic(originals: Array, translated: Array) -> float:
    """Return the cross entropy of translated frames with the labels of the originals."""
    of_original, logits = (
        np.einsum("kc,bchw->bkhw", MATRIX, (x + 1) * 127.5) for x in (originals, translated)
    )
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = of_original.argmax(1)[:, None]
    return float(-np.take_along_axis(log_p, labels, 1).mean())


def numpy_losses(
    values: dict[str, float], src: Array, tgt: Array, *, semantic: bool
) -> tuple[float, float]:
    """Return the losses of generators and discriminators, as CycleGAN and CyCADA define them."""
    g, f = values["to_target"], values["to_source"]
    d_t, d_s = values["target_discriminator"], values["source_discriminator"]
    generators = ((d_t * g * src - 1) ** 2).mean() + ((d_s * f * tgt - 1) ** 2).mean()
    generators += 10 * (np.abs(f * g * src - src).mean() + np.abs(g * f * tgt - tgt).mean())
    generators += 5 * (np.abs(g * tgt - tgt).mean() + np.abs(f * src - src).mean())
    if semantic:
        both = numpy_semantic(src, g * src) + numpy_semantic(tgt, f * tgt)
        generators += SEMANTIC_WEIGHT * both
    fakes = values.get("old_g", g) * src, values.get("old_f", f) * tgt
    discriminators = 0.5 * (((d_t * tgt - 1) ** 2).mean() + ((d_t * fakes[0]) ** 2).mean())
    discriminators += 0.5 * (((d_s * src - 1) ** 2).mean() + ((d_s * fakes[1]) ** 2).mean())
    return float(generators), float(discriminators)


@pytest.mark.parametrize("semantic", [False, True])
def test_one_update_equals_the_equations(semantic: bool) -> None:
    """Losses, and the gradient of each network by central differences of the NumPy losses."""
    rng = np.random.default_rng(0)
    src, tgt = rng.normal(size=(2, 3, 5, 6)), rng.normal(size=(2, 3, 4, 7))
    values = {
        "to_target": 1.3, "to_source": 0.6, "target_discriminator": 0.4,
        "source_discriminator": -0.7,
    }  # fmt: skip
    networks = TranslationNetworks(STAGE)
    for name, value in values.items():
        setattr(networks, name, Scale(value))
    parts = (networks.generators, networks.discriminators)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
    read: list[Tensor] = []
    network: Any = PixelNetwork()
    consistency = SemanticConsistency(network, SEMANTIC_WEIGHT) if semantic else None

    def remember(i: int, frames: Tensor) -> Tensor:
        read.append(frames)
        return frames.double()

    losses = translation_step(
        networks, list(optimizers), torch.from_numpy(src), torch.from_numpy(tgt), STAGE, amp=False,
        remember=remember, semantic=consistency,
    )  # fmt: skip
    generators, discriminators = numpy_losses(values, src, tgt, semantic=semantic)
    got = losses["adversarial"] + 10 * (losses["cycle"] + 0.5 * losses["identity"])
    got = got + SEMANTIC_WEIGHT * losses.get("semantic", torch.zeros(()))
    assert ("semantic" in losses) == semantic
    assert network.matrix.grad is None, "the segmentation network is fixed"
    # The errors of frames are computed in single precision.
    assert got.item() == pytest.approx(generators, rel=1e-6)
    assert losses["discriminator"].item() == pytest.approx(discriminators, rel=1e-6)
    np.testing.assert_allclose(read[0], 1.3 * src, rtol=1e-6)
    for name, value in values.items():
        which = int(name.endswith("discriminator"))
        # D reads the translations that were made before the update of the generators.
        above, below = (
            numpy_losses(values | {name: value + e}, src, tgt, semantic=semantic)[which]
            for e in (1e-6, -1e-6)
        )
        slope = (above - below) / 2e-6
        step = value - getattr(networks, name).value.item()
        assert step == pytest.approx(0.1 * slope, rel=1e-5)


def test_networks_keep_the_size_and_judge_patches() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(4, 2), FrameDiscriminator(4)
    frames = torch.randint(0, 256, (2, 50, 71, 3), dtype=torch.uint8)
    images = to_network(frames)
    assert images.shape == (2, 3, 50, 71) and images.min() >= -1 and images.max() <= 1
    assert torch.equal(to_frames(images), frames)
    assert generator(images).shape == images.shape
    # A score depends on 70×70 pixels. The statistics of the frame are fixed for this measurement.
    for module in discriminator.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.forward = lambda x: x  # type: ignore[method-assign]
    x = torch.zeros(1, 3, 160, 160, requires_grad=True)
    scores = discriminator(x)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    assert x.grad is not None
    rows = x.grad[0].abs().sum((0, 2)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_history_returns_older_translations() -> None:
    history = History((2, 3))
    rng = np.random.default_rng(0)
    for i in range(50):
        new = torch.full((1, 3, 2, 3), float(i))
        assert torch.equal(history.exchange(new, rng), new)
    returned = [int(history.exchange(torch.full((1, 3, 2, 3), 100.0 + i), rng)[0, 0, 0, 0])
                for i in range(200)]  # fmt: skip
    new = [value == 100 + i for i, value in enumerate(returned)]
    assert 70 < sum(new) < 130
    older = [value for value, is_new in zip(returned, new, strict=True) if not is_new]
    assert len(set(older)) == len(older), "a translation is returned twice"


SMALL = [
    "backbone=tiny", "src_size=96x64", "size=96x64", "save_every=2", "amp=off",
    "source.iterations=2", "adversarial.iterations=3", "translation.iterations=5",
    "translation.max_iterations=5", "translation.crop=48x40", "translation.width=4",
    "translation.blocks=1",
]  # fmt: skip


def cycada_options(blocks: Path) -> dict[str, Any]:
    return {
        "src": str(blocks / "source.toml"), "tgt": str(blocks / "target.toml"),
        "stages": ("source", "adversarial"), "label_space": "cityscapes-13", "method": "cycada",
    }  # fmt: skip


def test_a_run_translates_its_source_first(blocks: Path, tmp_path: Path) -> None:
    """Interrupted in the translation and continued, it ends with the same weights."""
    config = make_config(
        recipe="small", file=None, settings=SMALL, options=cycada_options(blocks)
    )  # fmt: skip
    assert config.style == "cyclegan"
    whole = tmp_path / "whole"
    result = train(config, whole, device=CPU)
    assert set(result.scores) == {"source", "adversarial"} and not result.bad_files
    folder = whole / "translation"
    frames = sorted((folder / "frames").glob("*.jpg"))
    assert frames and all(cv2.imread(str(f)).shape == (64, 96, 3) for f in frames)
    assert cv2.imread(str(folder / "examples.jpg")).shape[0] == 2 * 64
    assert not (folder / "state.pt").exists()

    stopped = tmp_path / "stopped"
    message = "after 3 iterations of translation"
    with interrupted_after(3, "translation"), pytest.raises(InterruptedRunError, match=message):
        train(config, stopped, device=CPU)
    train(load_config(stopped), stopped, device=CPU)
    for name in ("translation/networks", "source/weights", "adversarial/weights"):
        want, got = (load_file(run / f"{name}.safetensors") for run in (whole, stopped))
        assert all(torch.equal(want[key], got[key]) for key in want), name

    def with_semantic_network(network: Path) -> RunConfig:
        settings = [*SMALL, f"translation.semantic_network={network}"]
        return make_config(
            recipe="small", file=None, settings=settings, options=cycada_options(blocks)
        )

    semantic = tmp_path / "semantic"
    train(with_semantic_network(whole / "source"), semantic, device=CPU)
    lines = (semantic / "translation/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 5 and all(json.loads(line)["semantic"] > 0 for line in lines)
    (tmp_path / "text.safetensors").write_text("text")
    for name in ("missing", "text.safetensors"):
        with pytest.raises(ModelError, match=name):
            train(with_semantic_network(tmp_path / name), tmp_path / "none", device=CPU)
        assert not (tmp_path / "none").exists()


def test_translated_frames_have_the_labels_of_the_source(tmp_path: Path, blocks: Path) -> None:
    from fada_deploy.common.label_space import CITYSCAPES_13
    from fada_deploy.data import open_dataset

    source: FrameDataset = open_dataset(
        str(blocks / "source.toml"), None, split="train", space=CITYSCAPES_13
    )
    frame = np.full((32, 48, 3), 90, np.uint8)
    cv2.imwrite(str(tmp_path / "000001.jpg"), frame)
    translated = translated_frames(source, tmp_path, (32, 48))
    # A frame without a translation keeps its name, which messages about it contain.
    assert translated.pairs[0] == source.pairs[0]
    image, labels = translated.pair(1)
    assert np.abs(image.astype(int) - 90).max() < 3
    original = source.labels(1)
    height, width = original.shape
    rows = ((np.arange(32) + 0.5) * height / 32).astype(int)
    columns = ((np.arange(48) + 0.5) * width / 48).astype(int)
    assert (labels == original[rows][:, columns]).mean() > 0.98


def test_frames_whose_labels_have_another_size_are_not_translated(
    tmp_path: Path, blocks: Path
) -> None:
    """The frames that are trained on have the size of the translation, and so have their labels."""
    from fada_deploy.common.label_space import CITYSCAPES_13
    from fada_deploy.data import open_dataset

    root, folder = tmp_path / "copy", tmp_path / "translated"
    shutil.copytree(blocks, root)
    assert cv2.imwrite(str(root / "source/train/labels/01.png"), np.zeros((96, 64), np.uint8))
    source = open_dataset(str(root / "source.toml"), None, split="train", space=CITYSCAPES_13)
    folder.mkdir()
    errors = write_translations(nn.Conv2d(3, 3, 1), source, folder, (32, 48), amp=False)
    assert len(errors) == 1 and "01.png: the frame is 96x64 but its labels are 64x96" in errors[0]
    translated = translated_frames(source, folder, (32, 48))
    assert translated.pair(0)[1].shape == (32, 48)
    with pytest.raises(DataError, match="labels are 64x96"):
        translated.pair(1)


def test_several_processes_and_wrong_lengths_are_refused(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"translation\.iterations"):
        make_config(
            recipe="small", file=None, settings=[*SMALL, "translation.iterations=6"],
            options=cycada_options(blocks),
        )  # fmt: skip
    config = make_config(
        recipe="small", file=None, settings=SMALL, options=cycada_options(blocks)
    )  # fmt: skip
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="one process"):
        check_translation(config, tmp_path)
    (tmp_path / "translation").mkdir()
    (tmp_path / "translation" / "complete").touch()
    check_translation(config, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        ("stages=distill",),
        ("stages=selftrain", "selftrain.source_free=true", "selftrain.align=false"),
    ],
)
def test_a_style_that_no_stage_reads_is_refused(settings: tuple[str, ...], blocks: Path) -> None:
    options = cycada_options(blocks) | {"start": "builtin"}
    options["stages"] = tuple(settings[0].removeprefix("stages=").split(","))
    with pytest.raises(UsageError, match="style"):
        make_config(recipe="small", file=None, settings=settings[1:], options=options)
