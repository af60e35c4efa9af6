"""Several labeled sources: opened as one, mixed by weight, and the rendered one on first use."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.files import cache_folder, lock
from fada_deploy.common.label_space import CITYSCAPES_13, CITYSCAPES_19, LabelClass, LabelSpace
from fada_deploy.data import open_dataset
from fada_deploy.synth.dataset import RENDERER_VERSION
from fada_deploy.synth.scene import render
from fada_deploy.training.config import RunConfig, Source
from fada_deploy.training.data import sources
from fada_deploy.training.data.samplers import MIXTURE_BLOCK, MixtureSampler, ShuffledSampler
from fada_deploy.training.data.sources import open_sources, render_source
from fada_deploy.training.settings import make_config


@pytest.fixture
def config(streets: Path, blocks: Path) -> RunConfig:
    return make_config(
        recipe="small",
        file=None,
        settings=["src_size=96x64", "rendered_scenes=3"],
        options={
            "src": "gta5",
            "src_root": str(streets / "gta5"),
            "tgt": str(blocks / "target.toml"),
            "src_weight": 3.0,
            "extra_sources": [{"name": str(blocks / "source.toml"), "weight": 1.0}],
        },
    )


def test_sources_are_opened_as_one(config: RunConfig, streets: Path, blocks: Path) -> None:
    opened = open_sources(config, CITYSCAPES_19)
    first = open_dataset("gta5", streets / "gta5", split="train", space=CITYSCAPES_19)
    second = open_dataset(str(blocks / "source.toml"), None, split="train", space=CITYSCAPES_19)
    assert opened.counts == (len(first), len(second)) and opened.weights == (0.75, 0.25)
    assert len(opened.frames) == sum(opened.counts)
    for index, (dataset, i) in {
        0: (first, 0), len(first): (second, 0), len(first) + len(second) - 1: (second, -1),
    }.items():  # fmt: skip
        for got, want in zip(opened.frames.pair(index), dataset.pair(i), strict=True):
            np.testing.assert_array_equal(got, want)


def test_class_weights_are_those_of_the_weighted_frequencies(
    config: RunConfig, streets: Path, blocks: Path
) -> None:
    opened = open_sources(config, CITYSCAPES_19)
    pixels = np.zeros((sum(opened.counts), 19), np.int64)
    pixels[: opened.counts[0], :2] = 30, 10
    pixels[opened.counts[0] :, 1] = 7
    # Source 1 has three quarters of the weight: 0.75 * (3/4, 1/4) + 0.25 * (0, 1).
    frequency = np.array([0.5625, 0.4375] + [0.0] * 17)
    expected = 1 / np.log(1.02 + frequency)
    expected /= (frequency * expected).sum()
    np.testing.assert_allclose(opened.class_weights(pixels), expected, rtol=1e-6)
    assert expected[0] < expected[1] < expected[2]


def test_one_source_is_its_data_set(config: RunConfig, streets: Path) -> None:
    opened = open_sources(replace(config, extra_sources=()), CITYSCAPES_19)
    assert opened.frames == open_dataset(
        "gta5", streets / "gta5", split="train", space=CITYSCAPES_19
    )
    assert opened.weights == (1.0,)


def test_a_source_without_labels_is_refused(
    config: RunConfig, streets: Path, tmp_path: Path
) -> None:
    (tmp_path / "leftImg8bit").symlink_to(streets / "cityscapes" / "leftImg8bit")
    unlabeled = replace(config, extra_sources=(Source("cityscapes", str(tmp_path)),))
    with pytest.raises(DataError, match=r"cityscapes.*must be labeled"):
        open_sources(unlabeled, CITYSCAPES_19)
    with pytest.raises(DataError, match="no-such"):
        open_sources(replace(config, extra_sources=(Source("no-such.toml"),)), CITYSCAPES_19)


def test_sources_that_read_the_same_labels_in_other_ways_are_refused(
    config: RunConfig, blocks: Path, tmp_path: Path
) -> None:
    """Otherwise one of them would be trained on wrong labels."""
    (tmp_path / "source").symlink_to(blocks / "source")
    original = (blocks / "source.toml").read_text()
    names = []
    for name, ids in (("one", '0 = "road", 13 = "car"'), ("two", '0 = "car", 13 = "road"')):
        names.append(tmp_path / f"{name}.toml")
        splits = original[original.index("[splits") :]
        names[-1].write_text(f'[labels]\nencoding = "mapping"\nvalues = {{ {ids} }}\n{splits}')
    both = replace(config, src=str(names[0]), src_root=None, extra_sources=(Source(str(names[1])),))
    with pytest.raises(DataError, match="different encodings"):
        open_sources(both, CITYSCAPES_19)
    same = replace(both, extra_sources=(Source(str(names[0])),))
    opened = open_sources(same, CITYSCAPES_19).datasets
    masks = [np.arange(100 * 100).reshape(100, 100) < limit for limit in (10, 500)]
    with pytest.raises(DataError, match="ego masks"):
        sources._joined([replace(d, ego_mask=m) for d, m in zip(opened, masks, strict=True)])
    assert len(sources._joined([replace(d, ego_mask=masks[0]) for d in opened])) == 12


def test_a_source_frame_without_labels_is_named(
    config: RunConfig, streets: Path, tmp_path: Path
) -> None:
    shutil.copytree(streets / "cityscapes", tmp_path, dirs_exist_ok=True)
    lost = sorted((tmp_path / "gtFine/train").rglob("*_labelIds.png"))[0]
    lost.unlink()
    partly = replace(config, extra_sources=(Source("cityscapes", str(tmp_path)),))
    with pytest.raises(DataError, match=rf"1 of \d+ frames.*{lost.name.split('_gtFine')[0]}"):
        open_sources(partly, CITYSCAPES_19)


def test_rendered_scenes_are_made_once_and_equal_the_renderer(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rendered = replace(config, src="rendered", src_root=None, extra_sources=())
    opened = open_sources(rendered, CITYSCAPES_19)
    assert opened.counts == (3,)
    image, labels = opened.frames.pair(1)
    want_image, want_labels = render("random", 1, (64, 96))
    np.testing.assert_array_equal(image, want_image)
    np.testing.assert_array_equal(labels, want_labels)

    def fail(*_: object, **__: object) -> None:
        pytest.fail("rendered a second time")

    monkeypatch.setattr(sources, "write_source", fail)
    again = render_source(3, (64, 96))
    assert (again / "complete").is_file() and len(list((again / "images").iterdir())) == 3


def test_scenes_that_another_process_renders_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sources, "write_source", lambda *_, **__: pytest.fail("rendered again"))
    root = cache_folder() / "rendered" / f"v{RENDERER_VERSION}-96x64-seed0-3"
    found: list[Path] = []
    with lock(root):
        waiting = threading.Thread(target=lambda: found.append(render_source(3, (64, 96))))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        (root / "complete").touch()
    waiting.join(10)
    assert found == [root]


def test_included_classes_count_as_their_class(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    by_name = {c.name: c for c in CITYSCAPES_19.classes}
    ground = LabelClass("ground", 0, 7, (128, 64, 128), includes=("road", "sidewalk"))
    space = LabelSpace("three", (by_name["sky"], ground, by_name["building"]))
    rendered = replace(config, src="rendered", src_root=None, extra_sources=())
    labels = open_sources(rendered, space).frames.labels(0)
    _, full = render("random", 0, (64, 96))
    np.testing.assert_array_equal(labels == 1, np.isin(full, [0, 1]))
    assert (full == 0).any() and (full == 1).any()
    assert LabelSpace.from_dict(space.to_dict()) == space
    with pytest.raises(UsageError, match="sidewalk"):
        LabelSpace("twice", (*space.classes, by_name["sidewalk"]))
    assert "includes" not in str(CITYSCAPES_13.to_dict())


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.9, 0.1), (0.2, 0.3, 0.5), (0.999, 0.001)])
def test_mixture_draws_each_source_by_its_weight(weights: tuple[float, ...]) -> None:
    lengths = [7, 11, 5][: len(weights)]
    offsets = [0, *np.cumsum(lengths)[:-1].tolist()]
    samplers = [ShuffledSampler(n, seed) for seed, n in enumerate(lengths)]
    mixture = MixtureSampler(samplers, offsets, weights, seed=3)
    drawn = [mixture[position] for position in range(10 * MIXTURE_BLOCK)]
    source = np.digitize(drawn, offsets) - 1
    counts = Counter(source.tolist())
    for i, weight in enumerate(weights):
        assert counts[i] / len(drawn) == pytest.approx(max(weight, 0.01), abs=0.011)
    # Each source is drawn in the order of its own sampler, without gaps.
    for i, sampler in enumerate(samplers):
        own = [index - offsets[i] for index, s in zip(drawn, source, strict=True) if s == i]
        assert own == [sampler[n] for n in range(len(own))]
    # A pure function of the position.
    assert [mixture[position] for position in (5, 950, 5)] == [drawn[5], drawn[950], drawn[5]]
