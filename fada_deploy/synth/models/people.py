"""People, riders, bicycles and motorcycles: flat figures that face the camera."""

from __future__ import annotations

import math
from functools import lru_cache

from fada_deploy.synth.mesh import Mesh, MeshBuilder, bar, disc, ring

PHASES = 8


def _head(b: MeshBuilder, x: float, y: float, *, helmet: bool = False, back: bool = False) -> None:
    b.add_face(disc((x, y, 0), 0.125, sides=10, flat=0.86), "skin")
    if helmet:
        b.add_face(
            [p for p in disc((x, y + 0.02, 0), 0.155, sides=12) if p[1] > y - 0.03], "helmet"
        )
    elif back:
        b.add_face(disc((x, y + 0.02, 0), 0.125, sides=10, flat=0.9), "hair")
    else:
        b.add_face(
            [p for p in disc((x, y + 0.015, 0), 0.135, sides=12, flat=0.92) if p[1] > y + 0.01],
            "hair",
        )


def _walker(phase: float, *, side: bool, skirt: bool, bag: bool) -> Mesh:
    b = MeshBuilder("person")
    swing = math.sin(phase)
    reach = 0.30 * swing if side else 0.0
    lift = 0.10 * max(0.0, swing), 0.10 * max(0.0, -swing)
    spread = 0.03 if side else 0.11
    knee = 0.1 * reach
    for sign, up, gain in ((-1, lift[0], 0.82), (1, lift[1], 1.0)):
        foot = sign * (spread + reach) if not side else sign * reach
        hip = sign * 0.09
        b.add_face(
            bar((hip, 0.92), (foot * 0.55 + knee, 0.48 + up / 2), (0.20, 0.15)),
            "trousers",
            gain=gain,
        )
        b.add_face(
            bar((foot * 0.55 + knee, 0.50 + up / 2), (foot, 0.08 + up), (0.15, 0.11)),
            "trousers",
            gain=gain,
        )
        toe = 0.10 if side else 0.03 * sign
        b.add_face(
            bar((foot - 0.06, 0.04 + up), (foot + 0.09 + toe, 0.04 + up), (0.10, 0.08)), "dark"
        )
    if skirt:
        b.add_face(
            [(-0.17, 0.98, 0), (0.17, 0.98, 0), (0.26, 0.50, 0), (-0.26, 0.50, 0)],
            "trousers",
            gain=1.1,
        )
    arm = 0.30 * swing if side else 0.06 * swing
    wide = 0.15 if side else 0.22
    b.add_face(bar((-wide * 0.9, 1.42), (-wide * 1.15 - arm, 0.88), (0.11, 0.08)), "top", gain=0.78)
    b.add_face(disc((-wide * 1.15 - arm, 0.84, 0), 0.05, sides=6), "skin", fine=True)
    b.add_face(
        [
            (-wide * 0.75, 0.88, 0),
            (wide * 0.75, 0.88, 0),
            (wide, 1.40, 0),
            (wide * 0.5, 1.50, 0),
            (-wide * 0.5, 1.50, 0),
            (-wide, 1.40, 0),
        ],
        "top",
    )
    b.add_face(bar((wide * 0.9, 1.42), (wide * 1.15 + arm, 0.88), (0.11, 0.08)), "top", gain=0.9)
    b.add_face(disc((wide * 1.15 + arm, 0.84, 0), 0.05, sides=6), "skin", fine=True)
    if bag:
        b.add_face(
            [(-0.13, 1.0, 0), (0.13, 1.0, 0), (0.14, 1.38, 0), (-0.14, 1.38, 0)], "shop", gain=0.9
        )
    _head(b, 0.03 if side else 0.0, 1.63, back=bag)
    return b.build((0.28, 0.15, 0.0, 1.7))


@lru_cache(maxsize=1)
def walkers() -> tuple[tuple[Mesh, ...], ...]:
    """Return pedestrians, each as the phases of one stride.

    The second half of them is seen from the side.
    """
    phases = [2 * math.pi * i / PHASES for i in range(PHASES)]
    kinds = [
        (side, skirt, bag)
        for side in (False, True)
        for skirt in (False, True)
        for bag in (False, True)
    ]
    return tuple(
        tuple(_walker(p, side=side, skirt=skirt, bag=bag and not side) for p in phases)
        for side, skirt, bag in kinds
    )


def _bicycle_side(b: MeshBuilder) -> None:
    for x in (-0.52, 0.52):
        b.add_face(ring((x, 0.35, 0), 0.36, 0.10), "tire", gain=1.1)
    for a, c in (
        ((-0.52, 0.34), (-0.18, 0.82)),
        ((-0.18, 0.82), (0.36, 0.80)),
        ((-0.05, 0.32), (-0.18, 0.86)),
        ((-0.05, 0.32), (0.36, 0.78)),
        ((-0.52, 0.34), (-0.05, 0.32)),
        ((0.36, 0.95), (0.52, 0.34)),
    ):
        b.add_face(bar(a, c, (0.08, 0.08)), "bike")
    b.add_face(bar((-0.32, 0.89), (-0.06, 0.89), (0.07, 0.05)), "dark")
    b.add_face(bar((0.30, 1.00), (0.44, 1.04), (0.05, 0.05)), "dark")


def _bicycle_end(b: MeshBuilder) -> None:
    b.add_face(disc((0, 0.35, 0), 0.35, flat=0.24), "tire", gain=1.1)
    b.add_face(bar((0, 0.5), (0, 0.95), (0.09, 0.08)), "bike")
    b.add_face(bar((-0.28, 1.0), (0.28, 1.0), (0.06, 0.06)), "dark")
    b.add_face(disc((0, 0.72, 0), 0.05, sides=6), "tail", fine=True)


def _motorcycle_side(b: MeshBuilder) -> None:
    for x in (-0.68, 0.68):
        b.add_face(disc((x, 0.32, 0), 0.32, sides=16), "tire")
        b.add_face(disc((x, 0.32, 0), 0.15, sides=12), "hub", fine=True)
    b.add_face(
        [
            (-0.85, 0.72, 0),
            (-0.3, 0.40, 0),
            (0.35, 0.36, 0),
            (0.58, 0.86, 0),
            (0.15, 0.98, 0),
            (-0.1, 0.80, 0),
            (-0.8, 0.86, 0),
        ],
        "bike",
    )
    b.add_face([(-0.25, 0.32, 0), (0.3, 0.30, 0), (0.34, 0.6, 0), (-0.2, 0.62, 0)], "dark")
    b.add_face(bar((0.48, 1.05), (0.68, 0.36), (0.09, 0.08)), "hub")
    b.add_face(bar((-0.72, 0.86), (-0.08, 0.82), (0.12, 0.14)), "dark")
    b.add_face(disc((0.62, 0.84, 0), 0.10, sides=8), "head", fine=True)


def _motorcycle_end(b: MeshBuilder) -> None:
    b.add_face(disc((0, 0.34, 0), 0.34, flat=0.30), "tire")
    b.add_face([(-0.19, 0.45, 0), (0.19, 0.45, 0), (0.24, 0.85, 0), (-0.24, 0.85, 0)], "bike")
    b.add_face(bar((-0.40, 1.04), (0.40, 1.04), (0.07, 0.07)), "dark")
    b.add_face(disc((0, 0.72, 0), 0.09, sides=8), "tail")


def _rider(b: MeshBuilder, phase: float, *, side: bool, seat: float) -> None:
    who, turn = "rider", math.sin(phase)
    for sign, gain in ((-1, 0.8), (1, 1.0)):
        pedal = 0.36 + 0.10 * turn * sign
        if side:
            foot = (-0.05 + 0.10 * sign * math.cos(phase), pedal)
            b.add_face(
                bar((-0.18, seat), (0.14, seat - 0.18 + 0.08 * turn * sign), (0.19, 0.15)),
                "trousers",
                gain=gain,
                label=who,
            )
            b.add_face(
                bar((0.14, seat - 0.16 + 0.08 * turn * sign), foot, (0.15, 0.10)),
                "trousers",
                gain=gain,
                label=who,
            )
        else:
            b.add_face(
                bar((sign * 0.10, seat), (sign * 0.17, pedal), (0.19, 0.12)),
                "trousers",
                gain=gain,
                label=who,
            )
            b.add_face(
                bar((sign * 0.19, pedal), (sign * 0.17, pedal - 0.03), (0.12, 0.12)),
                "dark",
                label=who,
            )
    _torso(b, side=side, seat=seat)


def _torso(b: MeshBuilder, *, side: bool, seat: float) -> None:
    who = "rider"
    if side:
        b.add_face(bar((-0.16, seat - 0.05), (0.10, seat + 0.48), (0.30, 0.34)), "top", label=who)
        b.add_face(
            bar((0.08, seat + 0.42), (0.36, seat + 0.12), (0.12, 0.09)), "top", gain=0.85, label=who
        )
    else:
        b.add_face(
            [
                (-0.17, seat - 0.08, 0),
                (0.17, seat - 0.08, 0),
                (0.23, seat + 0.44, 0),
                (0.11, seat + 0.54, 0),
                (-0.11, seat + 0.54, 0),
                (-0.23, seat + 0.44, 0),
            ],
            "top",
            label=who,
        )
        for sign in (-1, 1):
            b.add_face(
                bar((sign * 0.21, seat + 0.44), (sign * 0.29, seat + 0.12), (0.12, 0.09)),
                "top",
                gain=0.85,
                label=who,
            )


def _ride(phase: float, *, motor: bool, side: bool) -> Mesh:
    vehicle = "motorcycle" if motor else "bicycle"
    b = MeshBuilder(vehicle)
    rear_view, side_view = (
        (_motorcycle_end, _motorcycle_side) if motor else (_bicycle_end, _bicycle_side)
    )
    (side_view if side else rear_view)(b)
    # Motorcyclists do not pedal.
    _rider(b, 0.0 if motor else phase, side=side, seat=0.82 if motor else 0.90)
    b.label = "rider"
    seat = 0.82 if motor else 0.90
    _head(b, 0.16 if side else 0.0, seat + 0.66, helmet=True)
    return b.build((0.3, 0.8, 0.1, 1.6))


@lru_cache(maxsize=1)
def riders() -> dict[tuple[bool, bool], tuple[Mesh, ...]]:
    """Return riders by (on a motorcycle, seen from the side).

    Each is a tuple of the phases of one turn of the pedals.
    """
    phases = [2 * math.pi * i / PHASES for i in range(PHASES)]
    return {
        (m, s): tuple(_ride(p, motor=m, side=s) for p in phases)
        for m in (False, True)
        for s in (False, True)
    }


@lru_cache(maxsize=1)
def parked_bikes() -> tuple[Mesh, Mesh]:
    """Return a bicycle and a motorcycle without riders, seen from the side."""
    bicycle, motorcycle = MeshBuilder("bicycle"), MeshBuilder("motorcycle")
    _bicycle_side(bicycle)
    _motorcycle_side(motorcycle)
    return bicycle.build((0.9, 0.2, 0.0, 0.8)), motorcycle.build((0.9, 0.25, 0.0, 0.9))
