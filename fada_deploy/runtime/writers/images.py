"""Image outputs: overlays, masks and color maps, one file per frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from fada_deploy.common.images import write_image, write_png
from fada_deploy.runtime.overlay.blend import colorize
from fada_deploy.runtime.writers.options import IDS
from fada_deploy.runtime.writers.output import DrawnResult, Image, Output, WriteResult


@contextmanager
def overlay_images(output: Output) -> Iterator[WriteResult]:
    """Write overlays as JPEG."""

    def write(drawn: DrawnResult) -> None:
        assert isinstance(drawn.overlay, np.ndarray)
        write_image(output.frame_path("overlay", ".jpg", drawn.result), drawn.overlay)

    yield write


@contextmanager
def mask_images(output: Output) -> Iterator[WriteResult]:
    """Write ids as gray PNG."""
    output.set_aside_frames("mask")
    to_ids = mask_of(output)
    yield lambda d: write_png(output.frame_path("mask", ".png", d.result), to_ids(d))


@contextmanager
def color_images(output: Output) -> Iterator[WriteResult]:
    """Write class colors as RGB PNG."""
    output.set_aside_frames("color")
    to_colors = color_map_of(output)
    yield lambda d: write_png(output.frame_path("color", ".png", d.result), to_colors(d))


def mask_of(output: Output) -> Callable[[DrawnResult], Image]:
    """Return the function from a result to its ids (H, W) uint8."""
    table = IDS[output.options.ids](output.space)
    return lambda drawn: np.asarray(cv2.LUT(drawn.result.labels, table), np.uint8)


def color_map_of(output: Output) -> Callable[[DrawnResult], Image]:
    """Return the function from a result to its class colors (H, W, 3) uint8 RGB."""
    palette = output.space.palette
    return lambda drawn: colorize(drawn.result.labels, palette)
