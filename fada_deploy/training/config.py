"""Settings of a run: one frozen dataclass a stage; defaults < TOML file < command line.

The defaults are the paper's numbers; `small` is what two CPU cores can do (docs/guide.md lists
every deviation and why).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fada_deploy.common.errors import UsageError
from fada_deploy.common.sizes import parse_size
from fada_deploy.data import DATASETS

SizeHW = tuple[int, int]
Jitter = tuple[float, float, float, float]
STAGES = ("source", "adversarial", "distill")
ENCODINGS = ("soft", "hard", "two-way")
OPTIMISERS = ("sgd", "adamw")
AMP = ("off", "bf16", "auto")


@dataclass(frozen=True)
class Stage:
    """What every stage has. `max_iterations` is the poly schedule's length; training stops earlier.

    The classifier learns at `lr` × `classifier_lr_factor`. `ema` 0 is off, else the decay of averaged
    weights. `jitter` is brightness, contrast, saturation, hue.
    """

    iterations: int
    max_iterations: int
    batch: int
    lr: float
    optimiser: str = "sgd"
    classifier_lr_factor: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    power: float = 0.9
    warmup: int = 0
    ema: float = 0.0
    jitter: Jitter = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class SourceStage(Stage):
    """Supervised training on the source; `flip` is the probability of mirroring."""

    iterations: int = 20_000
    max_iterations: int = 31_250
    batch: int = 8
    lr: float = 5e-4
    flip: float = 0.0


@dataclass(frozen=True)
class AdversarialStage(Stage):
    """Fine-grained adversarial training; `batch` counts the images of each domain.

    `bn_statistics` says whose pass moves the running statistics of trainable batch normalisation:
    "target", "source" or "both" in turn. `full_resolution` takes the domain losses at the input's
    size, as published, or else at the features'.
    """

    iterations: int = 40_000
    max_iterations: int = 62_500
    batch: int = 4
    lr: float = 2.5e-4
    jitter: Jitter = (0.5, 0.5, 0.5, 0.2)
    encodings: str = "soft"
    temperature: float = 1.8
    clip: float = 0.9
    adversarial_weight: float = 0.001
    discriminator_lr: float = 1e-4
    discriminator_betas: tuple[float, float] = (0.9, 0.99)
    bn_statistics: str = "target"
    full_resolution: bool = True


@dataclass(frozen=True)
class DistillStage(Stage):
    """A fresh student on the adapted network's pseudo-labels of the target's training frames.

    Frames and pseudo-labels are scaled by a factor from `scale`, relative to the distilled
    network's input size, and cropped to `crop`. The student's normalisation is `norm`: trainable in
    the published GTA5 run with ResNet-101, frozen for SYNTHIA.
    """

    iterations: int = 20_000
    max_iterations: int = 31_250
    batch: int = 8
    lr: float = 5e-4
    jitter: Jitter = (0.5, 0.5, 0.5, 0.2)
    flip: float = 0.5
    scale: tuple[float, float] = (0.5, 1.5)
    size: SizeHW = (1024, 2048)
    crop: SizeHW = (512, 1024)
    norm: str = "batch"


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, written to its `config.json`.

    `ego_mask` is a picture that is not black where recordings show the car itself. `init` is a file
    of ImageNet weights for the backbone, `start` trained weights that stand in for the stage before
    the first one. `src_size` is what source frames are resized to, `size` what target frames are:
    the network's input. Both are (height, width). `amp` is off, bf16, or auto: bfloat16 where the
    device is made for it.
    """

    src: str
    tgt: str
    src_root: str | None = None
    tgt_root: str | None = None
    ego_mask: str | None = None
    label_space: str = "cityscapes-19"
    backbone: str = "resnet101"
    preset: str = "paper"
    stages: tuple[str, ...] = STAGES
    init: str = "none"
    start: str | None = None
    norm: str = "auto"
    src_size: SizeHW = (720, 1280)
    size: SizeHW = (512, 1024)
    seed: int = 1
    amp: str = "off"
    save_every: int = 500
    source: SourceStage = field(default_factory=SourceStage)
    adversarial: AdversarialStage = field(default_factory=AdversarialStage)
    distill: DistillStage = field(default_factory=DistillStage)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready document; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Read what `to_dict` wrote."""
        stages = {"source": SourceStage, "adversarial": AdversarialStage, "distill": DistillStage}
        plain = {k: v for k, v in data.items() if k not in stages}
        config = cls(**{k: _tuples(v) for k, v in plain.items()})
        built = {k: make(**{n: _tuples(v) for n, v in data[k].items()}) for k, make in stages.items()}
        return replace(config, **built)


# From random weights in minutes: AdamW with a warm-up and averaged weights in place of SGD from ImageNet.
_SMALL_STAGE: dict[str, Any] = {
    "optimiser": "adamw",
    "classifier_lr_factor": 1.0,
    "weight_decay": 0.01,
    "warmup": 20,
    "ema": 0.98,
    "batch": 4,
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "backbone": "ddrnet23-slim",
        "size": (192, 320),
        "src_size": (192, 320),
        "amp": "auto",
        "source": {**_SMALL_STAGE, "lr": 2e-3, "iterations": 600, "max_iterations": 600, "flip": 0.5},
        "adversarial": {
            **_SMALL_STAGE,
            "lr": 1e-3,
            "jitter": (0.3, 0.3, 0.3, 0.1),
            "iterations": 200,
            "max_iterations": 220,
            "adversarial_weight": 0.01,
            "discriminator_lr": 1e-3,
            "full_resolution": False,
        },
        "distill": {
            **_SMALL_STAGE,
            "lr": 2e-3,
            "jitter": (0.0, 0.0, 0.0, 0.0),
            "iterations": 900,
            "max_iterations": 900,
            "size": (192, 320),
            "crop": (192, 320),
            "scale": (1.0, 1.0),
        },
    },
}


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
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"{file}: cannot be read as TOML ({error})") from None
    preset = preset or str(from_file.get("preset", "paper"))
    if preset not in PRESETS:
        raise UsageError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    merged: dict[str, Any] = _flat(PRESETS[preset]) | from_file
    merged |= {k: v for k, v in options.items() if v is not None}
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise UsageError(f"--set takes key=value, for example source.iterations=500; found {setting!r}")
        if key.strip() == "preset":
            raise UsageError("a preset is no single setting; name it with --preset")
        merged[key.strip()] = text.strip()
    merged["preset"] = preset
    missing = [name for name in ("src", "tgt") if name not in merged]
    if missing:
        options_missing = " and ".join(f"--{name}" for name in missing)
        raise UsageError(f"say what to train on: {options_missing} (a data set, a .toml file or recordings)")
    config = RunConfig(src=str(merged.pop("src")), tgt=str(merged.pop("tgt")))
    for key, value in merged.items():
        config = _assign(config, key, value)
    return _checked(_absolute(config))


def _absolute(config: RunConfig) -> RunConfig:
    """Make the paths of existing files absolute, so that the run can be used from any folder."""
    paths = {n: getattr(config, n) for n in ("src_root", "tgt_root", "ego_mask", "init", "start", "label_space")}
    paths |= {n: v for n in ("src", "tgt") if (v := getattr(config, n)) not in DATASETS}
    found: dict[str, Any] = {
        name: str(Path(p).resolve()) for name, p in paths.items() if p is not None and Path(p).exists()
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
        allowed = ", ".join(n for n in names if n not in STAGES) or f"{', '.join(STAGES)} followed by .key"
        raise UsageError(f"no setting {key!r}; there are {allowed}")
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
        if isinstance(default, float):
            return float(value)
        if isinstance(default, tuple):
            parts = value.split(",") if isinstance(value, str) else value
            kind = type(default[0])
            converted = tuple(kind(p.strip() if isinstance(p, str) else p) for p in parts)
            if name != "stages" and len(converted) != len(default):
                raise ValueError(f"{len(default)} values are needed")
            return converted
    except (KeyError, TypeError, ValueError):
        example = "x".join(map(str, reversed(default))) if name in _SIZES else default
        raise UsageError(f"{key} cannot be {value!r}; it is something like {example}") from None
    return None if value is None else str(value)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checked(config: RunConfig) -> RunConfig:
    def need(holds: bool, found: str) -> None:
        if not holds:
            raise UsageError(found)

    wrong = [s for s in config.stages if s not in STAGES]
    need(not wrong and bool(config.stages), f"no stage {', '.join(wrong)!r}; there are {', '.join(STAGES)}")
    adversarial = config.adversarial
    need(
        adversarial.encodings in ENCODINGS,
        f"no encodings {adversarial.encodings!r}; there are {', '.join(ENCODINGS)}",
    )
    domains = ("target", "source", "both")
    need(adversarial.bn_statistics in domains, f"adversarial.bn_statistics must be one of {', '.join(domains)}")
    for name in STAGES:
        stage: Stage = getattr(config, name)
        need(stage.optimiser in OPTIMISERS, f"{name}.optimiser must be one of {', '.join(OPTIMISERS)}")
        positive = min(stage.iterations, stage.batch, stage.max_iterations) >= 1
        need(positive, f"{name}: iterations, max_iterations and batch must be at least 1")
        need(0 <= stage.lr < math.inf, f"{name}.lr must be finite and not negative; found {stage.lr}")
        need(0 <= stage.ema < 1, f"{name}.ema is a decay from 0 to below 1; found {stage.ema}")
        need(stage.warmup >= 0, f"{name}.warmup must not be negative; found {stage.warmup}")
        fair = min(stage.jitter) >= 0 and max(stage.jitter[:3]) <= 1 and stage.jitter[3] <= 0.5
        need(fair, f"{name}.jitter must lie in 0 to 1, its last, the hue, in 0 to 0.5; found {stage.jitter}")
        need(
            stage.iterations <= stage.max_iterations,
            f"{name}.iterations {stage.iterations} is beyond the schedule's end, max_iterations "
            f"{stage.max_iterations}; raise max_iterations too",
        )
    need(adversarial.temperature > 0, f"adversarial.temperature must be above 0; found {adversarial.temperature}")
    low, high = config.distill.scale
    need(0 < low <= high, f"distill.scale must be two factors above 0, the smaller first; found {low}, {high}")
    for name, share in (("source.flip", config.source.flip), ("distill.flip", config.distill.flip)):
        need(0 <= share <= 1, f"{name} is a probability; found {share}")
    need(config.seed >= 0, f"seed must not be negative; found {config.seed}")
    need(config.save_every >= 1, f"save_every must be at least 1; found {config.save_every}")
    need(config.amp in AMP, f"amp must be one of {', '.join(AMP)}; found {config.amp!r}")
    need(
        config.distill.norm in ("batch", "frozen"),
        f"distill.norm must be batch or frozen; found {config.distill.norm!r}",
    )
    need(config.norm in ("auto", "batch", "frozen"), f"norm must be auto, batch or frozen; found {config.norm!r}")
    return config
