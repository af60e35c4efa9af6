"""Video outputs: overlays, masks and color maps, one file per source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fada_deploy.common.video import BT709
from fada_deploy.runtime.writers.images import color_map_of, mask_of
from fada_deploy.runtime.writers.label_video import label_video
from fada_deploy.runtime.writers.output import DrawnResult, Output, WriteResult
from fada_deploy.runtime.writers.video_writer import VideoWriter


@contextmanager
def overlay_video(output: Output) -> Iterator[WriteResult]:
    """Write overlays with the audio of the source."""
    with _video(output, "overlay", lambda d: d.overlay, audio=output.source.audio) as write:
        yield write


@contextmanager
def color_video(output: Output) -> Iterator[WriteResult]:
    """Write class colors."""
    with _video(output, "color-video", color_map_of(output), audio=None) as write:
        yield write


@contextmanager
def mask_video(output: Output) -> Iterator[WriteResult]:
    """Write ids without loss."""
    height, width = output.first.result.labels.shape
    to_ids = mask_of(output)
    with label_video(
        output.video_path("mask-video"),
        (height, width),
        time_base=output.time_base,
        fps=output.source.rate or None,
        pixel_aspect=output.source.pixel_aspect,
        faststart=not output.source.is_live,
    ) as write:
        yield lambda drawn: write(to_ids(drawn), _pts(drawn))


@contextmanager
def _video(
    output: Output, kind: str, image_of: Callable[[DrawnResult], Any], *, audio: Path | None
) -> Iterator[WriteResult]:
    first = image_of(output.first)
    if isinstance(first, np.ndarray):
        size_hw, color_matrix = (first.shape[0], first.shape[1]), BT709
    else:
        size_hw, color_matrix = (first.height, first.width), int(first.colorspace)
    with VideoWriter(
        output.video_path(kind),
        size_hw,
        fps=output.source.rate or None,
        time_base=output.time_base,
        audio=audio,
        x264_preset=output.options.x264_preset,
        pixel_aspect=output.source.pixel_aspect,
        hardware=output.options.hardware,
        color_matrix=color_matrix,
        # `docker stop` kills after ten seconds, in which a long recording is not written twice.
        faststart=not output.source.is_live,
    ) as writer:
        yield lambda drawn: writer.write(image_of(drawn), _pts(drawn))
        if output.is_interrupted:
            writer.end_audio()


def _pts(drawn: DrawnResult) -> int:
    assert drawn.result.pts is not None
    return drawn.result.pts
