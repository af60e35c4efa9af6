"""Named starting points for the settings of a run: what differs from the defaults of `RunConfig`.

`paper` has the published settings. `deploy` is for real footage and networks that run in real time;
docs/results has the measurements behind it. `small` trains from random weights on two CPU cores in
minutes, to try things out.
"""

from __future__ import annotations

from typing import Any

# Trains from random weights in minutes, so it uses AdamW with warm-up and weight averaging.
_SMALL_STAGE: dict[str, Any] = {
    "optimizer": "adamw",
    "classifier_lr_factor": 1.0,
    "weight_decay": 0.01,
    "warmup": 20,
    "ema": 0.98,
    "batch": 4,
}

# Real-time networks from ImageNet weights: AdamW, weight averaging, gradient clipping. The
# augmentation replaces the color jitter.
_DEPLOY_STAGE: dict[str, Any] = {
    "optimizer": "adamw",
    "classifier_lr_factor": 5.0,
    "weight_decay": 0.01,
    "power": 1.0,
    "max_norm": 10.0,
    "ema": 0.99,
    "batch": 6,
    "jitter": (0.0, 0.0, 0.0, 0.0),
}

# Self-training on whole target frames in rounds, with thresholds over all of them (CBST).
ROUNDS: dict[str, Any] = {
    "rounds": 4,
    "portion": 0.2,
    "mixed_weight": 0.0,
    "masked_weight": 1.0,
    "mask_ratio": 0.0,
}
# Settings of self-training that rounds exclude or ignore.
NOT_IN_ROUNDS = ("max_threshold", "quantile", "prototypes", "weighting", "source_free")

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "deploy": {
        "backbone": "efficientnet-lite0",
        "init": "imagenet",
        "norm": "batch",
        "stages": ("source", "selftrain"),
        "extra_sources": ({"name": "rendered"},),
        "augment": "strong",
        "size": (240, 320),
        "src_size": (240, 320),
        "amp": "auto",
        "save_every": 100,
        "translation": {
            "iterations": 2000,
            "max_iterations": 2000,
            "batch": 2,
            "width": 32,
            "blocks": 6,
            "crop": (192, 256),
        },
        "source": {
            **_DEPLOY_STAGE,
            "class_weights": "log",
            "lr": 6e-4,
            "warmup": 60,
            "iterations": 400,
            "max_iterations": 1300,
        },
        "adversarial": {
            **_DEPLOY_STAGE,
            "class_weights": "log",
            "lr": 4e-4,
            "warmup": 30,
            "iterations": 500,
            "max_iterations": 510,
            "bn_statistics": "both",
            "full_resolution": False,
        },
        "selftrain": {
            **_DEPLOY_STAGE,
            "lr": 4e-4,
            "warmup": 30,
            "iterations": 500,
            "max_iterations": 510,
            **ROUNDS,
        },
        "distill": {
            **_DEPLOY_STAGE,
            "lr": 6e-4,
            "warmup": 60,
            "iterations": 900,
            "max_iterations": 918,
            "size": (240, 320),
            "crop": (240, 320),
            "scale": (1.0, 1.0),
        },
    },
    "small": {
        "backbone": "ddrnet23-slim",
        "init": "none",
        "size": (192, 320),
        "src_size": (192, 320),
        "amp": "auto",
        "save_every": 100,
        "translation": {
            "iterations": 400,
            "max_iterations": 400,
            "batch": 2,
            "width": 16,
            "blocks": 3,
            "crop": (128, 160),
        },
        "source": {
            **_SMALL_STAGE,
            "lr": 2e-3,
            "jitter": (0.3, 0.3, 0.3, 0.1),
            "iterations": 600,
            "max_iterations": 600,
            "flip": 0.5,
        },
        "adversarial": {
            **_SMALL_STAGE,
            "lr": 1e-3,
            "jitter": (0.3, 0.3, 0.3, 0.1),
            "iterations": 400,
            "max_iterations": 440,
            "adversarial_weight": 0.05,
            "discriminator_lr": 1e-3,
            "full_resolution": False,
        },
        "selftrain": {
            **_SMALL_STAGE,
            "lr": 1e-3,
            "ema": 0.99,
            "iterations": 400,
            "max_iterations": 440,
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
