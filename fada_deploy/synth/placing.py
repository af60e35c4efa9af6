"""Put the things in sight in drawing order, far to near, so that painting one over the other is right."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fada_deploy.synth.camera import FLOATS, Camera
from fada_deploy.synth.things import Band, Thing

SIGHT, BEHIND = 320.0, 7.0
_Key = tuple[int, int, int, float]


@dataclass(frozen=True)
class Placed:
    """Things at one moment: params (T, 7) x, y, z, yaw, sx, sy, sz, in drawing order."""

    things: list[Thing]
    params: FLOATS


def place(things: Sequence[Thing], borders: Sequence[float], camera: Camera, time: float) -> Placed:
    """Choose the things in sight `time` seconds in and put them in drawing order."""
    order = _Order(borders, camera)
    keys: list[_Key] = []
    chosen, rows = [], []
    for thing in things:
        z = thing.z + thing.vz * time
        front, back = z - thing.reach, z + max(thing.reach, thing.sz / 2)
        # Backdrops are seen from any distance, and ground begins wherever it likes.
        if back < camera.z - BEHIND or (front > camera.z + SIGHT and thing.band > Band.BACKDROP):
            continue
        keys.append(order.key(thing, front))
        chosen.append(thing)
        yaw = camera.heading if thing.facing else thing.yaw
        x = min(max(thing.x + thing.vx * time, -thing.limit), thing.limit) if thing.vx else thing.x
        rows.append((x, thing.y, z, yaw, thing.sx, thing.sy, thing.sz))
    ranks = sorted(range(len(keys)), key=keys.__getitem__)
    return Placed([chosen[i] for i in ranks], np.array([rows[i] for i in ranks]))


class _Order:
    """Sort keys: ground first, then slab by slab towards the camera, across the street within a slab.

    A ray crosses the slabs one after the other, and within a slab it crosses the street one way
    only: whatever it meets later is drawn sooner.
    """

    def __init__(self, borders: Sequence[float], camera: Camera) -> None:
        self.borders, self.camera = borders, camera
        self.eye = camera.x + camera.bend.shift_at(camera.z)
        self.ways: dict[tuple[int, int], int] = {}

    def key(self, thing: Thing, front: float) -> _Key:
        if thing.band < Band.BACKDROP:
            return (-1, 0, thing.band, 0.0)
        # A hair further, since lots begin exactly at their slab's border.
        slab = bisect.bisect(self.borders, front + 1e-6)
        side = 1 if thing.x > 0 else -1
        if (slab, side) not in self.ways:
            self.ways[slab, side] = self._way(slab, thing.x)
        across = (Band.ROAD - thing.band) * side
        return (0, -slab, -self.ways[slab, side] * across, -front)

    def _way(self, slab: int, x: float) -> int:
        """Return whether rays to x in a slab move to the right of the street (1) or to its left (−1)."""
        outwards = 1 if x > 0 else -1
        if not 0 < slab < len(self.borders):
            return outwards
        z = (self.borders[slab - 1] + self.borders[slab]) / 2
        if z - self.camera.z < 10.0:
            return outwards
        ray = (x + self.camera.bend.shift_at(z) - self.eye) / (z - self.camera.z)
        return 1 if ray > self.camera.bend.slope_at(z) else -1
