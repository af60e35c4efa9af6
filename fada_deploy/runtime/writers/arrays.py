"""NumPy output: label indices and confidence, one .npz file per frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fada_deploy.common.files import atomic_path
from fada_deploy.runtime.writers.output import DrawnResult, Output, WriteResult


@contextmanager
def npz_arrays(output: Output) -> Iterator[WriteResult]:
    """Write `labels` (H, W) uint8, `classes` (names) and, if present, `confidence` float16."""
    output.set_aside_frames("npz")
    names = np.array(output.space.names)

    def write(drawn: DrawnResult) -> None:
        arrays: dict[str, Any] = {"labels": drawn.result.labels, "classes": names}
        if drawn.result.confidence is not None:
            # Half precision distinguishes 0.999 from 1; further digits are noise.
            arrays["confidence"] = drawn.result.confidence.astype(np.float16)
        with atomic_path(output.frame_path("npz", ".npz", drawn.result)) as temporary:
            np.savez_compressed(temporary, **arrays)

    yield write
