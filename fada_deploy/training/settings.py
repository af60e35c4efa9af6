"""Build the settings of a run: recipe, then TOML file, then options, then `--set KEY=VALUE`.

`make_config` merges the four into one document and decodes it strictly, so that every mistake is a
one-line `UsageError` before any work begins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from fada_deploy.common import documents
from fada_deploy.common.errors import DataError, UsageError
from fada_deploy.common.runs import STAGES
from fada_deploy.common.sizes import parse_size
from fada_deploy.data import NAMES
from fada_deploy.training.config import RENDERED, RunConfig
from fada_deploy.training.data_paths import source_files, target_files, with_absolute_paths
from fada_deploy.training.recipes import NOT_IN_ROUNDS, RECIPES, ROUNDS
from fada_deploy.training.stage_config import (
    AdversarialStage,
    DistillStage,
    SelfTrainingStage,
    SourceStage,
    TranslationStage,
)

Document = dict[str, Any]
logger = logging.getLogger(__name__)

_SECTIONS: dict[str, type] = {
    "translation": TranslationStage,
    "source": SourceStage,
    "adversarial": AdversarialStage,
    "selftrain": SelfTrainingStage,
    "distill": DistillStage,
}
# The backbones of the published settings, and their smaller variants. The others run in real time.
_PAPER_BACKBONES = ("resnet101", "resnet50", "resnet18", "vgg16")
# The type of the settings that are written as WIDTHxHEIGHT.
_SIZE = tuple[int, int]
# What the command line and what Python can correct.
CLI_REMEDY = "correct it in the settings file, the options or --set"
REMEDY = "correct the settings"
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def make_config(
    *,
    recipe: str | None,
    file: Path | None,
    settings: Iterable[str],
    options: Mapping[str, Any],
    remedy: str = REMEDY,
    rendered: bool = True,
) -> RunConfig:
    """Return the settings of a run; later sources override earlier ones.

    Args:
        recipe: Name of a recipe; by default the one that the file names, or else that of the
            backbone: "deploy" for networks that run in real time, "paper" for the others.
        file: TOML file with the keys of `RunConfig` and tables for the stages.
        settings: Texts "key=value" or "stage.key=value", as given to `--set`.
        options: Typed values by key, "stage.key" for those of a stage. None means not given. Sizes
            are (height, width) or "WIDTHxHEIGHT".
        remedy: End of the messages about invalid settings.
        rendered: Whether the recipe or the file may add the source rendered.

    Raises:
        UsageError: A key is unknown, a value has the wrong type or range, or settings contradict
            each other.
        DataError: The file cannot be read.
    """
    from_file = {} if file is None else _read_file(file)
    explicit = _with_parsed_sizes(_nested({k: v for k, v in options.items() if v is not None}))
    explicit = _merged(explicit, _parse_settings(settings))
    from_file = _without_replaced_data(from_file, explicit)
    given = _merged(from_file, explicit)
    recipe = recipe or str(from_file.get("recipe", _default_recipe(given)))
    if recipe not in RECIPES:
        raise UsageError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    base = _merged(_recipe_settings(recipe, given), from_file)
    base["recipe"] = recipe
    config = _decode(_merged(base, explicit), remedy)
    if not rendered and "extra_sources" not in explicit:
        extra = tuple(source for source in config.extra_sources if source.name != RENDERED)
        config = replace(config, extra_sources=extra)
    if "published" in from_file and "published" not in explicit:
        # The published score in the file belongs to the file's settings only.
        of_file = _decode(_merged({"src": config.src, "tgt": config.tgt}, base), remedy)
        if _scored_settings(config) != _scored_settings(of_file):
            config = replace(config, published=None)
    config = with_absolute_paths(config)
    if target_files(config) in [source_files(source) for source in config.sources]:
        logger.warning("source and target are the same data set (%s)", config.tgt)
    return config


def _without_replaced_data(from_file: Document, explicit: Mapping[str, Any]) -> Document:
    """Leave out what belongs to a data set that is replaced by another one."""
    dependent = {
        "src": ("src_root", "src_weight", "extra_sources"),
        "tgt": ("tgt_root", "ego_mask"),
    }
    dropped = {
        name
        for domain, names in dependent.items()
        if domain in from_file and explicit.get(domain, from_file[domain]) != from_file[domain]
        for name in names
    }
    kept = {key: value for key, value in from_file.items() if key not in dropped}
    extra = from_file.get("extra_sources")
    if "extra_sources" in dropped and isinstance(extra, list | tuple):
        # Whether the file has the source rendered is not about the data that is replaced.
        kept["extra_sources"] = [
            each for each in extra if isinstance(each, dict) and each.get("name") == RENDERED
        ]
    return kept


def change_settings(
    config: RunConfig,
    *,
    options: Mapping[str, Any],
    settings: Iterable[str] = (),
    remedy: str = REMEDY,
) -> RunConfig:
    """Return settings with changes, in the form and with the errors of `make_config`."""
    changes = _with_parsed_sizes(_nested({k: v for k, v in options.items() if v is not None}))
    changes = _merged(changes, _parse_settings(settings))
    unchanged = _without_replaced_data(config.to_dict(), changes)
    return with_absolute_paths(_decode(_merged(unchanged, changes), remedy))


def _default_recipe(given: Mapping[str, Any]) -> str:
    """Return the recipe for settings that name none."""
    return "paper" if given.get("backbone", "resnet101") in _PAPER_BACKBONES else "deploy"


def _recipe_settings(recipe: str, given: Mapping[str, Any]) -> Document:
    """Return the settings of a recipe, without those that do not fit what the user has given."""
    settings: Document = {**RECIPES[recipe], "recipe": recipe}
    if recipe == "deploy":
        settings["src"] = RENDERED
        if given.get("src", RENDERED) == RENDERED:
            del settings["extra_sources"]
        settings["selftrain"] = _self_training(settings["selftrain"], given)
    if given.get("method") == "source":
        settings.pop("stages", None)
    if given.get("method") == "cycada":
        # The method consists of the translation and the adversary.
        settings["style"] = "cyclegan"
    return settings


def _self_training(settings: Document, given: Mapping[str, Any]) -> Document:
    """Return the settings of self-training of the recipe deploy that fit those that are given."""
    table = given.get("selftrain")
    named = table if isinstance(table, Mapping) else {}
    dropped: set[str] = set()
    if named.get("rounds") == 0 or any(name in named for name in NOT_IN_ROUNDS):
        dropped = set(ROUNDS)
    elif "masked_weight" in named:
        dropped = {"mask_ratio"}
    kept = {name: value for name, value in settings.items() if name not in dropped}
    if given.get("method", "source") != "source" and not named.get("source_free"):
        # Whoever names a method wants it; by default this recipe only trains itself.
        kept["align"] = True
    return kept


def shared_options(
    *, batch: int | None, size: Any, accumulate: int | None = None
) -> dict[str, Any]:
    """Return the settings of every stage that the options --batch, --size and --accumulate set."""
    options: dict[str, Any] = {}
    for stage in STAGES:
        options |= {f"{stage}.batch": batch, f"{stage}.accumulate": accumulate}
    return options | dict.fromkeys(("size", "src_size", "distill.size", "distill.crop"), size)


def stage_names(stages: str | Iterable[str]) -> tuple[str, ...]:
    """Return names of stages that are given as a list or, separated by commas, as a text."""
    names = stages.split(",") if isinstance(stages, str) else stages
    return tuple(name.strip() for name in names)


def source_options(
    names: tuple[str, ...], roots: tuple[str, ...], weights: tuple[float, ...]
) -> dict[str, Any]:
    """Return the settings for repeated `--src`, `--src-root` and `--src-weight`."""
    if weights and len(weights) != len(names):
        raise UsageError(
            f"--src-weight must be given once for each --src, got {len(weights)} for {len(names)}"
        )
    # TOML files and rendered scenes have no folder to name.
    with_root = [bool(roots) and (name in NAMES or len(roots) == len(names)) for name in names]
    if sum(with_root) != len(roots):
        listed = ", ".join(name for name in names if name in NAMES)
        raise UsageError(
            "--src-root must be given once for each --src that is a data set with a folder"
            f"{f' ({listed})' if listed else ''}, got {len(roots)}"
        )
    remaining = iter(roots)
    sources = [
        {"name": name, "root": next(remaining) if has_root else None, "weight": weight}
        for name, has_root, weight in zip(
            names, with_root, weights or (1.0,) * len(names), strict=True
        )
    ]
    if not sources:
        return {}
    first, *extra = sources
    chosen: dict[str, Any] = {"src": first["name"], "src_root": first["root"]}
    if weights:
        chosen["src_weight"] = first["weight"]
    if extra:
        chosen["extra_sources"] = extra
    return chosen


def _read_file(file: Path) -> Document:
    try:
        file.open("rb").close()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); name another file") from None
    document: Document = documents.read_toml(
        file, dict[str, Any], remedy="correct the settings file", error=UsageError
    )
    return _with_parsed_sizes(document)


def _with_parsed_sizes(table: Document, section: str = "") -> Document:
    """Return the tables of a file with (height, width) in place of "WIDTHxHEIGHT"."""
    parsed: Document = {}
    for name, value in table.items():
        key = f"{section}.{name}" if section else name
        if isinstance(value, str) and _type_of(key) == _SIZE:
            value = _parse_size(key, value)
        parsed[name] = _with_parsed_sizes(value, key) if isinstance(value, dict) else value
    return parsed


def _parse_settings(settings: Iterable[str]) -> Document:
    """Parse "key=value" texts, each value by the type of its key."""
    values: Document = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        key, text = key.strip(), text.strip()
        if not separator:
            raise UsageError(
                f"--set needs KEY=VALUE, for example source.iterations=500, got {setting!r}"
            )
        if key == "recipe":
            raise UsageError("recipe cannot be changed by --set; use --recipe")
        values[key] = _parse_value(key, text)
    return _nested(values)


def _parse_value(key: str, text: str) -> Any:
    """Return the value of a text; a text that does not fit is returned for `_decode` to report."""
    type_ = _type_of(key)
    if type_ == _SIZE:
        return _parse_size(key, text)
    if NoneType in get_args(type_):
        if text == "none":
            return None
        type_ = next(option for option in get_args(type_) if option is not NoneType)
    if get_origin(type_) is tuple:
        item_types = get_args(type_)
        return [_parse_scalar(part.strip(), item_types[0]) for part in text.split(",")]
    return _parse_scalar(text, type_)


def _parse_scalar(text: str, type_: Any) -> Any:
    if type_ is bool:
        return _BOOLEANS.get(text.lower(), text)
    try:
        return type_(text) if type_ in (int, float) else text
    except ValueError:
        return text


def _parse_size(key: str, text: str) -> list[int]:
    try:
        return list(parse_size(text))
    except ValueError:
        raise UsageError(
            f"{key} must be WIDTHxHEIGHT, for example 1024x512, got {text!r}"
        ) from None


def _type_of(key: str) -> Any:
    """Return the type of a setting without its range, or None if the key is unknown."""
    section, dot, name = key.rpartition(".")
    owner = _SECTIONS.get(section) if dot else RunConfig
    return None if owner is None else get_type_hints(owner).get(name)


def _nested(flat: Mapping[str, Any]) -> Document:
    """Turn {"stage.key": value} into {"stage": {"key": value}}."""
    document: Document = {}
    for key, value in flat.items():
        section, dot, name = key.partition(".")
        document = _merged(document, {section: {name: value}} if dot else {key: value})
    return document


def _merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> Document:
    """Return both documents in one; tables are merged, other values of `override` win."""
    merged = dict(base)
    for key, value in override.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            value = _merged(merged[key], value)
        merged[key] = value
    return merged


def _decode(document: Mapping[str, Any], remedy: str) -> RunConfig:
    document = dict(document)
    if document.get("method") == "source":
        document.setdefault("stages", ["source"])
    prefix = "--" if remedy == CLI_REMEDY else ""
    missing = [f"{prefix}{name}" for name in ("src", "tgt") if name not in document]
    if missing:
        raise UsageError(
            f"no training data: {' and '.join(missing)} missing; "
            "give a data set, a .toml file or, as the target, recordings; the recipe deploy needs "
            "no source"
        )
    for key in document.keys() - {f.name for f in fields(RunConfig)}:
        sections = [s for s, type_ in _SECTIONS.items() if key in get_type_hints(type_)]
        if sections:
            suggestions = " or ".join(f"{section}.{key}" for section in sections)
            raise UsageError(f"{key} is a setting of a stage; use {suggestions}")
    plain = {key: _to_toml_value(value) for key, value in document.items()}
    return RunConfig.from_dict(plain, where="training settings", remedy=remedy)


def _to_toml_value(value: Any) -> Any:
    """Return a value as it would be in a TOML file, without the types of Python and NumPy."""
    if isinstance(value, Mapping):
        return {key: _to_toml_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_toml_value(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def _scored_settings(config: RunConfig) -> RunConfig:
    """Return the settings that a published score depends on; the others get fixed values."""
    neutral: dict[str, Any] = {
        **dict.fromkeys(("published", "start", "src_root", "tgt_root", "init_norm")),
        "init": "none",
        "seed": 0,
        "amp": "off",
        "compile": False,
        "cuda_graphs": False,
        "deterministic": False,
        "save_every": 1,
        "checkpoint_every": 0,
    }
    return replace(config, **neutral, stages=config.stages[-1:])
