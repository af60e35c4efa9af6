"""Open the newest exported model that this machine can run, or the built-in one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fada_deploy.common.errors import (
    DeviceError,
    FadaError,
    MissingExtraError,
    ModelError,
    ToleranceError,
)
from fada_deploy.common.runs import BUILTIN, RUNS, newest_models

if TYPE_CHECKING:
    from fada_deploy.runtime.segmenter import Segmenter

logger = logging.getLogger(__name__)


def open_newest(*, backend: str = "auto", **options: Any) -> tuple[Segmenter, list[str]]:
    """Open the newest export under `runs/` that opens; return it and one line per skipped model.

    Without any export the built-in model is opened. `backend` and `options` are the arguments of
    `Segmenter`. Raise `UsageError` if no backend is installed, `ModelError` if there are exports
    but none of them can be opened.
    """
    from fada_deploy.runtime.backend_selection import backends_of, require_any_backend
    from fada_deploy.runtime.backends import BACKENDS
    from fada_deploy.runtime.segmenter import Segmenter

    if backend == "auto":
        # Without any backend no model can run, so this error comes first.
        require_any_backend()
    errors: list[FadaError] = []
    skipped: list[str] = []
    for path in newest_models():
        if backend in BACKENDS and backend not in backends_of(path):
            skipped.append(f"{path} cannot run on the backend {backend}")
            continue
        try:
            segmenter = Segmenter(path, backend=backend, **options)
            _refuse_tensorrt_int8_on_cpu(path, segmenter)
            return segmenter, skipped
        except (ModelError, DeviceError, ToleranceError, MissingExtraError) as error:
            errors.append(error)
            text = str(error)
            # Most messages already begin with the path.
            skipped.append(text if text.startswith(str(path)) else f"{path}: {text}")
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ModelError(
            f"none of the {len(skipped)} models under {RUNS}/ can run on this machine: "
            f"{'; '.join(skipped)}"
        )
    if skipped:
        raise ModelError(
            f"no model under {RUNS}/ runs on the backend {backend}; choose another backend with "
            "--backend, or export a model with `fada export`"
        )
    segmenter = Segmenter(BUILTIN, backend=backend, **options)
    logger.info(
        "no exported model under %s/; using the built-in model (%d classes), which was not "
        "adapted to your video; to adapt it: fada adapt builtin --tgt VIDEO",
        RUNS, segmenter.space.num_classes,
    )  # fmt: skip
    return segmenter, []


def _refuse_tensorrt_int8_on_cpu(path: Path, segmenter: Segmenter) -> None:
    if segmenter.backend.device == "cpu" and segmenter.metadata.hardware_target == "tensorrt":
        segmenter.close()
        raise ModelError(
            f"{path} is quantized for TensorRT and slow on a CPU; use --model to run it here"
        )
