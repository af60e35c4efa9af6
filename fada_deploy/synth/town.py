"""Lay out a town along one street: lots, sidewalks, street furniture, parked and moving traffic.

The street is divided into slabs: sections along z with one lot on each side. A town depends on its
seed only; the appearance sets its colors.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from fada_deploy.synth.camera import Bend
from fada_deploy.synth.lots import LOTS, Lot, junction
from fada_deploy.synth.mesh import Surface
from fada_deploy.synth.models import furniture, plants
from fada_deploy.synth.street import Street, add_street_furniture
from fada_deploy.synth.things import Band, Thing
from fada_deploy.synth.traffic import (
    add_pedestrians,
    crossing,
    lane_traffic,
    park_cars,
    side_street_traffic,
)

# Length of the street ahead of the camera, in meters.
VIEW_DISTANCE = 150.0
# Probability of each kind of lot, by the character of the town.
CHARACTERS = {
    "center": {"row": 0.74, "house": 0.04, "park": 0.12, "yard": 0.10},
    "suburb": {"row": 0.14, "house": 0.50, "park": 0.22, "yard": 0.14},
    "edge": {"row": 0.24, "house": 0.24, "park": 0.32, "yard": 0.20},
}


@dataclass(frozen=True)
class Town:
    """A street and all things along it.

    `borders` are the z at which slabs begin and end. `sun` is a unit vector towards the sun in
    street axes (x, y, z).
    """

    things: tuple[Thing, ...]
    borders: tuple[float, ...]
    street: Street
    bend: Bend
    sun: tuple[float, float, float]
    seed: int


def build_town(seed: int, length: float = VIEW_DISTANCE, *, is_green: bool = False) -> Town:
    """Build the town of a seed, from z = −12 to `length` meters.

    `is_green` turns all traffic lights green, for a camera that does not stop. The same arguments
    give the same town.
    """
    rng = Random(seed * 2 + 1)
    street = Street.sample(rng)
    bend = Bend(rng.uniform(0.0, 5.0), rng.uniform(45.0, 90.0), rng.uniform(0.0, 6.28))
    character = CHARACTERS[rng.choice(tuple(CHARACTERS))]
    leafless = rng.choice((0.05, 0.15, 0.6))
    borders, things = [-12.0], []
    ground, since_junction = rng.getrandbits(30), rng.randint(0, 2)
    while borders[-1] < length:
        since_junction += 1
        is_junction = since_junction > 2 and rng.random() < 0.28
        z0 = borders[-1]
        z1 = z0 + (rng.uniform(13.0, 16.0) if is_junction else rng.uniform(10.0, 17.0))
        borders.append(z1)
        things += _ground(street, z0, z1, ground, is_junction=is_junction)
        for side in (-1, 1):
            lot = Lot(
                rng,
                side=side,
                line=street.line,
                z0=z0,
                z1=z1,
                leafless=leafless,
                ground=ground,
                is_green=is_green,
            )
            if is_junction:
                junction(lot)
            else:
                LOTS[rng.choices(tuple(character), tuple(character.values()))[0]](lot)
                park_cars(lot, street)
            add_street_furniture(lot, street, is_junction=is_junction)
            add_pedestrians(lot, street, is_junction=is_junction)
            things += lot.things
        if is_junction:
            since_junction = 0
            things += crossing(rng, street, z0, ground) + side_street_traffic(
                rng, street, (z0 + z1) / 2
            )
    things += lane_traffic(rng, street, borders[-1])
    things += _street_end(rng, borders[-1])
    things.sort(key=lambda t: (t.band, -t.z))
    return Town(tuple(things), tuple(borders), street, bend, _sun(rng), seed)


def _sun(rng: Random) -> tuple[float, float, float]:
    side, up, ahead = (
        rng.choice((-1, 1)) * rng.uniform(0.35, 0.8),
        rng.uniform(0.6, 0.9),
        rng.uniform(-0.6, 0.15),
    )
    norm = (side**2 + up**2 + ahead**2) ** 0.5
    return side / norm, up / norm, ahead / norm


def _ground(street: Street, z0: float, z1: float, seed: int, *, is_junction: bool) -> list[Thing]:
    """Return road, curbs, verges, sidewalks and markings of one slab."""
    things: list[Thing] = []
    middle, length = (z0 + z1) / 2, z1 - z0 + 0.02

    def strip(slot: str, label: str, surface: Surface, low: float, high: float, band: Band) -> None:
        mesh = furniture.ground(slot, label, surface)
        things.append(
            Thing((mesh,), (low + high) / 2, middle, band, seed, sx=high - low, sz=length)
        )

    strip("road", "road", Surface.ROAD, -street.curb, street.curb, Band.STREET)
    for side in (-1, 1):
        edges = [
            side * v
            for v in (street.curb, street.curb + 0.18, street.curb + street.verge, street.line)
        ]
        for i, (slot, label, surface) in enumerate(
            (
                ("curb", "sidewalk", Surface.PAINT),
                ("terrain", "terrain", Surface.GRASS),
                ("sidewalk", "sidewalk", Surface.PAVING),
            )
        ):
            if i == 1 and is_junction:
                slot, label, surface = "sidewalk", "sidewalk", Surface.PAVING
            low, high = sorted((edges[i], edges[i + 1]))
            if high - low > 0.01:
                strip(slot, label, surface, low, high, Band.CURB if i != 0 else Band.PAINT)
    if is_junction:
        # The road of the junction is drawn over the curb.
        mesh = furniture.ground("road", "road", Surface.ROAD)
        mouth = Thing(
            (mesh,), 0.0, middle, Band.PAINT, seed, sx=2 * street.line + 0.1, sz=length - 5.0
        )
        things.append(mouth)
    else:
        things += street.markings(z0, z1)
    return things


def _street_end(rng: Random, z: float) -> list[Thing]:
    """Return the end of the view: woods on the horizon, often houses across the street."""
    things = [
        Thing(
            (plants.woods(),),
            0.0,
            z + 60,
            Band.BACKDROP,
            rng.getrandbits(30),
            sx=420.0,
            sy=rng.uniform(9, 20),
        )
    ]
    if rng.random() < 0.6:
        x = -70.0
        while x < 70.0:
            width, height = rng.uniform(9, 16), 3.0 * rng.randint(2, 5) + 0.5
            mesh = furniture.building(
                Surface.FACADE, rng.choice(("flat", "gable")) if height > 9 else "gable"
            )
            things.append(
                Thing(
                    (mesh,),
                    x + width / 2,
                    z + 30,
                    Band.BEHIND,
                    rng.getrandbits(30),
                    sx=width,
                    sy=height,
                    sz=10,
                )
            )
            x += width
    return things
