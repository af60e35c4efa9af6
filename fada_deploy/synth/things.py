"""Things in a town, standing or moving: a mesh with a position, a size and a velocity."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from fada_deploy.synth.mesh import Mesh


class Band(IntEnum):
    """Position across the street, from far to near; the drawing order within a slab.

    A ray from a camera in the street moves outwards, so that things closer to the center line
    occlude those further out. Ground has negative values and is drawn first, layer by layer.
    """

    LAND = -6
    STREET = -5
    CURB = -4
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
    """A mesh at (x, y, z) in street meters: scaled, then rotated by `yaw` (radians to the right).

    Several meshes are the phases of an animation, advanced `rate` times per second. `facing` things
    turn towards the camera instead of by `yaw`. `vx` and `vz` are in m/s; x stays within ±`limit`.
    `reach` is the extent towards the camera from z, along the street. `seed` selects the colors.
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
        """Return the mesh to draw at `time` seconds."""
        if len(self.meshes) == 1:
            return self.meshes[0]
        return self.meshes[int(self.seed + time * self.rate) % len(self.meshes)]
