"""Named starting points for the settings of a run: what differs from the defaults of `RunConfig`.

`paper` has the published settings; `small` trains on two CPU cores in minutes.
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

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "backbone": "ddrnet23-slim",
        "size": (192, 320),
        "src_size": (192, 320),
        "amp": "auto",
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
