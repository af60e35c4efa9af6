"""Render a drive through one town as an H.264 video with one label map per frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from random import Random

import av
import numpy as np
from numpy.typing import NDArray

from fada_deploy.common.errors import UsageError
from fada_deploy.common.files import atomic_path
from fada_deploy.common.progress import progress_bar
from fada_deploy.synth.appearances import Appearance, get_appearance
from fada_deploy.synth.camera import Camera
from fada_deploy.synth.dataset import CLIP, first_seed, write_label_map
from fada_deploy.synth.scene import render_view
from fada_deploy.synth.town import VIEW_DISTANCE, Town, build_town
from fada_deploy.synth.traffic import OWN_SPEED
from fada_deploy.synth.weather import Weather

FPS = 25


@dataclass(frozen=True)
class Drive:
    """A camera that drives through a town."""

    town: Town
    camera: Camera
    appearance: Appearance
    weather: Weather

    @classmethod
    def start(
        cls, appearance: str | Appearance, seed: int, *, size_hw: tuple[int, int], seconds: float
    ) -> Drive:
        """Build a town long enough for `seconds` of driving and place the camera at its start."""
        appearance = get_appearance(appearance)
        town = build_town(seed, VIEW_DISTANCE + OWN_SPEED * seconds, is_green=True)
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
        return cls(town, camera, appearance, Weather.sample(appearance, seed))

    def camera_at(self, time: float) -> Camera:
        """Return the camera after `time` seconds.

        It moves forward, sways in its lane and pitches slightly.
        """
        z = self.camera.z + OWN_SPEED * time + 0.8 * math.sin(0.5 * time)
        sway = 0.18 * math.sin(0.45 * time)
        yaw = 0.012 * math.sin(0.37 * time + 1.0)
        pitch = self.camera.focal * 0.0018 * math.sin(2 * math.pi * 0.9 * time)
        u, v = self.camera.center
        heading = math.atan(self.town.bend.slope_at(z)) + yaw
        return replace(
            self.camera, x=self.camera.x + sway, z=z, heading=heading, center=(u, v + pitch)
        )

    def frames(self, count: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """Yield `count` pairs of image (H, W, 3) uint8 RGB and labels (H, W) uint8, at `FPS`."""
        for i in range(count):
            time = i / FPS
            yield render_view(
                self.town, self.camera_at(time), self.appearance, self.weather, time=time, frame=i
            )


def check_video_size(size_hw: tuple[int, int]) -> None:
    """Raise `UsageError` for an odd size: the color planes of H.264 (4:2:0) have half the size."""
    height, width = size_hw
    if height % 2 or width % 2:
        raise UsageError(
            f"width and height of a video must be even, got {width}x{height}; change --size"
        )


def write_clip(
    root: Path,
    seconds: float,
    *,
    size_hw: tuple[int, int],
    seed: int = 0,
) -> None:
    """Write `clip.mp4` in the target appearance and its label maps, `labels/000000.png` and so on.

    The video is H.264 that browsers play; label maps hold Cityscapes labelIds. The town differs
    from those of the data sets rendered with the same `seed`. Raise `UsageError` for an odd size.
    """
    height, width = size_hw
    check_video_size(size_hw)
    drive = Drive.start("target", first_seed(seed, CLIP), size_hw=size_hw, seconds=seconds)
    count = max(1, round(seconds * FPS))
    with (
        progress_bar(count, "rendering the video", unit="frame") as bar,
        atomic_path(root / "clip.mp4") as temporary,
        av.open(str(temporary), "w", options={"movflags": "+faststart"}) as out,
    ):
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for i, (image, labels) in enumerate(drive.frames(count)):
            write_label_map(root / "labels" / f"{i:06d}.png", labels)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            bar.update()
        out.mux(stream.encode(None))
