"""Sort the visible things from far to near, as the painter's algorithm needs them."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fada_deploy.synth.camera import FLOATS, Camera
from fada_deploy.synth.things import Band, Thing

# Things further ahead of or behind the camera are not drawn, in meters.
VIEW_DISTANCE, DISTANCE_BEHIND = 320.0, 7.0
_Key = tuple[int, int, int, float]


@dataclass(frozen=True)
class DrawList:
    """Things at one moment in drawing order.

    `params` (T, 7) holds x, y, z, yaw, sx, sy, sz of each.
    """

    things: list[Thing]
    params: FLOATS


def build_draw_list(
    things: Sequence[Thing], borders: Sequence[float], camera: Camera, time: float
) -> DrawList:
    """Select the things that are visible at `time` seconds and sort them into drawing order."""
    order = _Order(borders, camera)
    keys: list[_Key] = []
    chosen, rows = [], []
    for thing in things:
        z = thing.z + thing.vz * time
        front, back = z - thing.reach, z + max(thing.reach, thing.sz / 2)
        # Backdrops and ground are drawn at any distance.
        if back < camera.z - DISTANCE_BEHIND or (
            front > camera.z + VIEW_DISTANCE and thing.band > Band.BACKDROP
        ):
            continue
        keys.append(order.key(thing, front))
        chosen.append(thing)
        yaw = camera.heading if thing.facing else thing.yaw
        x = min(max(thing.x + thing.vx * time, -thing.limit), thing.limit) if thing.vx else thing.x
        rows.append((x, thing.y, z, yaw, thing.sx, thing.sy, thing.sz))
    ranks = sorted(range(len(keys)), key=keys.__getitem__)
    return DrawList([chosen[i] for i in ranks], np.array([rows[i] for i in ranks]))


class _Order:
    """Sort keys: ground first, then slab by slab towards the camera.

    A ray from the camera crosses the slabs one after the other, and within a slab it crosses the
    street in one direction only. What it meets later is drawn first.
    """

    def __init__(self, borders: Sequence[float], camera: Camera) -> None:
        self.borders, self.camera = borders, camera
        self.eye = camera.x + camera.bend.shift_at(camera.z)
        self.directions: dict[tuple[int, int], int] = {}

    def key(self, thing: Thing, front: float) -> _Key:
        if thing.band < Band.BACKDROP:
            return (-1, 0, thing.band, 0.0)
        # A small offset, because lots start exactly at the border of their slab.
        slab = bisect.bisect(self.borders, front + 1e-6)
        side = 1 if thing.x > 0 else -1
        if (slab, side) not in self.directions:
            self.directions[slab, side] = self._direction(slab, thing.x)
        across = (Band.ROAD - thing.band) * side
        return (0, -slab, -self.directions[slab, side] * across, -front)

    def _direction(self, slab: int, x: float) -> int:
        """Return whether rays to x in a slab move right (1) or left (−1) across the street."""
        outwards = 1 if x > 0 else -1
        if not 0 < slab < len(self.borders):
            return outwards
        z = (self.borders[slab - 1] + self.borders[slab]) / 2
        if z - self.camera.z < 10.0:
            return outwards
        ray = (x + self.camera.bend.shift_at(z) - self.eye) / (z - self.camera.z)
        return 1 if ray > self.camera.bend.slope_at(z) else -1
