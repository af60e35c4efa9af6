"""Which output files are written, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.label_space import LabelSpace
from fada_deploy.common.video import VIDEO_SUFFIXES
from fada_deploy.runtime.overlay.style import OverlayStyle
from fada_deploy.runtime.writers.video_writer import X264_PRESETS

KINDS = ("overlay", "mask", "mask-video", "color", "color-video", "npz", "json")
# Suffixes of a single output image.
OUTPUT_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
# Name of an id system → lookup table (256,) uint8 from label indices to its ids.
IDS: dict[str, Callable[[LabelSpace], NDArray[np.uint8]]] = {
    "trainId": lambda space: space.to_train_ids,
    "labelId": lambda space: space.to_label_ids,
}


@dataclass(frozen=True)
class SaveOptions:
    """Which output files `save_results` writes.

    Attributes:
        out: Output folder.
        kinds: Kinds of output, from `KINDS`; each has a subfolder.
        ids: Ids in masks, a key of `IDS`.
        style: How overlays are drawn.
        x264_preset: Trade-off between speed and size of videos, one of `X264_PRESETS`.
        hardware: Device that encodes overlay and color videos, a key of `HARDWARE_ENCODERS`
            [the CPU].
        file: Exact name of the output file instead of one in `out`: an .mp4 file for one video
            source, or a .png or .jpg file for one image file, with one kind of output.
        tree: Folder whose tree the outputs mirror: a source below it is written to the same
            subfolder of the output.
        as_part: Write videos as NUT files without audio, which are joined later.
        corner: Corner of the legend of a part of a video, if the position of the legend is "auto".
    """

    out: Path
    kinds: tuple[str, ...] = ("overlay",)
    ids: str = "trainId"
    style: OverlayStyle = field(default_factory=OverlayStyle)
    x264_preset: str = X264_PRESETS[0]
    hardware: str | None = None
    file: Path | None = None
    tree: Path | None = None
    as_part: bool = False
    corner: str = "auto"

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind == "none" and len(self.kinds) > 1:
                raise UsageError("none cannot be combined with other kinds of output")
            if kind not in KINDS:
                raise UsageError(f"unknown kind of output {kind!r}; choose from {', '.join(KINDS)}")
        if self.ids not in IDS:
            raise UsageError(f"unknown ids {self.ids!r}; choose from {', '.join(IDS)}")
        if self.x264_preset not in X264_PRESETS:
            raise UsageError(
                f"x264 preset must be one of {', '.join(X264_PRESETS)}, got {self.x264_preset!r}"
            )
        if self.file is None:
            return
        suffix = self.file.suffix.lower()
        if suffix in VIDEO_SUFFIXES and suffix != ".mp4":
            raise UsageError(f"{self.file}: videos are written as MP4; use a name ending in .mp4")
        if suffix not in (".mp4", *OUTPUT_IMAGE_SUFFIXES):
            raise UsageError(
                f"{self.file}: --out must be a folder, an .mp4 file or an image file "
                f"({' '.join(OUTPUT_IMAGE_SUFFIXES)})"
            )
