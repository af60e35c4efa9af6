"""Textures of surfaces: windows, bricks, paving, grass, leaves.

A texture maps `Points` and their base colors (n, 3) to colors (n, 3). Details fade out before they
become smaller than a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.appearances import Appearance
from fada_deploy.synth.mesh import Surface
from fada_deploy.synth.models.furniture import FLOOR_HEIGHT
from fada_deploy.synth.noise import F32, hash_fraction, pulse, sample


@dataclass(frozen=True, eq=False)
class Points:
    """Pixels of one kind of surface, (n,) each.

    `s` and `t` are meters along and up the surface; on the ground, across and along the street.
    `width` and `height` are the size of a pixel on the surface in meters, `seed` the color seed of
    the thing, `light` the intensity of the light on the face.
    """

    s: F32
    t: F32
    width: F32
    height: F32
    seed: NDArray[np.int64]
    light: F32
    appearance: Appearance

    def grain(self, period: float, size: float) -> F32:
        """Return noise with mean 0 and deviation 1.

        It fades out where a pixel is larger than `size` meters.
        """
        fade = np.minimum(1, size / np.maximum(self.width, self.height))
        return np.asarray(sample(self.s, self.t, period) * fade, np.float32)

    def palette_color(self, slot: str, choice: NDArray[np.float64]) -> F32:
        """Return lit palette colors (n, 3) of a slot, selected by `choice` in [0, 1)."""
        colors = np.array(self.appearance.palette[slot], np.float32)
        index = np.minimum((choice * len(colors)).astype(np.intp), len(colors) - 1)
        return np.asarray(colors[index] * self.light[:, None], np.float32)


def _mix(base: F32, other: F32, weight: F32) -> F32:
    return np.asarray(base + (other - base) * weight[:, None], np.float32)


def _road(p: Points, base: F32) -> F32:
    grain = p.appearance.texture * 0.30 * p.grain(3.0, 0.05) + (
        0.02 + p.appearance.texture * 0.35
    ) * p.grain(23.0, 0.6)
    # Two wheel tracks per lane; repaired patches where a coarser pattern is high.
    tracks = 0.03 * np.cos(p.s * np.float32(2 * np.pi / 1.625))
    patch = np.where(
        sample(p.t, p.s, 61.0) > 1.3, np.float32(-0.9 * p.appearance.texture), np.float32(0)
    )
    return np.asarray(base * (1 + grain + tracks + patch)[:, None], np.float32)


def _paint(p: Points, base: F32) -> F32:
    worn = p.appearance.texture * (0.35 * p.grain(2.0, 0.08) - 0.2)
    return np.asarray(base * (1 + worn)[:, None], np.float32)


def _paving(p: Points, base: F32) -> F32:
    size = 0.75
    joints = 1 - pulse(p.s / size, 0.94, p.width / size) * pulse(p.t / size, 0.94, p.height / size)
    i, j = np.floor(p.s / size).astype(np.int64), np.floor(p.t / size).astype(np.int64)
    fade = np.minimum(1, 0.25 / np.maximum(p.width, p.height))
    tile = (hash_fraction(i, j) - 0.5) * fade * (0.07 + 0.3 * p.appearance.texture)
    grain = p.appearance.texture * 0.35 * p.grain(7.0, 0.1)
    return np.asarray(base * (1 - 0.22 * joints + tile + grain)[:, None], np.float32)


def _grass(p: Points, base: F32) -> F32:
    gain = (0.05 + 0.25 * p.appearance.texture) * p.grain(2.2, 0.06)
    gain = gain + (0.05 + 0.4 * p.appearance.texture) * p.grain(17.0, 0.6)
    return np.asarray(base * (1 + gain)[:, None], np.float32)


def _leaf(p: Points, base: F32) -> F32:
    clumps = (0.10 + 0.35 * p.appearance.texture) * p.grain(3.1, 0.12)
    return np.asarray(base * np.clip(1 + clumps, 0.55, 1.5)[:, None], np.float32)


def _brick(p: Points, base: F32) -> F32:
    return np.asarray(base * _bricks(p, 0.10 + 0.5 * p.appearance.texture)[:, None], np.float32)


def _bricks(p: Points, depth: float) -> F32:
    rows = pulse(p.t / 0.25, 0.86, p.height / 0.25)
    shift = np.floor(p.t / 0.25) * np.float32(0.31)
    columns = pulse((p.s + shift) / 0.6, 0.93, p.width / 0.6)
    return np.asarray(
        1 - depth * (1 - rows * columns) + 0.3 * p.appearance.texture * p.grain(5.0, 0.1),
        np.float32,
    )


def _slats(p: Points, base: F32) -> F32:
    slats = pulse(p.s / 0.22, 0.80, p.width / 0.22)
    rails = pulse(p.t / 0.7 - 0.3, 0.18, p.height / 0.7)
    gain = 0.62 + 0.38 * np.maximum(slats, rails * 0.85)
    return np.asarray(base * gain[:, None], np.float32)


def _tiles(p: Points, base: F32) -> F32:
    rows = pulse(p.t / 0.35, 0.8, p.height / 0.35)
    return np.asarray(
        base * (0.86 + 0.14 * rows + p.appearance.texture * 0.5 * p.grain(6.0, 0.2))[:, None],
        np.float32,
    )


def _glass(p: Points, base: F32) -> F32:
    # The upper part reflects the sky.
    sky = np.array(p.appearance.palette["sky_low"][0], np.float32)
    weight = np.clip(0.10 + 0.16 * (p.t - 0.8), 0.05, 0.38).astype(np.float32)
    return _mix(base, np.broadcast_to(sky, base.shape), weight)


def _windows(p: Points, base: F32, *, pitch: F32, duty: F32, doors: bool) -> F32:
    """Set windows floor by floor into a wall; some have a door on the ground floor."""
    a, b = p.s / pitch + (1 - duty) / 2, p.t / np.float32(FLOOR_HEIGHT)
    column, floor = np.floor(a).astype(np.int64), np.floor(b).astype(np.int64)
    across = pulse(a - (1 - duty), duty, p.width / pitch)
    up = pulse(b - np.float32(0.30), 0.50, p.height / FLOOR_HEIGHT)
    frame = pulse(a - (1 - duty) + np.float32(0.06), duty + 0.12, p.width / pitch)
    frame = frame * pulse(b - np.float32(0.25), 0.59, p.height / FLOOR_HEIGHT)
    choice = hash_fraction(column, floor, p.seed)
    trim = p.palette_color("trim", choice)
    pane = p.palette_color("window", choice) * (
        0.78 + 0.45 * hash_fraction(floor, column, p.seed + 1)[:, None]
    )
    # Some windows have a curtain.
    pane = np.where((choice > 0.86)[:, None], pane * 0.55 + trim * 0.4, pane).astype(np.float32)
    result = _mix(base, trim, frame * np.float32(0.75))
    result = _mix(result, pane, across * up)
    if doors:
        door = (floor == 0) & (hash_fraction(column, p.seed + 2) < 0.3)
        weight = np.where(door, frame * (p.t < 2.25) + 0.9 * across * (p.t < 2.15), 0).clip(0, 1)
        result = _mix(
            result, p.palette_color("door", hash_fraction(p.seed + 3)), weight.astype(np.float32)
        )
    return result


def _facade(p: Points, base: F32) -> F32:
    style = hash_fraction(p.seed)
    pitch = (1.7 + 1.6 * style).astype(np.float32)
    duty = (0.42 + 0.25 * hash_fraction(p.seed + 9)).astype(np.float32)
    brick = np.where(
        hash_fraction(p.seed + 4) < 0.5,
        _bricks(p, 0.06 + 0.6 * p.appearance.texture),
        np.float32(1),
    )
    ledge = 1 - 0.14 * pulse(p.t / np.float32(FLOOR_HEIGHT) - 0.02, 0.06, p.height / FLOOR_HEIGHT)
    wall = np.asarray(base * (brick * ledge)[:, None], np.float32)
    return _windows(p, _stain(p, wall), pitch=pitch, duty=duty, doors=True)


def _home(p: Points, base: F32) -> F32:
    pitch = (2.4 + 1.2 * hash_fraction(p.seed)).astype(np.float32)
    duty = np.full_like(pitch, 0.42)
    wall = np.asarray(base * _bricks(p, 0.04 + 0.4 * p.appearance.texture)[:, None], np.float32)
    return _windows(p, _stain(p, wall), pitch=pitch, duty=duty, doors=True)


def _stain(p: Points, base: F32) -> F32:
    foot = (
        1
        - 0.14 * np.exp(-p.t / 0.6)
        - np.float32(0.5 * p.appearance.texture) * np.maximum(0, p.grain(19.0, 0.5) - 0.6) * 0.5
    )
    return np.asarray(base * foot[:, None], np.float32)


def _shops(p: Points, base: F32) -> F32:
    result = _facade(p, base)
    shop = p.t < 3.0
    if not shop.any():
        return result
    width = np.float32(4.2)
    i = np.floor(p.s / width).astype(np.int64)
    sign = p.palette_color("shop", hash_fraction(i, p.seed))
    glass = pulse(p.s / width - 0.06, 0.88, p.width / width) * (p.t > 0.45) * (p.t < 2.35)
    pane = p.palette_color("window", hash_fraction(i, p.seed + 5)) * np.float32(0.9)
    goods = 1 + 0.25 * p.grain(1.7, 0.2) * (p.t < 1.6)
    front = _mix(base * np.float32(0.86), pane * goods[:, None], np.asarray(glass, np.float32))
    letters = (
        0.7
        * pulse(p.s / 0.45, 0.62, p.width / 0.45)
        * (np.abs(p.t - 2.66) < 0.13)
        * (np.abs(p.s / width - i - 0.5) < 0.3)
    )
    board = _mix(sign, p.palette_color("trim", np.zeros(len(p.s))), np.asarray(letters, np.float32))
    front = np.where((p.t > 2.35)[:, None], board, front)
    return np.asarray(np.where(shop[:, None], front, result), np.float32)


TEXTURES: dict[Surface, Callable[[Points, F32], F32]] = {
    Surface.ROAD: _road,
    Surface.PAINT: _paint,
    Surface.PAVING: _paving,
    Surface.GRASS: _grass,
    Surface.LEAF: _leaf,
    Surface.FACADE: _facade,
    Surface.SHOPS: _shops,
    Surface.HOME: _home,
    Surface.BRICK: _brick,
    Surface.SLATS: _slats,
    Surface.TILES: _tiles,
    Surface.GLASS: _glass,
}
