"""Turn a drawing into a picture: color, sunlight, shadow, textures, sky and haze, as the eye would see it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.looks import SLOTS, Appearance
from fada_deploy.synth.mesh import GROUND
from fada_deploy.synth.noise import F32, fraction, sample
from fada_deploy.synth.raster import SKY, Faces, Raster
from fada_deploy.synth.surfaces import TEXTURES, Points
from fada_deploy.synth.weather import Weather

_GROUND_TABLE = np.isin(np.arange(256), [int(s) for s in GROUND])
FURTHEST = 900.0


@dataclass(frozen=True)
class _Geometry:
    """Where every pixel's surface lies, (H·W,) each, in view space meters."""

    faces: NDArray[np.uint16]
    right: F32
    up: F32
    depth: F32


def shade(
    drawing: Raster,
    shadow: NDArray[np.uint8],
    look: Appearance,
    weather: Weather,
    sun: tuple[float, float, float],
) -> F32:
    """Return the picture (H, W, 3) float32 RGB in 0…255 before the camera; `shadow` is of `shadows.shadows`."""
    colors, light = _paint(drawing, look, weather, sun)
    height, width = drawing.camera.size_hw
    picture = _smooth(colors.take(drawing.numbers.ravel(), 0), height, width)
    space = _geometry(drawing)
    flat = picture.reshape(-1, 3)
    surfaces = drawing.faces.surfaces.take(space.faces)
    for surface, texture in TEXTURES.items():
        index = np.flatnonzero(surfaces == surface)
        if index.size:
            points = _points(
                index, space, drawing, light, look, ground=bool(_GROUND_TABLE[surface])
            )
            flat[index] = texture(points, flat.take(index, 0))
    _darken(flat, shadow, _GROUND_TABLE.take(surfaces), look, weather)
    _haze(flat, space, look, weather)
    _sky(flat, space, drawing, look, weather)
    return picture


def _paint(
    drawing: Raster, look: Appearance, weather: Weather, sun: tuple[float, float, float]
) -> tuple[F32, F32]:
    """Return the lit color (N, 3) and the light (N,) of every face."""
    faces: Faces = drawing.faces
    most = max(len(look.palette[s]) for s in SLOTS)
    table = np.array([(look.palette[s] * most)[:most] for s in SLOTS], np.float64)
    counts = np.array([len(look.palette[s]) for s in SLOTS])
    pick = (fraction(faces.seeds, faces.slots.astype(np.int64)) * counts[faces.slots]).astype(
        np.intp
    )
    base = table[faces.slots, pick]
    spread = (
        np.stack(
            [fraction(faces.seeds + k, faces.slots.astype(np.int64) + 77) for k in (1, 2, 3)], 1
        )
        - 0.5
    )
    whole = fraction(faces.seeds + 7, faces.slots.astype(np.int64))[:, None] - 0.5
    base *= 1 + look.jitter * (0.7 * spread + 1.6 * whole)
    towards = drawing.camera.turn(np.array([sun]))[0]
    facing = np.maximum(0, faces.normals @ towards)
    # A face turned away still sees the sky; an overcast sky lights everything from above.
    hemisphere = 0.5 + 0.5 * faces.normals[:, 1]
    ambient = look.ambient + (1 - look.ambient) * 0.5 * hemisphere
    light = ambient * (1 - 0.30 * weather.sun) + 0.62 * weather.sun * facing
    light = np.where(faces.lit, light, 0.92 + 0.08 * weather.sun) * faces.gains
    return (base * light[:, None]).astype(np.float32), light.astype(np.float32)


def _smooth(samples: F32, height: int, width: int) -> F32:
    """Average samples (4·H·W, 3) around the centers of the pixels: antialiasing of the picture alone."""
    double = samples.reshape(height * 2, width * 2, 3)
    kernel = np.array([0.25, 0.5, 0.25], np.float32)
    mixed = cv2.sepFilter2D(double, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return np.ascontiguousarray(mixed[::2, ::2])


def _geometry(drawing: Raster) -> _Geometry:
    height, width = drawing.camera.size_hw
    u0, v0 = drawing.camera.center
    numbers = np.ascontiguousarray(drawing.centers)
    planes = drawing.faces.planes.astype(np.float32)
    u, v = np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]
    inverse = (
        planes[:, 0].take(numbers) * u + planes[:, 1].take(numbers) * v + planes[:, 2].take(numbers)
    )
    depth = 1 / np.maximum(inverse, np.float32(1 / FURTHEST))
    right = depth * ((u - np.float32(u0)) / np.float32(drawing.camera.focal))
    up = depth * ((np.float32(v0) - v) / np.float32(drawing.camera.focal))
    return _Geometry(numbers.ravel(), right.ravel(), up.ravel(), depth.ravel())


def _points(
    index: NDArray[np.intp],
    space: _Geometry,
    drawing: Raster,
    light: F32,
    look: Appearance,
    *,
    ground: bool,
) -> Points:
    """Return surface coordinates: street meters on the ground, else along and up from the first corner."""
    faces, camera = drawing.faces, drawing.camera
    number = space.faces[index]
    right, up, depth = space.right[index], space.up[index], space.depth[index]
    pixel = depth / np.float32(camera.focal)
    normals = faces.normals.astype(np.float32)
    if ground:
        cos, sin = math.cos(camera.heading), math.sin(camera.heading)
        t = (cos * depth - sin * right + camera.z).astype(np.float32)
        x = cos * right + sin * depth + camera.x + camera.bend.shift_at(camera.z)
        s = (x - camera.bend.shift(t)).astype(np.float32)
        # Seen at a flat angle a pixel reaches far along the street.
        wide: F32 = pixel
        high: F32 = pixel * depth / np.float32(camera.y)
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
        wide, high = pixel / np.maximum(slant, np.float32(0.05)), pixel
    return Points(s, t, wide, high, faces.seeds[number], light[number], look)


def _darken(
    flat: F32,
    shadow: NDArray[np.uint8],
    ground: NDArray[np.bool_],
    look: Appearance,
    weather: Weather,
) -> None:
    """Lay shadows on the ground; soft where the sky is gray."""
    strength = np.array([0.0, weather.shadow * min(1.0, 0.25 + weather.sun), 0.45], np.float32)
    sigma = (0.45 + 2.0 * look.shadow_softness) * shadow.shape[0] / 192
    dark = cv2.GaussianBlur(strength[shadow], (0, 0), sigma)
    flat *= (1 - dark.ravel() * ground)[:, None]


def _haze(flat: F32, space: _Geometry, look: Appearance, weather: Weather) -> None:
    air = np.array(look.palette["sky_low"], np.float32).mean(0)
    seen = np.exp(-np.float32(weather.haze) * space.depth)
    seen[space.faces == SKY] = 1
    flat += (air - flat) * (1 - seen)[:, None]


def _sky(flat: F32, space: _Geometry, drawing: Raster, look: Appearance, weather: Weather) -> None:
    """Paint the sky's gradient and clouds on a plane high above."""
    index = np.flatnonzero(space.faces == SKY)
    if not index.size:
        return
    kind = weather.seed % 97
    top, low, cloud = (
        np.array(look.palette[s][kind % len(look.palette[s])], np.float32)
        for s in ("sky_top", "sky_low", "cloud")
    )
    # Both are measured at depth FURTHEST, so they are slopes of the ray.
    rise = np.maximum(space.up[index] / FURTHEST, 0.004).astype(np.float32)
    side = space.right[index] / np.float32(FURTHEST)
    color = low + (top - low) * np.minimum(1, rise * np.float32(2.0))[:, None] ** np.float32(0.7)
    heading = np.float32(drawing.camera.heading)
    s, t = (side + heading) / (rise + np.float32(0.12)), 1 / (rise + np.float32(0.12))
    pattern = sample(s + np.float32(weather.seed % 13), t, 5.0) * np.float32(0.65)
    pattern += sample(t, s + np.float32(weather.seed % 7), 2.3) * np.float32(0.3)
    cover = np.clip((pattern + np.float32(weather.clouds * 1.6 - 0.9)) * np.float32(0.8), 0, 1)
    cover *= np.minimum(1, rise * 9)
    body = cloud * (np.float32(1) - np.float32(0.10) * np.clip(cover - 0.6, 0, 1))[:, None]
    flat[index] = color + (body - color) * (cover * np.float32(0.85))[:, None]
