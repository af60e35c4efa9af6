"""The settings files in `configs/` load, and docs/results lists their published scores."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fada_deploy.training.comparison_jobs import SELF_TRAINING
from fada_deploy.training.methods.alignment import METHODS
from fada_deploy.training.settings import make_config
from fada_deploy.training.stage_config import AdversarialStage, SourceStage

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").glob("*.toml"))
# mIoU in the paper's tables: source only, feature, hard, soft, distilled, distilled multi-scale.
PUBLISHED = {
    "gta5-resnet101": (36.8, 39.3, 45.7, 46.9, 49.2, 50.1),
    "gta5-vgg16": (28.3, 34.1, None, None, 43.8, None),
    "synthia-resnet101": (33.5, 35.4, 40.8, 41.5, 45.2, None),
    "synthia-vgg16": (25.6, 31.0, None, None, 39.5, None),
    "crosscity-rome-resnet101": (50.9, None, None, None, 54.7, None),
    "crosscity-rio-resnet101": (48.2, None, None, None, 54.7, None),
    "crosscity-tokyo-resnet101": (42.8, None, None, None, 51.3, None),
    "crosscity-taipei-resnet101": (39.6, None, None, None, 52.7, None),
}
KINDS = ("source", "feature", "fada-hard", "fada", "fada-distill", "fada-distill-mst")
PUBLISHED_BY_FILE = {
    f"{pair}-{k}": v
    for pair, row in PUBLISHED.items()
    for k, v in zip(KINDS, row, strict=True)
    if v
}


def test_one_file_per_published_result() -> None:
    assert {f.stem for f in FILES} == set(PUBLISHED_BY_FILE)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_file_has_the_settings_of_the_paper(file: Path) -> None:
    config = make_config(recipe=None, file=file, settings=[], options={})
    name = file.stem
    kind = max((k for k in KINDS if name.endswith(f"-{k}")), key=len)
    assert config.published == PUBLISHED_BY_FILE[name]
    assert config.recipe == "paper" and (config.adversarial, config.source) == (
        AdversarialStage(),
        SourceStage(),
    )
    assert config.backbone == re.search(r"resnet101|vgg16", name).group()  # type: ignore[union-attr]
    stages = {"source": 1, "feature": 2, "fada-hard": 2, "fada": 2}.get(kind, 3)
    assert config.stages == ("source", "adversarial", "distill")[:stages]
    assert config.method == kind.split("-distill")[0]
    assert (config.test_scales, config.test_flip) == (
        ((0.7, 1.0, 1.3), True) if "mst" in kind else ((1.0,), False)
    )
    pair = name.split("-resnet101")[0].split("-vgg16")[0]
    source, target = ("cityscapes", pair) if pair.startswith("crosscity-") else (pair, "cityscapes")
    assert (config.src, config.tgt) == (source, target)
    sizes = {"gta5": (720, 1280), "synthia": (760, 1280), "cityscapes": (512, 1024)}
    assert config.src_size == sizes[source] and config.size == (512, 1024)
    assert config.label_space == ("cityscapes-16" if source == "synthia" else "cityscapes-19")
    assert (
        config.norm == ("frozen" if "resnet101" in name else "auto")
        and config.checkpoint_every == 5000
    )
    if kind.startswith("fada-distill"):
        frozen = name.startswith("synthia-resnet101")
        assert config.distill.norm == ("frozen" if frozen else "batch")
        assert any(config.distill.jitter) == ("resnet101" in name)


@pytest.mark.parametrize("name", [n for n in SELF_TRAINING if n != "selftrain"])
def test_compare_has_the_settings_of_the_file(name: str) -> None:
    file = ROOT / "configs" / "selftrain" / f"{name}.toml"
    stage = make_config(
        recipe=None, file=file, settings=[], options={"src": "gta5", "tgt": "x"}
    ).selftrain
    assert replace(stage, **SELF_TRAINING[name]) == stage


def test_documentation_lists_the_score_of_each_file() -> None:
    page = (ROOT / "docs" / "results" / "paper-tables.md").read_text("utf-8")
    methods = dict(re.findall(r"^\| `methods/([a-z0-9-]+)` \|.*?([^|]*)\|$", page, re.MULTILINE))
    files = {f.stem: f for f in (ROOT / "configs" / "methods").glob("*.toml")}
    assert methods.keys() == files.keys()
    for name, file in files.items():
        config = make_config(recipe=None, file=file, settings=[], options={})
        assert name == f"gta5-{config.backbone}-{config.method}" and config.method in METHODS
        weight = 1.0 if config.method == "cycada" else 0.001
        assert config.adversarial == AdversarialStage(adversarial_weight=weight)
        if config.backbone == "resnet101":
            assert config.published == float(methods[name])
        else:
            assert config.published is None
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \|.*\| ([0-9.]+)[^|]*\|$", page, re.MULTILINE))
    assert {name: float(score) for name, score in rows.items()} == PUBLISHED_BY_FILE


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "builtin").glob("*.toml")), ids=lambda file: file.stem
)
def test_settings_of_the_built_in_model_load(file: Path) -> None:
    config = make_config(recipe=None, file=file, settings=[], options={"tgt": "clip.mp4"})
    assert config.stages == (file.stem,) and config.source_name == "rendered"
