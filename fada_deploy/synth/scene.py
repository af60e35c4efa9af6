"""Render one street scene, image and labels: `render("source", seed=1)`."""

from __future__ import annotations

from random import Random

import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.appearances import Appearance, get_appearance, random_appearance
from fada_deploy.synth.camera import Camera
from fada_deploy.synth.camera_effects import apply_camera_effects
from fada_deploy.synth.draw_list import build_draw_list
from fada_deploy.synth.raster import Raster, rasterize
from fada_deploy.synth.shade import shade
from fada_deploy.synth.shadows import render_shadows
from fada_deploy.synth.town import Town, build_town
from fada_deploy.synth.weather import Weather

DEFAULT_SIZE_HW = (192, 320)


def render(
    appearance: str | Appearance, seed: int, size_hw: tuple[int, int] = DEFAULT_SIZE_HW
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render one scene: image (H, W, 3) uint8 RGB and labels (H, W) uint8, Cityscapes-19 indices.

    `appearance` is "source", "target", "random" or an `Appearance`. A seed gives the same town in
    every appearance, and the same label map in all but "random", whose cameras differ more. The
    same arguments give bit-identical results.
    """
    town, rng = build_town(seed), Random(seed * 2)
    if appearance == "random":
        appearance, camera = random_appearance(seed), place_random_camera(town, size_hw, rng)
    else:
        appearance, camera = get_appearance(appearance), place_camera(town, size_hw, rng)
    return render_view(town, camera, appearance, Weather.sample(appearance, seed))


def place_camera(town: Town, size_hw: tuple[int, int], rng: Random) -> Camera:
    """Place a camera in the outer lane at windshield height, with random offset and heading."""
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


def place_random_camera(town: Town, size_hw: tuple[int, int], rng: Random) -> Camera:
    """Place a camera in the outer lane, with a random height, heading, horizon and focal length."""
    return Camera.place(
        size_hw=size_hw,
        x=town.street.lane(town.street.lanes - 1) + rng.uniform(-0.8, 0.8),
        y=rng.uniform(1.1, 2.2),
        z=rng.uniform(0.0, 8.0),
        yaw=rng.gauss(0.0, 0.08),
        horizon=rng.uniform(0.38, 0.56),
        focal=rng.uniform(0.8, 1.5),
        bend=town.bend,
    )


def render_view(
    town: Town,
    camera: Camera,
    appearance: Appearance,
    weather: Weather,
    *,
    time: float = 0.0,
    frame: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render a town at `time` seconds: image (H, W, 3) uint8 RGB and labels (H, W) uint8.

    `frame` varies the sensor noise.
    """
    raster, shadow = render_raster(town, camera, time=time)
    image = shade(raster, shadow, appearance, weather, town.sun)
    return apply_camera_effects(image, weather, frame), raster.labels


def render_raster(
    town: Town, camera: Camera, *, time: float = 0.0
) -> tuple[Raster, NDArray[np.uint8]]:
    """Return the raster and the shadow mask (H, W) uint8, which have no appearance yet."""
    draw_list = build_draw_list(town.things, town.borders, camera, time)
    return rasterize(draw_list, camera, time), render_shadows(draw_list, camera, town.sun, time)
