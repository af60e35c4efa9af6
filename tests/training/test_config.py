"""Settings: the paper's numbers, the order of precedence, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fada_deploy.common.errors import UsageError
from fada_deploy.training.config import RunConfig
from fada_deploy.training.settings import make_config

PAIR = {"src": "gta5", "tgt": "cityscapes"}


def config(
    *settings: str, file: Path | None = None, preset: str = "paper", **options: Any
) -> RunConfig:
    return make_config(preset=preset, file=file, settings=settings, options={**PAIR, **options})


def test_the_default_preset_is_the_papers() -> None:
    c = config()
    assert (c.backbone, c.src_size, c.size, c.distill.size) == (
        "resnet101",
        (720, 1280),
        (512, 1024),
        (1024, 2048),
    )
    assert (c.source.lr, c.source.batch, c.source.iterations, c.source.max_iterations) == (
        5e-4,
        8,
        20_000,
        31_250,
    )
    a = c.adversarial
    assert (a.lr, a.batch, a.iterations, a.max_iterations) == (2.5e-4, 4, 40_000, 62_500)
    assert (a.temperature, a.clip, a.adversarial_weight, c.method) == (1.8, 0.9, 0.001, "fada")
    assert (a.discriminator_lr, a.discriminator_betas, a.full_resolution) == (
        1e-4,
        (0.9, 0.99),
        True,
    )
    assert a.jitter == (0.5, 0.5, 0.5, 0.2) and c.source.jitter == (0, 0, 0, 0)
    assert c.distill.scale == (0.5, 1.5) and c.distill.crop == (512, 1024) and c.distill.flip == 0.5
    for stage in (c.source, a, c.distill):
        assert (stage.optimizer, stage.momentum, stage.weight_decay, stage.power) == (
            "sgd",
            0.9,
            5e-4,
            0.9,
        )
        assert (stage.classifier_lr_factor, stage.ema, stage.warmup) == (10, 0, 0)


def test_the_command_line_beats_the_file_and_the_file_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'backbone = "ddrnet23-slim"\nseed = 5\nsize = [256, 512]\n[source]\nlr = 0.1\nbatch = 2\n'
    )
    c = config("source.lr=0.2", file=file, seed=7)
    assert (c.backbone, c.seed, c.size, c.source.lr, c.source.batch) == (
        "ddrnet23-slim",
        7,
        (256, 512),
        0.2,
        2,
    )


def test_a_file_may_name_its_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "small"\n[source]\nbatch = 2\n')
    c = make_config(preset=None, file=file, settings=[], options=PAIR)
    assert (c.preset, c.backbone, c.source.batch, c.distill.batch) == (
        "small",
        "ddrnet23-slim",
        2,
        4,
    )
    assert make_config(preset="paper", file=file, settings=[], options=PAIR).backbone == "resnet101"


def test_settings_take_the_type_of_what_they_replace() -> None:
    c = config(
        "adversarial.full_resolution=no",
        "distill.crop=320x192",
        "adversarial.jitter=0,0,0,0.1",
        "stages=source,distill",
    )
    assert c.adversarial.full_resolution is False
    assert c.distill.crop == (192, 320)
    assert c.adversarial.jitter == (0.0, 0.0, 0.0, 0.1)
    assert c.stages == ("source", "distill")


def test_a_written_configuration_reads_back_equal() -> None:
    c = config("source.ema=0.99", preset="small")
    assert RunConfig.from_dict(c.to_dict()) == c


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["source.speed=3"], "no setting 'source.speed'; there are iterations, max_iterations"),
        (["color=3"], "no setting 'color'"),
        (["sources.lr=3"], "no setting 'sources.lr'"),
        (["source=3"], "no setting 'source'"),
        (["source.lr"], "--set takes key=value"),
        (["source.lr=fast"], "source.lr cannot be 'fast'"),
        (["size=12"], "size cannot be '12'; it is something like 1024x512"),
        (
            ["method=softer"],
            "no method 'softer'; there are source, feature, fada-hard, fada, adaptsegnet, advent",
        ),
        (["method=source", "stages=source,adversarial"], "method source has no adversarial stage"),
        (["checkpoint_every=-1"], "checkpoint_every must not be negative"),
        (["test_scales=0"], "test_scales must lie in 0 to 4"),
        (
            ["adversarial.bn_statistics=all"],
            "must be one of target, source, both, frozen; found 'all'",
        ),
        (["source.optimizer=lion"], "source.optimizer must be one of sgd, adamw"),
        (["stages=warm"], "no stage 'warm'; there are source, adversarial, distill"),
        (["source.batch=0"], "must be at least 1"),
        (["source.iterations=40000"], "beyond the schedule's end, max_iterations 31250"),
        (["seed=-1"], "seed must not be negative"),
        (["save_every=0"], "save_every must be at least 1"),
        (["source.lr=nan"], "source.lr must be finite"),
        (["source.ema=2"], "source.ema is a decay"),
        (["source.flip=5"], "source.flip is a probability"),
        (["distill.scale=0,1"], "distill.scale must be two factors above 0"),
        (["distill.norm=none"], "distill.norm must be batch or frozen"),
        (["adversarial.temperature=0"], "temperature must be above 0"),
        (["adversarial.jitter=0,0,0,0.9"], "adversarial.jitter must lie in"),
        (["preset=small"], "a preset is no single setting; name it with --preset"),
        (["norm=layer"], "norm must be auto, batch or frozen"),
        (["adversarial.jitter=1,2"], "adversarial.jitter cannot be"),
    ],
)
def test_what_cannot_be_is_one_clear_line(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        config(*settings)
    assert "\n" not in str(caught.value)


def test_a_missing_domain_preset_or_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--src and --tgt"):
        make_config(preset="paper", file=None, settings=[], options={})
    with pytest.raises(UsageError, match="no preset 'large'; there are paper, small"):
        config(preset="large")
    with pytest.raises(UsageError, match="cannot be read"):
        config(file=tmp_path / "no.toml")


def test_a_published_score_stays_with_its_own_experiment(tmp_path: Path) -> None:
    file = tmp_path / "row.toml"
    file.write_text(
        'src = "gta5"\ntgt = "cityscapes"\nmethod = "fada"\nstages = ["source", "adversarial"]\npublished = 46.9\n'
    )

    def made(*settings: str, **options: Any) -> float | None:
        return make_config(preset=None, file=file, settings=settings, options=options).published

    assert made() == made("seed=3", stages=("adversarial",)) == 46.9
    assert made(method="feature") is made(stages=("source",)) is made(backbone="vgg16") is None
    assert made("published=none") is None


def test_words_for_init_are_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("none", "imagenet"):
        (tmp_path / word).mkdir()
        assert config(init=word).init == word
