"""Write label maps as a lossless gray video."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.images import resize_labels
from fada_deploy.runtime.writers.encoder import (
    PART_SUFFIX,
    MonotonicClock,
    VideoEncoder,
    open_output,
    shift_to_zero,
)

_LOSSLESS = ("libx264", {"preset": "ultrafast", "qp": "0"})


@contextmanager
def label_video(
    path: Path,
    size_hw: tuple[int, int],
    *,
    time_base: Fraction,
    fps: Fraction | None = None,
    pixel_aspect: Fraction | None = None,
    faststart: bool = True,
) -> Iterator[Callable[[NDArray[np.uint8], int], None]]:
    """Open an MP4 (or NUT) file of label maps and yield `write(labels, pts)`.

    `labels` are (H, W) uint8 ids, `pts` a timestamp in units of `time_base`. The video is lossless,
    gray and of full range: a decoder set to the pixel format "gray" returns exactly the ids. As
    with `VideoWriter`, the file appears under its final name only when the block succeeds.
    `faststart` is that of `VideoWriter`.
    """
    with open_output(path, faststart=faststart) as (container, _):
        encoder = VideoEncoder(
            container, size_hw, time_base, fps, _LOSSLESS, gray=True, pixel_aspect=pixel_aspect
        )
        clock, shift = MonotonicClock(time_base), None

        def write(labels: NDArray[np.uint8], pts: int) -> None:
            nonlocal shift
            if shift is None:
                shift = 0 if path.suffix == PART_SUFFIX else shift_to_zero(pts)
            encoder.encode_image(resize_labels(labels, size_hw), clock.next(pts + shift))

        yield write
        encoder.flush()
