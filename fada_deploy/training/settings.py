"""A run's settings from where people write them: preset < TOML file < options < `--set key=value`.

`make_config` is the only way in, so that whatever cannot be is said in one line before any work.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import UsageError
from fada_deploy.common.sizes import parse_size
from fada_deploy.data import DATASETS
from fada_deploy.training.config import (
    AMP,
    BN_STATISTICS,
    METHODS,
    OPTIMIZERS,
    PRESETS,
    STAGES,
    RunConfig,
    Stage,
)


def make_config(
    *, preset: str | None, file: Path | None, settings: Iterable[str], options: Mapping[str, Any]
) -> RunConfig:
    """Build a configuration: the preset, then a TOML file, then `options`, then `stage.key=value` settings.

    The preset itself may be named by the file; the default is "paper". Options that are None are left
    alone. Raise `UsageError` for anything unknown.
    """
    from_file: dict[str, Any] = {}
    if file is not None:
        try:
            from_file = _flat(tomllib.loads(file.read_text("utf-8")))
        except OSError as error:
            raise UsageError(f"{file}: cannot be read ({error.strerror})") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{file}: cannot be read as TOML ({error})") from None
    preset = preset or str(from_file.get("preset", "paper"))
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    written: dict[str, Any] = _flat(PRESETS[preset]) | from_file | {"preset": preset}
    said = {k: v for k, v in options.items() if v is not None} | _parse(settings)
    config = _build(written | said)
    if "published" in from_file and "published" not in said:
        of_the_file = _build({"src": config.src, "tgt": config.tgt} | written)
        if _decisive(config) != _decisive(of_the_file):
            # The figure in the file is of the file's experiment.
            config = replace(config, published=None)
    return _checked(_absolute(config))


def _parse(settings: Iterable[str]) -> dict[str, str]:
    parsed = {}
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise UsageError(
                f"--set takes key=value, for example source.iterations=500; found {setting!r}"
            )
        if key.strip() == "preset":
            raise UsageError("a preset is no single setting; name it with --preset")
        parsed[key.strip()] = text.strip()
    return parsed


def _build(merged: Mapping[str, Any]) -> RunConfig:
    rest = dict(merged)
    if rest.get("method") == "source":
        rest.setdefault("stages", ("source",))
    missing = [name for name in ("src", "tgt") if name not in rest]
    if missing:
        options_missing = " and ".join(f"--{name}" for name in missing)
        raise UsageError(
            f"say what to train on: {options_missing} (a data set, a .toml file or recordings)"
        )
    config = RunConfig(src=str(rest.pop("src")), tgt=str(rest.pop("tgt")))
    for key, value in rest.items():
        config = _assign(config, key, value)
    return config


def _decisive(config: RunConfig) -> RunConfig:
    """Return what a published score is of: all but places, the seed, and what is kept on the way."""
    neutral: dict[str, Any] = {
        **dict.fromkeys(("published", "start", "src_root", "tgt_root", "init_norm")),
        "init": "none",
        "seed": 0,
        "amp": "off",
        "compile": False,
        "save_every": 1,
        "checkpoint_every": 0,
    }
    return replace(config, **neutral, stages=config.stages[-1:])


def _absolute(config: RunConfig) -> RunConfig:
    """Make the paths of existing files absolute, so that the run can be used from any folder."""
    paths = {
        n: getattr(config, n)
        for n in ("src_root", "tgt_root", "ego_mask", "init", "start", "label_space")
    }
    paths |= {n: v for n in ("src", "tgt") if (v := getattr(config, n)) not in DATASETS}
    if config.init in ("none", "imagenet"):
        # Words, also where a folder of that name lies about.
        del paths["init"]
    found: dict[str, Any] = {
        name: str(Path(p).resolve())
        for name, p in paths.items()
        if p is not None and Path(p).exists()
    }
    return replace(config, **found)


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            flat[key] = value
    return flat


def _assign(config: RunConfig, key: str, value: Any) -> RunConfig:
    stage, dot, name = key.rpartition(".")
    owner: Any = config if not dot else getattr(config, stage, None) if stage in STAGES else None
    names = [f.name for f in fields(owner)] if owner is not None else []
    if name not in names or (not dot and name in STAGES):
        allowed = (
            ", ".join(n for n in names if n not in STAGES)
            or f"{', '.join(STAGES)} followed by .key"
        )
        owners = [
            s for s in STAGES if not dot and key in {f.name for f in fields(getattr(config, s))}
        ]
        meant = f"; did you mean {', '.join(f'{s}.{key}' for s in owners)}?" if owners else ""
        raise UsageError(f"no setting {key!r}{meant or f'; there are {allowed}'}")
    changed = replace(owner, **{name: _convert(value, getattr(owner, name), name, key)})
    return changed if not dot else replace(config, **{stage: changed})


_SIZES = ("size", "src_size", "crop")


def _convert(value: Any, default: Any, name: str, key: str) -> Any:
    """Turn text or TOML into the type of the default it replaces."""
    try:
        if name in _SIZES and isinstance(value, str):
            return parse_size(value)
        if isinstance(default, bool):
            words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            return words[str(value).lower()]
        if isinstance(default, int):
            return int(value)
        if name == "published":
            return None if value in (None, "none") else float(value)
        if isinstance(default, float):
            return float(value)
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else value
            kind = type(default[0])
            converted = tuple(kind(p.strip() if isinstance(p, str) else p) for p in parts)
            if name not in ("stages", "test_scales") and len(converted) != len(default):
                raise ValueError(f"{len(default)} values are needed")
            return converted
    except (KeyError, TypeError, ValueError):
        example = (
            "x".join(map(str, reversed(default))) if name in _SIZES else default or "46.9, or none"
        )
        raise UsageError(f"{key} cannot be {value!r}; it is something like {example}") from None
    return None if value is None else str(value)


def _checked(config: RunConfig) -> RunConfig:
    def need(holds: bool, found: str) -> None:
        if not holds:
            raise UsageError(found)

    wrong = [s for s in config.stages if s not in STAGES]
    need(
        not wrong and bool(config.stages),
        f"no stage {', '.join(wrong)!r}; there are {', '.join(STAGES)}",
    )
    adversarial = config.adversarial
    need(config.method in METHODS, f"no method {config.method!r}; there are {', '.join(METHODS)}")
    need(
        config.method != "source" or "adversarial" not in config.stages,
        "method source has no adversarial stage; leave it out of --stages, or name another method",
    )
    whose = f"adversarial.bn_statistics must be one of {', '.join(BN_STATISTICS)}"
    need(
        adversarial.bn_statistics in BN_STATISTICS, f"{whose}; found {adversarial.bn_statistics!r}"
    )
    for name in STAGES:
        stage: Stage = getattr(config, name)
        need(
            stage.optimizer in OPTIMIZERS,
            f"{name}.optimizer must be one of {', '.join(OPTIMIZERS)}",
        )
        positive = min(stage.iterations, stage.batch, stage.max_iterations) >= 1
        need(positive, f"{name}: iterations, max_iterations and batch must be at least 1")
        need(
            0 <= stage.lr < math.inf, f"{name}.lr must be finite and not negative; found {stage.lr}"
        )
        need(0 <= stage.ema < 1, f"{name}.ema is a decay from 0 to below 1; found {stage.ema}")
        need(stage.max_norm >= 0, f"{name}.max_norm must not be negative; found {stage.max_norm}")
        equal = stage.accumulate >= 1 and stage.batch % stage.accumulate == 0
        need(
            equal,
            f"{name}: a batch of {stage.batch} makes no {stage.accumulate} equal parts to accumulate",
        )
        need(stage.warmup >= 0, f"{name}.warmup must not be negative; found {stage.warmup}")
        fair = min(stage.jitter) >= 0 and max(stage.jitter[:3]) <= 1 and stage.jitter[3] <= 0.5
        need(
            fair,
            f"{name}.jitter must lie in 0 to 1, its last, the hue, in 0 to 0.5; found {stage.jitter}",
        )
        need(
            stage.iterations <= stage.max_iterations,
            f"{name}.iterations {stage.iterations} is beyond the schedule's end, max_iterations "
            f"{stage.max_iterations}; raise max_iterations too",
        )
    need(
        adversarial.temperature > 0,
        f"adversarial.temperature must be above 0; found {adversarial.temperature}",
    )
    low, high = config.distill.scale
    need(
        0 < low <= high,
        f"distill.scale must be two factors above 0, the smaller first; found {low}, {high}",
    )
    for name, share in (("source.flip", config.source.flip), ("distill.flip", config.distill.flip)):
        need(0 <= share <= 1, f"{name} is a probability; found {share}")
    need(config.seed >= 0, f"seed must not be negative; found {config.seed}")
    need(
        config.checkpoint_every >= 0,
        f"checkpoint_every must not be negative; found {config.checkpoint_every}",
    )
    views = config.test_scales
    need(
        bool(views) and 0 < min(views) <= max(views) <= 4,
        f"test_scales must lie in 0 to 4; found {views}",
    )
    need(config.save_every >= 1, f"save_every must be at least 1; found {config.save_every}")
    need(config.amp in AMP, f"amp must be one of {', '.join(AMP)}; found {config.amp!r}")
    need(
        config.distill.norm in ("batch", "frozen"),
        f"distill.norm must be batch or frozen; found {config.distill.norm!r}",
    )
    need(
        config.norm in ("auto", "batch", "frozen"),
        f"norm must be auto, batch or frozen; found {config.norm!r}",
    )
    return config
