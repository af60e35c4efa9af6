"""The street: its cross-section, its markings and the furniture of its sidewalks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from fada_deploy.synth.lots import Lot
from fada_deploy.synth.mesh import Mesh, Surface
from fada_deploy.synth.models import furniture
from fada_deploy.synth.things import Band, Thing

# Meters: width of a lane, length of a dash of the center line and of the gap after it.
LANE = 3.25
DASH, GAP = 3.0, 5.0


@dataclass(frozen=True)
class Street:
    """Half a cross-section, in meters from the center line.

    `lanes` is the number of lanes per direction, `lane_edge` where they end, `curb` the x of the
    curb, `verge` the width of the verge and `line` the x at which the lots begin.
    """

    lanes: int
    lane_edge: float
    curb: float
    verge: float
    line: float

    @classmethod
    def sample(cls, rng: Random) -> Street:
        """Sample a random cross-section."""
        lanes = rng.choice((1, 1, 1, 1, 2))
        edge = lanes * LANE
        curb = edge + rng.choice((0.4, 0.4, 2.2))
        verge = rng.choice((0.18, 0.18, 1.9))
        return cls(lanes, edge, curb, verge, curb + verge + rng.uniform(2.2, 4.2))

    @property
    def has_parking(self) -> bool:
        return self.curb - self.lane_edge > 1.0

    def lane(self, index: int) -> float:
        """Return the x of the center of a lane; lane 0 is next to the center line."""
        return (index + 0.5) * LANE

    def markings(self, z0: float, z1: float) -> list[Thing]:
        """Return the markings of a slab: dashes that continue across slabs, and the lane edges."""
        things: list[Thing] = []
        dash = furniture.ground("marking", "road", Surface.PAINT)
        inner = [0.0] if self.lanes == 1 else [-LANE, LANE]
        period = DASH + GAP
        first = math.ceil(z0 / period)
        for k in range(first, math.ceil(z1 / period)):
            for x in inner:
                things.append(Thing((dash,), x, k * period, Band.PAINT, 0, sx=0.14, sz=DASH))
        lines = [s * (self.lane_edge + 0.02) for s in (-1, 1)]
        if self.lanes > 1:
            lines += [-0.12, 0.12]
        for x in lines:
            things.append(Thing((dash,), x, (z0 + z1) / 2, Band.PAINT, 0, sx=0.13, sz=z1 - z0))
        return things


def add_street_furniture(lot: Lot, street: Street, *, is_junction: bool) -> None:
    """Add lamps, trees, signs, traffic lights and bollards to the sidewalk of one lot."""
    rng, side = lot.rng, lot.side
    curbside = side * (street.curb + max(0.55, street.verge * 0.55))

    def add(mesh: Mesh, x: float, z: float, *, mirror: bool = False, size: float = 1.0) -> None:
        lot.things.append(
            Thing(
                (mesh,),
                x,
                z,
                Band.TREES,
                lot.next_seed(),
                sx=-size if mirror else size,
                sy=size,
                facing=True,
            )
        )

    if is_junction:
        _add_signals(lot, street, curbside)
        return
    if rng.random() < 0.55:
        add(furniture.lamp(), curbside, lot.z0 + rng.uniform(0.5, 2.5), mirror=side > 0)
    if rng.random() < 0.62:
        for _ in range(rng.randint(1, 2)):
            band = Band.TREES
            lot.add_plant(
                "leafy",
                offset=abs(curbside) - lot.line + 0.2,
                z=lot.random_z(0.25, 0.95),
                band=band,
                size=1.0,
            )
    if rng.random() < 0.50:
        add(
            rng.choice(furniture.signs()[:-1]),
            curbside,
            lot.random_z(),
            size=rng.uniform(1.1, 1.35),
        )
    if rng.random() < 0.07:
        add(furniture.signs()[-1], side * (street.line - 1.4), lot.random_z(), size=1.1)
    if rng.random() < 0.18:
        z = lot.random_z(0.1, 0.5)
        for i in range(rng.randint(2, 5)):
            add(furniture.bollard(), side * (street.curb + 0.4), z + 1.6 * i)


def _add_signals(lot: Lot, street: Street, curbside: float) -> None:
    rng, side = lot.rng, lot.side
    lit = rng.choice((0, 0, 2, 1))
    if lot.is_green:
        lit = 0
    for z, chance in ((lot.z0 + 1.2, 1.0 if side > 0 else 0.5), (lot.z1 - 1.2, 0.6)):
        if rng.random() < chance:
            post, arm = furniture.signals()[lit]
            mesh = arm if side > 0 and rng.random() < 0.5 else post
            size = 1.3
            lot.things.append(
                Thing(
                    (mesh,),
                    curbside,
                    z,
                    Band.TREES,
                    lot.next_seed(),
                    sx=-size if side > 0 else size,
                    sy=size,
                    facing=True,
                )
            )
    if rng.random() < 0.6:
        x = side * (street.line - 0.8)
        lot.things.append(
            Thing(
                (rng.choice(furniture.signs()[:-1]),),
                x,
                lot.z1 - 0.9,
                Band.WALK,
                lot.next_seed(),
                facing=True,
            )
        )
