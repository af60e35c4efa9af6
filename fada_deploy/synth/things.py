"""What stands or moves in a town: a mesh with a place, a size and a speed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fada_deploy.synth.mesh import Mesh


class Band(IntEnum):
    """Where across the street a thing stands, from far to near; within a slab this is the drawing order.

    A ray from a camera in the street only ever moves outwards, so what stands further in hides
    what stands further out. Ground is drawn before everything, by its layer.
    """

    LAND = -6
    STREET = -5
    KERB = -4
    PAINT = -3
    BACKDROP = 0
    BEHIND = 1
    HOUSE = 2
    ROOF = 3
    GARDEN = 4
    BORDER = 5
    WALK = 6
    TREES = 7
    PARKED = 8
    ROAD = 9


@dataclass(slots=True)
class Thing:
    """A mesh at (x, y, z) street meters, scaled, then turned by `yaw` (radians to the right).

    Several meshes are the phases of a stride, changed `rate` times a second. `facing` things turn
    to the camera instead. `vx`, `vz` are m/s; sideways it
    goes no further than ±`limit`. `reach` is how far it comes
    towards the camera from z, along the street, `seed`
    decides the colors.
    """

    meshes: tuple[Mesh, ...]
    x: float
    z: float
    band: Band
    seed: int
    y: float = 0.0
    yaw: float = 0.0
    sx: float = 1.0
    sy: float = 1.0
    sz: float = 1.0
    facing: bool = False
    reach: float = 0.0
    vx: float = 0.0
    vz: float = 0.0
    rate: float = 0.0
    limit: float = 60.0

    def mesh_at(self, time: float) -> Mesh:
        """Return the mesh to draw `time` seconds in."""
        if len(self.meshes) == 1:
            return self.meshes[0]
        return self.meshes[int(self.seed + time * self.rate) % len(self.meshes)]
