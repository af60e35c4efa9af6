"""Shade a raster: color, sunlight, shadows, textures, sky and haze."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.appearances import SLOTS, Appearance
from fada_deploy.synth.mesh import GROUND
from fada_deploy.synth.noise import F32, hash_fraction, sample
from fada_deploy.synth.raster import SKY, Faces, Raster
from fada_deploy.synth.surfaces import TEXTURES, Points
from fada_deploy.synth.weather import Weather

_IS_GROUND = np.isin(np.arange(256), [int(s) for s in GROUND])
# Depth of the sky, in meters.
MAX_DEPTH = 900.0


@dataclass(frozen=True, eq=False)
class _Geometry:
    """Face number and view space position in meters of every pixel, (H·W,) each."""

    faces: NDArray[np.uint16]
    right: F32
    up: F32
    depth: F32


def shade(
    raster: Raster,
    shadow: NDArray[np.uint8],
    appearance: Appearance,
    weather: Weather,
    sun: tuple[float, float, float],
) -> F32:
    """Return the image (H, W, 3) float32 RGB in 0…255, before camera effects.

    `shadow` is the mask from `render_shadows`, `sun` a unit vector towards the sun in street axes.
    """
    colors, light = _light_faces(raster, appearance, weather, sun)
    height, width = raster.camera.size_hw
    image = _downsample(colors.take(raster.numbers.ravel(), 0), height, width)
    geometry = _geometry(raster)
    pixels = image.reshape(-1, 3)
    surfaces = raster.faces.surfaces.take(geometry.faces)
    for surface, texture in TEXTURES.items():
        index = np.flatnonzero(surfaces == surface)
        if index.size:
            points = _surface_points(
                index, geometry, raster, light, appearance, ground=bool(_IS_GROUND[surface])
            )
            pixels[index] = texture(points, pixels.take(index, 0))
    _apply_shadows(pixels, shadow, _IS_GROUND.take(surfaces), appearance, weather)
    _apply_haze(pixels, geometry, appearance, weather)
    _draw_sky(pixels, geometry, raster, appearance, weather)
    return image


def _light_faces(
    raster: Raster, appearance: Appearance, weather: Weather, sun: tuple[float, float, float]
) -> tuple[F32, F32]:
    """Return the lit color (N, 3) and the light intensity (N,) of every face."""
    faces: Faces = raster.faces
    largest = max(len(appearance.palette[s]) for s in SLOTS)
    table = np.array([(appearance.palette[s] * largest)[:largest] for s in SLOTS], np.float64)
    counts = np.array([len(appearance.palette[s]) for s in SLOTS])
    pick = (hash_fraction(faces.seeds, faces.slots.astype(np.int64)) * counts[faces.slots]).astype(
        np.intp
    )
    base = table[faces.slots, pick]
    spread = (
        np.stack(
            [hash_fraction(faces.seeds + k, faces.slots.astype(np.int64) + 77) for k in (1, 2, 3)],
            1,
        )
        - 0.5
    )
    common = hash_fraction(faces.seeds + 7, faces.slots.astype(np.int64))[:, None] - 0.5
    base *= 1 + appearance.jitter * (0.7 * spread + 1.6 * common)
    towards = raster.camera.rotate(np.array([sun]))[0]
    facing = np.maximum(0, faces.normals @ towards)
    # Sky light: strongest on faces that point up.
    hemisphere = 0.5 + 0.5 * faces.normals[:, 1]
    ambient = appearance.ambient + (1 - appearance.ambient) * 0.5 * hemisphere
    light = ambient * (1 - 0.30 * weather.sun) + 0.62 * weather.sun * facing
    light = np.where(faces.lit, light, 0.92 + 0.08 * weather.sun) * faces.gains
    return (base * light[:, None]).astype(np.float32), light.astype(np.float32)


def _downsample(samples: F32, height: int, width: int) -> F32:
    """Average samples (4·H·W, 3) around the pixel centers: antialiasing of the image."""
    double = samples.reshape(height * 2, width * 2, 3)
    kernel = np.array([0.25, 0.5, 0.25], np.float32)
    mixed = cv2.sepFilter2D(double, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(mixed[::2, ::2])


def _geometry(raster: Raster) -> _Geometry:
    height, width = raster.camera.size_hw
    u0, v0 = raster.camera.center
    numbers = np.ascontiguousarray(raster.centers)
    planes = raster.faces.planes.astype(np.float32)
    u, v = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
    inverse = (
        planes[:, 0].take(numbers) * u + planes[:, 1].take(numbers) * v + planes[:, 2].take(numbers)
    )
    depth = 1 / np.maximum(inverse, np.float32(1 / MAX_DEPTH))
    right = depth * ((u - np.float32(u0)) / np.float32(raster.camera.focal))
    up = depth * ((np.float32(v0) - v) / np.float32(raster.camera.focal))
    return _Geometry(numbers.ravel(), right.ravel(), up.ravel(), depth.ravel())


def _surface_points(
    index: NDArray[np.intp],
    geometry: _Geometry,
    raster: Raster,
    light: F32,
    appearance: Appearance,
    *,
    ground: bool,
) -> Points:
    """Return the surface coordinates of the pixels `index`.

    On the ground they are street coordinates in meters, elsewhere meters along and up the face.
    """
    faces, camera = raster.faces, raster.camera
    number = geometry.faces[index]
    right, up, depth = geometry.right[index], geometry.up[index], geometry.depth[index]
    pixel = depth / np.float32(camera.focal)
    normals = faces.normals.astype(np.float32)
    if ground:
        cos, sin = math.cos(camera.heading), math.sin(camera.heading)
        t = (cos * depth - sin * right + camera.z).astype(np.float32)
        x = cos * right + sin * depth + camera.x + camera.bend.shift_at(camera.z)
        s = (x - camera.bend.shift(t)).astype(np.float32)
        # At a grazing angle a pixel covers a long stretch of the street.
        width_m: F32 = pixel
        height_m: F32 = pixel * depth / np.float32(camera.y)
    else:
        nx, nz = normals[:, 0], normals[:, 2]
        norm = np.maximum(np.sqrt(nx**2 + nz**2), np.float32(1e-6))
        sx, sz = (nz / norm)[number], (-nx / norm)[number]
        origins = faces.origins.astype(np.float32)
        s = (right - origins[:, 0][number]) * sx + (depth - origins[:, 2][number]) * sz
        t = up + np.float32(camera.y)
        distance = np.sqrt(right**2 + depth**2)
        slant = np.abs(nx[number] * right + nz[number] * depth) / np.maximum(
            distance, np.float32(1e-6)
        )
        width_m, height_m = pixel / np.maximum(slant, np.float32(0.05)), pixel
    return Points(s, t, width_m, height_m, faces.seeds[number], light[number], appearance)


def _apply_shadows(
    pixels: F32,
    shadow: NDArray[np.uint8],
    ground: NDArray[np.bool_],
    appearance: Appearance,
    weather: Weather,
) -> None:
    """Darken the ground by the shadow mask; shadows under an overcast sky are softer."""
    strength = np.array([0.0, weather.shadow * min(1.0, 0.25 + weather.sun), 0.45], np.float32)
    sigma = (0.45 + 2.0 * appearance.shadow_softness) * shadow.shape[0] / 192
    dark = cv2.GaussianBlur(strength[shadow], (0, 0), sigma)
    pixels *= (1 - dark.ravel() * ground)[:, None]


def _apply_haze(pixels: F32, geometry: _Geometry, appearance: Appearance, weather: Weather) -> None:
    air = np.array(appearance.palette["sky_low"], np.float32).mean(0)
    transmission = np.exp(-np.float32(weather.haze) * geometry.depth)
    transmission[geometry.faces == SKY] = 1
    pixels += (air - pixels) * (1 - transmission)[:, None]


def _draw_sky(
    pixels: F32, geometry: _Geometry, raster: Raster, appearance: Appearance, weather: Weather
) -> None:
    """Draw the color gradient of the sky, and clouds on a plane high above the street."""
    index = np.flatnonzero(geometry.faces == SKY)
    if not index.size:
        return
    kind = weather.seed % 97
    top, low, cloud = (
        np.array(appearance.palette[s][kind % len(appearance.palette[s])], np.float32)
        for s in ("sky_top", "sky_low", "cloud")
    )
    # Positions in the sky are at depth MAX_DEPTH, so these are slopes of the ray.
    rise = np.maximum(geometry.up[index] / MAX_DEPTH, 0.004).astype(np.float32)
    side = geometry.right[index] / np.float32(MAX_DEPTH)
    color = low + (top - low) * np.minimum(1, rise * np.float32(2.0))[:, None] ** np.float32(0.7)
    heading = np.float32(raster.camera.heading)
    s, t = (side + heading) / (rise + np.float32(0.12)), 1 / (rise + np.float32(0.12))
    pattern = sample(s + np.float32(weather.seed % 13), t, 5.0) * np.float32(0.65)
    pattern += sample(t, s + np.float32(weather.seed % 7), 2.3) * np.float32(0.3)
    cover = np.clip((pattern + np.float32(weather.clouds * 1.6 - 0.9)) * np.float32(0.8), 0, 1)
    cover *= np.minimum(1, rise * 9)
    body = cloud * (np.float32(1) - np.float32(0.10) * np.clip(cover - 0.6, 0, 1))[:, None]
    pixels[index] = color + (body - color) * (cover * np.float32(0.85))[:, None]
