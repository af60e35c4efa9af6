"""Render one street scene, picture and labels: `render("source", seed=1)`."""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.camera import Camera
from fada_deploy.synth.looks import Appearance, find_look
from fada_deploy.synth.optics import develop
from fada_deploy.synth.placing import place
from fada_deploy.synth.raster import Raster, draw
from fada_deploy.synth.shade import shade
from fada_deploy.synth.shadows import shadows
from fada_deploy.synth.town import Town, build_town
from fada_deploy.synth.weather import Weather

DEFAULT_SIZE_HW = (192, 320)


def render(
    look: str | Appearance, seed: int, size_hw: tuple[int, int] = DEFAULT_SIZE_HW
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render the scene of a seed: picture (H, W, 3) uint8 RGB and labels (H, W) uint8 Cityscapes-19 indices.

    One seed gives one town and one label map, whatever the look; the same look and seed give the
    same bits.
    """
    style = find_look(look)
    town = build_town(seed)
    camera = stand(town, size_hw, Random(seed * 2))
    return photograph(town, camera, style, Weather.draw(style, seed))


def stand(town: Town, size_hw: tuple[int, int], rng: Random) -> Camera:
    """Stand a camera in the outer lane, as if behind a windscreen."""
    x = town.street.lane(town.street.lanes - 1) + rng.uniform(-0.5, 0.5)
    yaw = rng.uniform(-0.05, 0.05) if rng.random() < 0.8 else rng.uniform(-0.28, 0.28)
    return Camera.place(
        size_hw=size_hw,
        x=x,
        y=rng.uniform(1.4, 1.75),
        z=rng.uniform(0.0, 8.0),
        yaw=yaw,
        horizon=rng.uniform(0.45, 0.52),
        bend=town.bend,
    )


def photograph(
    town: Town,
    camera: Camera,
    look: Appearance,
    weather: Weather,
    *,
    time: float = 0.0,
    frame: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a town `time` seconds in: picture (H, W, 3) uint8 RGB and labels (H, W) uint8."""
    drawing, shadow = sketch(town, camera, time=time)
    return develop(shade(drawing, shadow, look, weather, town.sun), weather, frame), drawing.labels


def sketch(town: Town, camera: Camera, *, time: float = 0.0) -> tuple[Raster, NDArray[np.uint8]]:
    """Draw a town without any look: faces, and shadows (H, W) uint8."""
    placed = place(town.things, town.borders, camera, time)
    return draw(placed, camera, time), shadows(placed, camera, town.sun, time)
