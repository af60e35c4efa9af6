"""What lines the street: rows of shops, houses with gardens, parks and walled yards, one lot at a time."""

from __future__ import annotations

import math
from random import Random

from fada_deploy.synth.mesh import Surface
from fada_deploy.synth.models import furniture, plants
from fada_deploy.synth.things import Band, Thing

DEEP = 46.0


class Lot:
    """One side of one slab of the street: from `z0` to `z1`, outwards from x = `side`·`line`."""

    def __init__(
        self,
        rng: Random,
        *,
        side: int,
        line: float,
        z0: float,
        z1: float,
        bare: float,
        ground: int,
        is_green: bool,
    ) -> None:
        self.rng, self.side, self.line, self.z0, self.z1, self.bare = rng, side, line, z0, z1, bare
        self.ground, self.is_green = ground, is_green
        self.length, self.middle = z1 - z0, (z0 + z1) / 2
        self.things: list[Thing] = []

    def seed(self) -> int:
        """Return a seed for one thing's colors."""
        return self.rng.getrandbits(30)

    def land(
        self, slot: str, label: str, surface: Surface, *, low: float = 0.0, high: float = DEEP
    ) -> None:
        """Lay ground from `low` to `high` meters behind the lot line."""
        mesh = furniture.ground(slot, label, surface)
        x = self.side * (self.line + (low + high) / 2)
        self.things.append(
            Thing(
                (mesh,),
                x,
                self.middle,
                Band.LAND,
                self.seed(),
                sx=high - low,
                sz=self.length + 0.02,
            )
        )

    def building(
        self,
        surface: Surface,
        roof: str,
        *,
        back: float,
        deep: float,
        high: float,
        gap: float = 0.0,
        band: Band = Band.HOUSE,
    ) -> None:
        """Build `back` meters behind the line, `deep` and `high`, leaving `gap` meters at each end."""
        mesh = furniture.building(surface, roof)
        x, length = self.side * (self.line + back + deep / 2), self.length - 2 * gap
        self.things.append(
            Thing(
                (mesh,),
                x,
                self.middle,
                band,
                self.seed(),
                sx=deep,
                sy=high,
                sz=length,
                reach=length / 2,
            )
        )
        if roof != "flat" and band == Band.HOUSE and self.rng.random() < 0.6:
            z = self.middle + self.rng.uniform(-0.3, 0.3) * length
            x = self.side * (self.line + back + deep * 0.62)
            self.things.append(
                Thing((furniture.chimney(),), x, z, Band.ROOF, self.seed(), y=high * 1.22)
            )

    def plant(self, kind: str, *, back: float, z: float, band: Band, size: float = 1.0) -> None:
        """Plant a tree or bush `back` meters behind the line (in front of it where negative)."""
        rng = self.rng
        if kind == "leafy" and rng.random() < self.bare:
            kind = "bare"
        mesh = rng.choice(plants.trees()[kind])
        size *= rng.uniform(0.85, 1.2)
        flip = size if rng.random() < 0.5 else -size
        x = self.side * (self.line + back)
        self.things.append(Thing((mesh,), x, z, band, self.seed(), sx=flip, sy=size, facing=True))

    def border(self, kind: str, *, high: float, back: float = 0.0) -> None:
        """Put a wall, fence or hedge along the line."""
        meshes = {
            "wall": furniture.barrier("wall", "wall", Surface.BRICK),
            "fence": furniture.barrier("fence", "fence", Surface.SLATS),
            "hedge": plants.hedge(),
        }
        thick = {"wall": 0.3, "fence": 0.08, "hedge": 0.9}[kind]
        x = self.side * (self.line + back + thick / 2)
        self.things.append(
            Thing(
                (meshes[kind],),
                x,
                self.middle,
                Band.BORDER,
                self.seed(),
                sx=thick,
                sy=high,
                sz=self.length,
                reach=self.length / 2,
            )
        )

    def along(self, low: float = 0.08, high: float = 0.92) -> float:
        """Return a random z inside the lot."""
        return self.z0 + self.rng.uniform(low, high) * self.length


def _behind(lot: Lot, back: float) -> None:
    rng = lot.rng
    if rng.random() < 0.45:
        high = 3.0 * rng.randint(2, 5) + 0.5
        lot.building(
            Surface.FACADE,
            "flat" if high > 9 else "ridge",
            back=back,
            deep=9,
            high=high,
            band=Band.BEHIND,
        )
    else:
        for _ in range(3):
            lot.plant(
                "leafy",
                back=back + rng.uniform(0, 6),
                z=lot.along(0, 1),
                band=Band.BEHIND,
                size=1.5,
            )


def row(lot: Lot) -> None:
    """Build a terrace at the pavement: shops below, flats above."""
    rng = lot.rng
    storeys = rng.randint(2, 5)
    roof = rng.choice(("flat", "ridge", "ridge")) if storeys < 4 else "flat"
    surface = Surface.SHOPS if rng.random() < 0.65 else Surface.FACADE
    lot.land("sidewalk", "sidewalk", Surface.PAVING)
    lot.building(surface, roof, back=0.0, deep=11.0, high=3.0 * storeys + 0.5)


def house(lot: Lot) -> None:
    """Build a house behind a garden with a fence, wall or hedge."""
    rng = lot.rng
    lot.land("terrain", "terrain", Surface.GRASS)
    _behind(lot, 24.0)
    back, deep = rng.uniform(3.5, 7.5), rng.uniform(7.5, 10.0)
    roof = rng.choice(("gable", "ridge"))
    lot.building(
        Surface.HOME,
        roof,
        back=back,
        deep=deep,
        high=3.0 * rng.randint(1, 2) + 0.4,
        gap=rng.uniform(0.8, 2.2),
    )
    kind = rng.choice(("fence", "fence", "fence", "wall", "hedge"))
    if kind:
        lot.border(kind, high=rng.uniform(1.0, 1.8))
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("leafy", "leafy", "conifer", "bush"))
        lot.plant(
            kind, back=rng.uniform(1.0, back - 0.8), z=lot.along(), band=Band.GARDEN, size=0.75
        )


def park(lot: Lot) -> None:
    """Lay a lawn with trees."""
    rng = lot.rng
    lot.land("terrain", "terrain", Surface.GRASS)
    _behind(lot, 22.0)
    for back in sorted((rng.uniform(1.5, 20.0) for _ in range(rng.randint(2, 5))), reverse=True):
        kind = rng.choice(("leafy", "leafy", "leafy", "conifer", "bush"))
        band = Band.HOUSE if back > 9 else Band.GARDEN
        lot.plant(kind, back=back, z=lot.along(), band=band, size=1.1)
    kind = rng.choice(("fence", "fence", "wall", ""))
    if kind:
        lot.border(kind, high=rng.uniform(0.7, 1.2))


def yard(lot: Lot) -> None:
    """Hide a yard behind a high wall or fence."""
    rng = lot.rng
    lot.land("sidewalk", "sidewalk", Surface.PAVING)
    _behind(lot, 14.0)
    for _ in range(rng.randint(1, 2)):
        lot.plant("leafy", back=rng.uniform(2.0, 5.0), z=lot.along(), band=Band.GARDEN)
    lot.border(rng.choice(("wall", "fence")), high=rng.uniform(1.8, 2.8))


def junction(lot: Lot) -> None:
    """Let a side street in."""
    rng = lot.rng
    lot.land("sidewalk", "sidewalk", Surface.PAVING)
    mesh = furniture.ground("road", "road", Surface.ROAD)
    wide = lot.length - 5.0
    lot.things.append(
        Thing(
            (mesh,), lot.side * (lot.line + 30), lot.middle, Band.STREET, lot.ground, sx=75, sz=wide
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
            lot.seed(),
            sx=60.0,
            sy=rng.uniform(7, 12),
            yaw=math.pi / 2,
        )
    )


LOTS = {"row": row, "house": house, "park": park, "yard": yard}
