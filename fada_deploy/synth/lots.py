"""The lots along the street: shops, houses with gardens, parks, walled yards and junctions."""

from __future__ import annotations

import math
from random import Random

from fada_deploy.synth.mesh import Surface
from fada_deploy.synth.models import furniture, plants
from fada_deploy.synth.things import Band, Thing

# In meters.
LOT_DEPTH = 46.0


class Lot:
    """One side of one slab of the street, from `z0` to `z1`, outwards from x = `side`·`line`.

    `leafless` is the probability that a leafy tree has no leaves, `ground` the color seed of the
    street, `is_green` whether traffic lights are green.
    """

    def __init__(
        self,
        rng: Random,
        *,
        side: int,
        line: float,
        z0: float,
        z1: float,
        leafless: float,
        ground: int,
        is_green: bool,
    ) -> None:
        self.rng, self.side, self.line = rng, side, line
        self.z0, self.z1 = z0, z1
        self.leafless, self.ground, self.is_green = leafless, ground, is_green
        self.length, self.middle = z1 - z0, (z0 + z1) / 2
        self.things: list[Thing] = []

    def next_seed(self) -> int:
        """Return a seed for the colors of one thing."""
        return self.rng.getrandbits(30)

    def add_ground(self, slot: str, label: str, surface: Surface) -> None:
        """Add the ground of the lot."""
        mesh = furniture.ground(slot, label, surface)
        x = self.side * (self.line + LOT_DEPTH / 2)
        self.things.append(
            Thing(
                (mesh,),
                x,
                self.middle,
                Band.LAND,
                self.next_seed(),
                sx=LOT_DEPTH,
                sz=self.length + 0.02,
            )
        )

    def add_building(
        self,
        surface: Surface,
        roof: str,
        *,
        offset: float,
        depth: float,
        height: float,
        gap: float = 0.0,
        band: Band = Band.HOUSE,
    ) -> None:
        """Add a building `offset` meters behind the lot line, leaving `gap` meters at each end."""
        mesh = furniture.building(surface, roof)
        x, length = self.side * (self.line + offset + depth / 2), self.length - 2 * gap
        self.things.append(
            Thing(
                (mesh,),
                x,
                self.middle,
                band,
                self.next_seed(),
                sx=depth,
                sy=height,
                sz=length,
                reach=length / 2,
            )
        )
        if roof != "flat" and band == Band.HOUSE and self.rng.random() < 0.6:
            z = self.middle + self.rng.uniform(-0.3, 0.3) * length
            x = self.side * (self.line + offset + depth * 0.62)
            self.things.append(
                Thing((furniture.chimney(),), x, z, Band.ROOF, self.next_seed(), y=height * 1.22)
            )

    def add_plant(
        self, kind: str, *, offset: float, z: float, band: Band, size: float = 1.0
    ) -> None:
        """Add a tree or bush `offset` meters behind the lot line.

        A negative offset is in front of it.
        """
        rng = self.rng
        if kind == "leafy" and rng.random() < self.leafless:
            kind = "leafless"
        mesh = rng.choice(plants.trees()[kind])
        size *= rng.uniform(0.85, 1.2)
        flip = size if rng.random() < 0.5 else -size
        x = self.side * (self.line + offset)
        self.things.append(
            Thing((mesh,), x, z, band, self.next_seed(), sx=flip, sy=size, facing=True)
        )

    def add_border(self, kind: str, *, height: float) -> None:
        """Add a wall, fence or hedge along the lot line."""
        meshes = {
            "wall": furniture.barrier("wall", "wall", Surface.BRICK),
            "fence": furniture.barrier("fence", "fence", Surface.SLATS),
            "hedge": plants.hedge(),
        }
        thickness = {"wall": 0.3, "fence": 0.08, "hedge": 0.9}[kind]
        x = self.side * (self.line + thickness / 2)
        self.things.append(
            Thing(
                (meshes[kind],),
                x,
                self.middle,
                Band.BORDER,
                self.next_seed(),
                sx=thickness,
                sy=height,
                sz=self.length,
                reach=self.length / 2,
            )
        )

    def random_z(self, low: float = 0.08, high: float = 0.92) -> float:
        """Return a random z in the lot, between the fractions `low` and `high` of its length."""
        return self.z0 + self.rng.uniform(low, high) * self.length


def _add_background(lot: Lot, offset: float) -> None:
    rng = lot.rng
    if rng.random() < 0.45:
        height = 3.0 * rng.randint(2, 5) + 0.5
        lot.add_building(
            Surface.FACADE,
            "flat" if height > 9 else "ridge",
            offset=offset,
            depth=9,
            height=height,
            band=Band.BEHIND,
        )
    else:
        for _ in range(3):
            lot.add_plant(
                "leafy",
                offset=offset + rng.uniform(0, 6),
                z=lot.random_z(0, 1),
                band=Band.BEHIND,
                size=1.5,
            )


def row(lot: Lot) -> None:
    """Add a row of buildings at the sidewalk, many with shops on the ground floor."""
    rng = lot.rng
    floors = rng.randint(2, 5)
    roof = rng.choice(("flat", "ridge", "ridge")) if floors < 4 else "flat"
    surface = Surface.SHOPS if rng.random() < 0.65 else Surface.FACADE
    lot.add_ground("sidewalk", "sidewalk", Surface.PAVING)
    lot.add_building(surface, roof, offset=0.0, depth=11.0, height=3.0 * floors + 0.5)


def house(lot: Lot) -> None:
    """Add a house with a garden and a fence, wall or hedge."""
    rng = lot.rng
    lot.add_ground("terrain", "terrain", Surface.GRASS)
    _add_background(lot, 24.0)
    offset, depth = rng.uniform(3.5, 7.5), rng.uniform(7.5, 10.0)
    roof = rng.choice(("gable", "ridge"))
    lot.add_building(
        Surface.HOME,
        roof,
        offset=offset,
        depth=depth,
        height=3.0 * rng.randint(1, 2) + 0.4,
        gap=rng.uniform(0.8, 2.2),
    )
    kind = rng.choice(("fence", "fence", "fence", "wall", "hedge"))
    lot.add_border(kind, height=rng.uniform(1.0, 1.8))
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("leafy", "leafy", "conifer", "bush"))
        lot.add_plant(
            kind,
            offset=rng.uniform(1.0, offset - 0.8),
            z=lot.random_z(),
            band=Band.GARDEN,
            size=0.75,
        )


def park(lot: Lot) -> None:
    """Add a lawn with trees."""
    rng = lot.rng
    lot.add_ground("terrain", "terrain", Surface.GRASS)
    _add_background(lot, 22.0)
    for offset in sorted((rng.uniform(1.5, 20.0) for _ in range(rng.randint(2, 5))), reverse=True):
        kind = rng.choice(("leafy", "leafy", "leafy", "conifer", "bush"))
        band = Band.HOUSE if offset > 9 else Band.GARDEN
        lot.add_plant(kind, offset=offset, z=lot.random_z(), band=band, size=1.1)
    kind = rng.choice(("fence", "fence", "wall", ""))
    if kind:
        lot.add_border(kind, height=rng.uniform(0.7, 1.2))


def yard(lot: Lot) -> None:
    """Add a yard behind a high wall or fence."""
    rng = lot.rng
    lot.add_ground("sidewalk", "sidewalk", Surface.PAVING)
    _add_background(lot, 14.0)
    for _ in range(rng.randint(1, 2)):
        lot.add_plant("leafy", offset=rng.uniform(2.0, 5.0), z=lot.random_z(), band=Band.GARDEN)
    lot.add_border(rng.choice(("wall", "fence")), height=rng.uniform(1.8, 2.8))


def junction(lot: Lot) -> None:
    """Add a side street that joins the street."""
    rng = lot.rng
    lot.add_ground("sidewalk", "sidewalk", Surface.PAVING)
    mesh = furniture.ground("road", "road", Surface.ROAD)
    width = lot.length - 5.0
    lot.things.append(
        Thing(
            (mesh,),
            lot.side * (lot.line + 30),
            lot.middle,
            Band.STREET,
            lot.ground,
            sx=75,
            sz=width,
        )
    )
    dash = furniture.ground("marking", "road", Surface.PAINT)
    for i in range(6):
        x = lot.side * (lot.line + 1.5 + 5 * i)
        lot.things.append(Thing((dash,), x, lot.middle, Band.PAINT, 0, sx=2.2, sz=0.14))
    woods = plants.woods()
    lot.things.append(
        Thing(
            (woods,),
            lot.side * (lot.line + 62),
            lot.middle,
            Band.BACKDROP,
            lot.next_seed(),
            sx=60.0,
            sy=rng.uniform(7, 12),
            yaw=math.pi / 2,
        )
    )


LOTS = {"row": row, "house": house, "park": park, "yard": yard}
