"""Drive a camera through one town and write what it sees: H.264 video and a label map a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.files import atomic_path
from fada_deploy.synth.camera import Camera
from fada_deploy.synth.dataset import CLIP, first_seed, write_labels
from fada_deploy.synth.looks import Appearance, find_look
from fada_deploy.synth.scene import photograph
from fada_deploy.synth.town import SIGHT, Town, build_town
from fada_deploy.synth.traffic import OWN_SPEED
from fada_deploy.synth.weather import Weather

FPS = 25


@dataclass(frozen=True)
class Drive:
    """A camera on its way through a town; `at` places it."""

    town: Town
    camera: Camera
    look: Appearance
    weather: Weather

    @classmethod
    def begin(
        cls, look: str | Appearance, seed: int, *, size_hw: tuple[int, int], seconds: float
    ) -> Drive:
        """Build a town long enough and stand the camera at its beginning."""
        style = find_look(look)
        town = build_town(seed, SIGHT + OWN_SPEED * seconds, is_green=True)
        rng = Random(seed * 2)
        camera = Camera.place(
            size_hw=size_hw,
            x=town.street.lane(town.street.lanes - 1),
            y=rng.uniform(1.45, 1.65),
            z=2.0,
            yaw=0.0,
            horizon=rng.uniform(0.46, 0.50),
            bend=town.bend,
        )
        return cls(town, camera, style, Weather.draw(style, seed))

    def at(self, time: float) -> Camera:
        """Return the camera `time` seconds in: it drives on, sways in its lane and nods a little."""
        z = self.camera.z + OWN_SPEED * time + 0.8 * math.sin(0.5 * time)
        sway = 0.18 * math.sin(0.45 * time)
        yaw = 0.012 * math.sin(0.37 * time + 1.0)
        nod = self.camera.focal * 0.0018 * math.sin(2 * math.pi * 0.9 * time)
        u, v = self.camera.center
        heading = math.atan(self.town.bend.slope_at(z)) + yaw
        return replace(
            self.camera, x=self.camera.x + sway, z=z, heading=heading, center=(u, v + nod)
        )

    def frames(self, count: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Yield pictures (H, W, 3) uint8 RGB and labels (H, W) uint8, `FPS` a second."""
        for i in range(count):
            time = i / FPS
            yield photograph(self.town, self.at(time), self.look, self.weather, time=time, frame=i)


def check_video_size(size_hw: tuple[int, int]) -> None:
    """Raise `UsageError` for an odd size: H.264's color planes are half the picture."""
    height, width = size_hw
    if height % 2 or width % 2:
        raise UsageError(
            f"a video of {width}x{height} cannot be written; both numbers must be even"
        )


def write_clip(
    root: Path,
    seconds: float,
    *,
    size_hw: tuple[int, int],
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `clip.mp4` (target look, H.264 that browsers play) and `labels/000000.png` … (labelIds).

    The town is in no data set of the same render. Raise `UsageError` for an odd size. `progress` is
    called with 1 after every frame.
    """
    height, width = size_hw
    check_video_size(size_hw)
    drive = Drive.begin("target", first_seed(seed, CLIP), size_hw=size_hw, seconds=seconds)
    with (
        atomic_path(root / "clip.mp4") as temporary,
        av.open(str(temporary), "w", options={"movflags": "+faststart"}) as out,
    ):
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for i, (picture, labels) in enumerate(drive.frames(max(1, round(seconds * FPS)))):
            write_labels(root / "labels" / f"{i:06d}.png", labels)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            if progress:
                progress(1)
        out.mux(stream.encode(None))
