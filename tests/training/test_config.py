"""Settings: values of the recipes, order of precedence, strict decoding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fada_deploy import api
from fada_deploy.common.errors import DataError, ModelError, UsageError
from fada_deploy.training.config import RunConfig
from fada_deploy.training.data_paths import with_roots
from fada_deploy.training.run_files import load_config
from fada_deploy.training.settings import (
    change_settings,
    make_config,
    shared_options,
    source_options,
)
from fada_deploy.training.stage_config import SelfTrainingStage, without_rounds

PAIR = {"src": "gta5", "tgt": "cityscapes"}


def config(
    *settings: str, file: Path | None = None, recipe: str = "paper", **options: Any
) -> RunConfig:
    return make_config(recipe=recipe, file=file, settings=settings, options={**PAIR, **options})


def test_default_recipe_has_the_values_of_the_paper() -> None:
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


def test_options_override_the_file_and_the_file_overrides_the_recipe(tmp_path: Path) -> None:
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


def test_file_can_name_its_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "small"\n[source]\nbatch = 2\n')
    c = make_config(recipe=None, file=file, settings=[], options=PAIR)
    assert (c.recipe, c.backbone, c.source.batch, c.distill.batch) == (
        "small",
        "ddrnet23-slim",
        2,
        4,
    )
    assert make_config(recipe="paper", file=file, settings=[], options=PAIR).backbone == "resnet101"


def test_set_parses_text_by_the_type_of_the_setting() -> None:
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


def test_from_dict_reads_what_to_dict_writes() -> None:
    c = config("source.ema=0.99", recipe="small")
    assert RunConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c


@pytest.mark.parametrize(
    ("setting", "key", "allowed"),
    [
        ("source.speed=3", "unknown setting source.speed", "iterations, max_iterations"),
        ("color=3", "unknown setting color", "src, tgt"),
        ("sources.lr=3", "unknown setting sources", "did you mean source?"),
        ("source=3", "source: found '3'", "a table"),
        ("source.lr.x=3", "unknown setting source.lr.x", "did you mean source.lr?"),
        ("source.lr", "--set needs KEY=VALUE", "got 'source.lr'"),
        (
            "lr=3",
            "lr is a setting of a stage",
            "source.lr or adversarial.lr or selftrain.lr or distill.lr",
        ),
        ("source.lr=fast", "source.lr: found 'fast'", "a number"),
        ("source.lr=nan", "source.lr: found nan", "finite"),
        ("source.lr=inf", "source.lr: found inf", "finite"),
        ("source.lr=-1", "source.lr: found -1", "of at least 0"),
        ("source.batch=2.5", "source.batch: found '2.5'", "a whole number"),
        ("size=12", "size must be WIDTHxHEIGHT", "1024x512"),
        ("compile=perhaps", "compile: found 'perhaps'", "true or false"),
        ("checkpoint_every=-1", "checkpoint_every: found -1", "of at least 0"),
        ("test_scales=0", "test_scales[0]: found 0", "greater than 0"),
        ("test_scales=1,5", "test_scales[1]: found 5", "of at most 4"),
        ("adversarial.bn_statistics=all", "adversarial.bn_statistics: found 'all'", "'both'"),
        ("source.optimizer=lion", "source.optimizer: found 'lion'", "'sgd'"),
        ("stages=warm", "stages: found 'warm'", "source, adversarial, selftrain, distill"),
        ("stages=", "stages: found", "source, adversarial, selftrain, distill"),
        ("source.batch=0", "source.batch: found 0", "of at least 1"),
        ("source.accumulate=3", "source.batch: found 8", "multiple of source.accumulate (3)"),
        ("source.iterations=40000", "source.iterations: found 40000", "max_iterations (31250)"),
        ("source.max_norm=-1", "source.max_norm: found -1", "of at least 0"),
        ("source.warmup=-1", "source.warmup: found -1", "of at least 0"),
        ("seed=-1", "seed: found -1", "of at least 0"),
        ("seed=18446744073709551616", "seed: found", "of at most 2147483647"),
        ("tgt=", "tgt: found", "at least 1"),
        ("save_every=0", "save_every: found 0", "of at least 1"),
        ("amp=fp8", "amp: found 'fp8'", "'bf16'"),
        ("source.ema=2", "source.ema: found 2", "less than 1"),
        ("source.flip=5", "source.flip: found 5", "of at most 1"),
        ("distill.scale=0,1", "distill.scale[0]: found 0", "greater than 0"),
        ("distill.scale=2,1", "distill.scale: found 2.0, 1.0", "smaller factor first"),
        ("distill.norm=none", "distill.norm: found 'none'", "'frozen'"),
        ("adversarial.temperature=0", "adversarial.temperature: found 0", "greater than 0"),
        ("adversarial.discriminator_betas=0.9,1", "discriminator_betas[1]: found 1", "less than 1"),
        ("adversarial.clip=0", "adversarial.clip: found 0", "greater than 0"),
        ("source.classifier_lr_factor=-1", "classifier_lr_factor: found -1", "of at least 0"),
        ("source.momentum=1", "source.momentum: found 1", "less than 1"),
        ("adversarial.jitter=0,0,0,0.9", "adversarial.jitter[3]: found 0.9", "of at most 0.5"),
        ("adversarial.jitter=1,2", "adversarial.jitter: found length 2", "length 4"),
        ("recipe=small", "recipe", "use --recipe"),
        ("norm=layer", "norm: found 'layer'", "'frozen'"),
    ],
)
def test_invalid_setting_names_key_value_and_allowed_values(
    setting: str, key: str, allowed: str
) -> None:
    with pytest.raises(UsageError) as caught:
        config(setting)
    message = str(caught.value)
    assert key in message and allowed in message and "\n" not in message


def test_method_source_excludes_the_adversarial_stage() -> None:
    with pytest.raises(UsageError, match="method: found 'source'"):
        config("method=source", "stages=source,adversarial")
    assert config("method=source").stages == ("source",)


def test_only_the_stages_that_are_trained_must_be_divisible() -> None:
    assert config("source.accumulate=4", "selftrain.accumulate=4").selftrain.batch == 2
    with pytest.raises(UsageError, match=r"selftrain\.batch: found 2"):
        config("selftrain.accumulate=4", "stages=source,selftrain")


def test_a_data_set_that_is_named_does_not_get_the_folder_of_another(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        'src = "gta5"\nsrc_root = "/data/GTA5"\nsrc_weight = 3.0\ntgt = "cityscapes"\n'
        'tgt_root = "/data/cityscapes"\n'
    )

    def made(**options: str) -> RunConfig:
        return make_config(recipe="paper", file=file, settings=[], options=options)

    same, source, target = made(src="gta5"), made(src="synthia"), made(tgt="drive.mp4")
    assert (same.src_root, same.src_weight) == ("/data/GTA5", 3.0)
    assert (source.src_root, source.src_weight, source.tgt_root) == (None, 1.0, same.tgt_root)
    assert (target.tgt_root, target.src_root) == (None, same.src_root)
    # A file that names no data set is about any.
    file.write_text('src_root = "/data/A"\nsrc_weight = 3.0\ntgt_root = "/data/B"\n')
    other = made(src="gta5", tgt="cityscapes")
    assert (other.src_root, other.src_weight, other.tgt_root) == ("/data/A", 3.0, "/data/B")


@pytest.mark.parametrize(
    ("given", "recipe"),
    [
        ({}, "paper"),
        ({"backbone": "vgg16"}, "paper"),
        ({"backbone": "efficientnet-lite0"}, "deploy"),
        ({"backbone": "ddrnet23-slim", "src": "rendered"}, "deploy"),
    ],
)
def test_the_backbone_decides_the_default_recipe(given: dict[str, str], recipe: str) -> None:
    c = make_config(recipe=None, file=None, settings=[], options={**PAIR, **given})
    assert c.recipe == recipe and c.backbone == given.get("backbone", "resnet101")


def test_deploy_renders_a_source_unless_the_user_has_chosen_the_sources() -> None:
    def names(**options: Any) -> list[str]:
        options = {"tgt": "cityscapes", **options}
        c = make_config(recipe="deploy", file=None, settings=[], options=options)
        return [source.name for source in c.sources]

    assert names() == names(src="rendered") == ["rendered"]
    assert names(src="gta5") == ["gta5", "rendered"]
    assert names(src="gta5", extra_sources=[]) == ["gta5"]
    assert names(src="gta5", extra_sources=[{"name": "synthia"}]) == ["gta5", "synthia"]


def test_source_free_self_training_with_distillation_needs_no_source() -> None:
    stages = "stages=selftrain,distill"
    assert config(stages).needs_source
    free = "selftrain.source_free=true"
    assert not config(stages, free).needs_source
    assert config(stages, free, "distill.source_weight=1").needs_source
    assert config("stages=distill").needs_source  # to know which classes the source shows


def test_source_only_training_drops_the_adaptation_of_a_recipe() -> None:
    assert config(recipe="deploy", method="source").stages == ("source",)
    stages = ("source", "selftrain")
    assert config(recipe="deploy", method="source", stages=stages).stages == stages
    with pytest.raises(UsageError, match=r"selftrain\.align"):
        config("selftrain.align=true", recipe="deploy", method="source", stages=stages)


def test_deploy_aligns_by_a_method_that_is_named() -> None:
    chosen = config(recipe="deploy").selftrain
    assert (chosen.rounds, chosen.align) == (4, False)
    assert config(recipe="deploy", method="advent").selftrain == replace(chosen, align=True)
    assert not config("selftrain.align=false", recipe="deploy", method="fada").selftrain.align
    assert not config(recipe="paper", method="fada").selftrain.align


@pytest.mark.parametrize(
    "setting",
    ["rounds=0", "prototypes=true", "weighting=confident_share", "source_free=true", "quantile=1"],
)
def test_deploy_without_rounds_has_the_defaults_of_a_mean_teacher(setting: str) -> None:
    default = SelfTrainingStage()
    for method in ({}, {"method": "fada"}):
        c = config(f"selftrain.{setting}", recipe="deploy", **method).selftrain
        for name in ("rounds", "mixed_weight", "masked_weight", "mask_ratio"):
            assert getattr(c, name) == getattr(default, name)
        assert c.align == ("method" in method and not c.source_free)
    masked = config("selftrain.masked_weight=1", recipe="deploy").selftrain
    assert (masked.rounds, masked.mask_ratio) == (4, default.mask_ratio)


def test_a_mean_teacher_in_place_of_rounds() -> None:
    rounds = config(recipe="deploy").selftrain
    teacher = without_rounds(rounds)
    paper = config(recipe="paper").selftrain
    for name in ("rounds", "mixed_weight", "masked_weight"):
        assert getattr(teacher, name) == getattr(paper, name) != getattr(rounds, name)
    masked = replace(paper, masked_weight=0.5)
    assert without_rounds(masked) == masked


def test_missing_domain_unknown_recipe_and_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="src and tgt missing"):
        make_config(recipe="paper", file=None, settings=[], options={})
    with pytest.raises(UsageError, match="recipe must be one of paper, deploy, small, got 'large'"):
        config(recipe="large")
    with pytest.raises(DataError, match=r"no\.toml: cannot be read"):
        config(file=tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('seed = "5"\n', "seed: found '5', expected a whole number"),
        ("[source]\nbatch = 2.5\n", "source.batch: found 2.5, expected a whole number"),
        ("[source]\nlr = nan\n", "source.lr: found nan"),
        ("[source]\nspeed = 1\n", "unknown setting source.speed"),
        ("test_flip = 1\n", "test_flip: found 1, expected true or false"),
        ('size = "large"\n', "size must be WIDTHxHEIGHT"),
        ("seed = \n", "invalid TOML"),
        (f"x = {'[' * 5000}{']' * 5000}\n", "nested levels"),
    ],
)
def test_settings_file_is_decoded_strictly(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        config(file=file)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "the key 'src' is missing"),
        ("[]", "found a list, expected a table"),
        ("{", "invalid JSON"),
        ('{"src": "gta5", "tgt": "cityscapes", "seed": NaN}', "expected a finite number"),
        (
            '{"src": "gta5", "tgt": "cityscapes", "seed": "1"}',
            "seed: found '1', expected a whole number",
        ),
        ('{"src": "gta5", "tgt": "cityscapes", "speed": 1}', "unknown setting speed"),
        ("[" * 100_000 + "]" * 100_000, "nested levels"),
        ("\xff", "invalid"),
    ],
)
def test_config_json_is_decoded_strictly(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError) as caught:
        load_config(tmp_path)
    message = str(caught.value)
    assert "config.json" in message and problem in message and "\n" not in message


def test_load_config_rejects_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a run"):
        load_config(tmp_path)


def test_published_score_is_dropped_when_settings_differ_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "row.toml"
    file.write_text(
        'src = "gta5"\ntgt = "cityscapes"\nmethod = "fada"\n'
        'stages = ["source", "adversarial"]\npublished = 46.9\n'
    )

    def published(*settings: str, **options: Any) -> float | None:
        return make_config(recipe=None, file=file, settings=settings, options=options).published

    assert published() == published("seed=3", stages=("adversarial",)) == 46.9
    assert (
        published(method="feature")
        is published(stages=("source",))
        is published(backbone="vgg16")
        is None
    )
    assert published("published=none") is None


def test_init_keywords_are_not_treated_as_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("none", "imagenet"):
        (tmp_path / word).mkdir()
        assert config(init=word).init == word


def test_run_that_does_not_exist_and_folder_of_a_stage_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        load_config(tmp_path / "nowhere")
    (tmp_path / "config.json").touch()
    (tmp_path / "adversarial").mkdir()
    with pytest.raises(ModelError, match=f"is a stage; use {tmp_path}"):
        load_config(tmp_path / "adversarial")


def test_sizes_from_python_are_tuples_or_text() -> None:
    for size in ((128, 256), [128, 256], "256x128"):
        made = config(**{"size": size, "distill.crop": size})
        assert made.size == made.distill.crop == (128, 256)
    with pytest.raises(UsageError, match="size must be WIDTHxHEIGHT"):
        config(size="256")
    with pytest.raises(UsageError, match=r"size: found .*, expected \[height, width\]") as caught:
        config(size=256)
    assert "--set" not in str(caught.value) and "correct the settings" in str(caught.value)


def test_shared_options_apply_to_every_stage() -> None:
    made = config(**shared_options(batch=6, size=(64, 96), accumulate=3))
    for stage in (made.source, made.adversarial, made.selftrain, made.distill):
        assert (stage.batch, stage.accumulate) == (6, 3)
    assert made.size == made.src_size == made.distill.size == made.distill.crop == (64, 96)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"src": "gta5", "tgt": "gta5"}, True),
        ({"src": "gta5", "tgt": "gta5", "src_root": "a", "tgt_root": "./a"}, True),
        ({"src": "gta5", "tgt": "gta5", "src_root": "a", "tgt_root": "b"}, False),
        ({"src": "gta5", "tgt": "cityscapes"}, False),
    ],
)
def test_same_source_and_target_is_a_warning(
    options: dict[str, str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    make_config(recipe=None, file=None, settings=[], options=options)
    assert ("source and target are the same data set" in caplog.text) == warned


def test_train_from_python_takes_size_and_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[RunConfig] = []
    monkeypatch.setattr(
        "fada_deploy.training.run.train", lambda config, *_, **__: made.append(config)
    )
    data = {"src": "gta5", "tgt": "cityscapes", "out": tmp_path / "run"}
    api.train(**data, size_hw=(64, 96), batch=2, device="cpu")
    api.train(**data, settings={"size": "256x128"}, device="cpu")
    assert made[0].size == made[0].distill.crop == (64, 96) and made[0].selftrain.batch == 2
    assert made[1].size == (128, 256) and made[1].source.batch == 8


def test_no_rendered_keeps_the_other_sources_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'recipe = "deploy"\nsrc = "gta5"\ntgt = "cityscapes"\n'
        'extra_sources = [{name = "synthia"}, {name = "rendered"}]\n'
    )
    config = make_config(recipe=None, file=file, settings=[], options={}, rendered=False)
    assert [source.name for source in config.sources] == ["gta5", "synthia"]
    # The file's choice of the source rendered stays if another source is named.
    config = make_config(recipe=None, file=file, settings=[], options={"src": "synthia"})
    assert [source.name for source in config.sources] == ["synthia", "rendered"]
    file.write_text('recipe = "deploy"\nsrc = "gta5"\ntgt = "cityscapes"\nextra_sources = []\n')
    config = make_config(recipe=None, file=file, settings=[], options={"src": "synthia"})
    assert [source.name for source in config.sources] == ["synthia"]


def test_what_belongs_to_replaced_data_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'src = "gta5"\ntgt = "drives"\nego_mask = "hood.png"\n'
        'extra_sources = [{name = "synthia"}]\n'
    )
    same = make_config(recipe="paper", file=file, settings=[], options={})
    assert same.ego_mask == "hood.png" and len(same.sources) == 2
    options = {"src": "synthia", "tgt": "others"}
    other = make_config(recipe="paper", file=file, settings=[], options=options)
    assert other.ego_mask is None and [source.name for source in other.sources] == ["synthia"]
    assert change_settings(same, options={"tgt": "others"}).ego_mask is None


def test_the_recipe_of_the_command_line_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('recipe = "paper"\nsrc = "gta5"\ntgt = "cityscapes"\n')
    config = make_config(recipe="small", file=file, settings=[], options={})
    assert config.recipe == "small" and config.backbone == "ddrnet23-slim"


def test_moved_data_sets_get_their_new_folders() -> None:
    config = make_config(
        recipe="paper", file=None, settings=[],
        options={"src": "gta5", "src_root": "a", "tgt": "cityscapes",
                 "extra_sources": [{"name": "synthia", "root": "b"}]},
    )  # fmt: skip
    moved = with_roots(config, ("c",), "d")
    assert [source.root for source in moved.sources] == ["c", "b"] and moved.tgt_root == "d"
    assert with_roots(config, (), None) == config
    with pytest.raises(UsageError, match="got 3, and 2 sources"):
        with_roots(config, ("x", "y", "z"), None)
    mixed = replace(config, src="mine.toml", src_root=None)
    assert [source.root for source in with_roots(mixed, ("c",), None).sources] == [None, "c"]


@pytest.mark.parametrize(
    ("names", "roots", "expected"),
    [
        (("mine.toml", "gta5"), ("a",), [None, "a"]),
        (("gta5", "rendered", "synthia"), ("a", "b"), ["a", None, "b"]),
        (("gta5", "rendered"), (), [None, None]),
    ],
)
def test_roots_belong_to_the_data_sets(
    names: tuple[str, ...], roots: tuple[str, ...], expected: list[str | None]
) -> None:
    options = source_options(names, roots, ())
    extra = [source["root"] for source in options["extra_sources"]]
    assert [options["src_root"], *extra] == expected
    with pytest.raises(UsageError, match=r"--src-root .* got 4"):
        source_options(names, ("w", "x", "y", "z"), ())


def test_numbers_of_numpy_are_numbers() -> None:
    settings = {"src": "gta5", "tgt": "cityscapes", "seed": np.int64(3), "source.lr": np.float64(2)}
    made = make_config(recipe="paper", file=None, settings=[], options=settings)
    assert (made.seed, made.source.lr) == (3, 2.0)
