"""Traffic: parked cars, vehicles in the lanes, pedestrians, cyclists and motorcyclists."""

from __future__ import annotations

import math
from random import Random

from fada_deploy.synth.lots import Lot
from fada_deploy.synth.mesh import Mesh, Surface
from fada_deploy.synth.models import furniture, people, vehicles
from fada_deploy.synth.street import LANE, Street
from fada_deploy.synth.things import Band, Thing

# Speed of the camera and of oncoming traffic, in m/s. All vehicles of a lane have the same
# speed, so that gaps stay constant.
OWN_SPEED, ONCOMING = 9.0, -8.0
CYCLE_SPEED = 5.0


def vehicle(
    rng: Random,
    x: float,
    z: float,
    *,
    yaw: float = 0.0,
    band: Band = Band.ROAD,
    vz: float = 0.0,
    parked: bool = False,
) -> list[Thing]:
    """Return a vehicle centered at (x, z): usually a car, sometimes a truck, bus or tram."""
    seed, pick = rng.getrandbits(30), rng.random()
    turned = abs(math.sin(yaw)) > 0.5
    if pick < (0.92 if parked else 0.70):
        mesh = rng.choice(vehicles.cars())
        return [Thing((mesh,), x, z, band, seed, yaw=yaw, reach=0.9 if turned else 2.2, vz=vz)]
    if pick < (0.985 if parked else 0.85):
        return _truck(rng, x, z, yaw=yaw, band=band, vz=vz, seed=seed)
    mesh = vehicles.tram() if pick > 0.988 and not parked else vehicles.bus()
    reach = 11.0 if mesh is vehicles.tram() else 5.5
    return [Thing((mesh,), x, z, band, seed, yaw=yaw, reach=1.3 if turned else reach, vz=vz)]


def _truck(
    rng: Random, x: float, z: float, *, yaw: float, band: Band, vz: float, seed: int
) -> list[Thing]:
    cab, box, dump_body = vehicles.truck()
    body = rng.choice((box, box, dump_body))
    # Both parts have their origin at the joint between them; `reach` is measured from there.
    ahead = math.cos(yaw)
    joint = z + 2.0 * ahead
    reaches = (6.0, 0.0) if ahead > 0.5 else (0.0, 2.2) if ahead < -0.5 else (1.25, 1.25)
    return [
        Thing((mesh,), x, joint, band, seed, yaw=yaw, reach=reach, vz=vz)
        for mesh, reach in zip((body, cab), reaches, strict=True)
    ]


def vehicle_length(parts: list[Thing]) -> float:
    """Return the length in meters of the vehicle whose parts are at the end of the list."""
    mesh = parts[-1].meshes[0]
    if mesh is vehicles.truck()[0]:
        return 8.2
    return 2 * parts[-1].reach


def park_cars(lot: Lot, street: Street) -> None:
    """Park cars along the curb of one lot."""
    rng = lot.rng
    if not street.has_parking:
        return
    z = lot.z0 + 3.0
    while z < lot.z1 - 2.4:
        if rng.random() < 0.45:
            x = lot.side * (street.curb - 1.06)
            yaw = 0.0 if lot.side > 0 else math.pi
            lot.things += vehicle(rng, x, z, yaw=yaw, band=Band.PARKED, parked=True)
            if vehicle_length(lot.things) > 6.0:
                z += 4.5
        z += rng.uniform(5.2, 7.0)


def add_pedestrians(lot: Lot, street: Street, *, is_junction: bool) -> None:
    """Add pedestrians and parked bicycles to the sidewalk of one lot."""
    rng = lot.rng
    low, high = street.curb + street.verge + 0.3, street.line - 0.3
    for _ in range(rng.choice((0, 1, 2, 3, 4, 5))):
        x, z = lot.side * rng.uniform(low, high), lot.random_z(0, 1)
        lot.things.append(
            pedestrian(rng, x, z, vz=rng.choice((-1.3, 1.3)), side_on=rng.random() < 0.25)
        )
        if rng.random() < 0.3:
            lot.things.append(
                pedestrian(rng, x + 0.55, z + 0.2, vz=lot.things[-1].vz, side_on=False)
            )
    if not is_junction and rng.random() < 0.6:
        mesh = people.parked_bikes()[int(rng.random() < 0.40)]
        size = rng.choice((-1.0, 1.0))
        x, z = lot.side * (street.curb + street.verge + 0.4), lot.random_z(0.0, 0.7)
        for i in range(rng.randint(1, 4)):
            lot.things.append(
                Thing((mesh,), x, z + 0.8 * i, Band.WALK, lot.next_seed(), sx=size, facing=True)
            )


def pedestrian(
    rng: Random,
    x: float,
    z: float,
    *,
    vz: float = 0.0,
    vx: float = 0.0,
    side_on: bool,
    limit: float = 60.0,
) -> Thing:
    """Return a pedestrian who walks at (vx, vz) m/s."""
    kinds = people.walkers()
    half = len(kinds) // 2
    meshes = kinds[rng.randrange(half) + (half if side_on else 0)]
    size = rng.uniform(0.92, 1.08) if rng.random() < 0.88 else rng.uniform(0.6, 0.75)
    flip = -size if vx < 0 or (not vx and rng.random() < 0.5) else size
    return Thing(
        meshes,
        x,
        z,
        Band.WALK if vx == 0 else Band.ROAD,
        rng.getrandbits(30),
        sx=flip,
        sy=size,
        facing=True,
        vx=vx,
        vz=vz,
        rate=9.0,
        limit=limit,
    )


def crossing(rng: Random, street: Street, z0: float, ground: int) -> list[Thing]:
    """Return a crosswalk before a junction, its stop line and the people on it."""
    stripe = furniture.ground("marking", "road", Surface.PAINT)
    things: list[Thing] = []
    if rng.random() < 0.75:
        count = int(street.curb / 0.55)
        for i in range(-count + 1, count):
            if i % 2:
                things.append(Thing((stripe,), i * 0.55, z0 + 0.9, Band.PAINT, 0, sx=0.5, sz=2.6))
        if rng.random() < 0.4:
            meshes = people.riders()[rng.random() < 0.4, True]
            x, z = rng.uniform(-street.curb, street.curb), z0 + rng.uniform(3.0, 5.0)
            things.append(
                Thing(meshes, x, z, Band.ROAD, rng.getrandbits(30), facing=True, vx=4.0, rate=8.0)
            )
        for _ in range(rng.choice((0, 1, 2, 3))):
            vx = rng.choice((-1.2, 1.2))
            x = rng.uniform(-street.curb, street.curb)
            things.append(
                pedestrian(
                    rng,
                    x,
                    z0 + 0.9 + rng.uniform(-0.8, 0.8),
                    vx=vx,
                    side_on=True,
                    limit=street.line - 0.6,
                )
            )
    middle = street.lanes * LANE / 2
    things.append(
        Thing((stripe,), middle, z0 - 1.2, Band.PAINT, 0, sx=street.lanes * LANE - 0.2, sz=0.4)
    )
    for lane in range(street.lanes):
        things.append(Thing((furniture.arrow(),), street.lane(lane), z0 - 6.0, Band.PAINT, 0))
    things.append(
        Thing(
            (furniture.manhole(),), rng.uniform(0.5, street.lane_edge), z0 - 9.0, Band.PAINT, ground
        )
    )
    return things


def side_street_traffic(rng: Random, street: Street, z: float) -> list[Thing]:
    """Return vehicles waiting in the side street."""
    things: list[Thing] = []
    for side in (-1, 1):
        x = street.line + 4.0
        for _ in range(rng.choice((0, 1, 1, 2))):
            lane = z + 1.7 * side
            things += vehicle(rng, side * x, lane, yaw=-side * math.pi / 2, band=Band.BORDER)
            x += 9.0
    return things


def lane_traffic(rng: Random, street: Street, end: float) -> list[Thing]:
    """Return the vehicles in the lanes and the riders at their right edge."""
    things: list[Thing] = []
    for lane in range(street.lanes):
        # The camera drives in the outermost lane and needs free space ahead.
        own = lane == street.lanes - 1
        for direction, speed in ((1, OWN_SPEED), (-1, ONCOMING)):
            z = rng.uniform(16, 34) if own and direction > 0 else rng.uniform(-10, 20)
            stop = end if direction > 0 else end * 2.0
            while z < stop:
                yaw = 0.0 if direction > 0 else math.pi
                x = direction * street.lane(lane) + rng.uniform(-0.2, 0.2)
                new = vehicle(rng, x, z, yaw=yaw, vz=speed)
                things += new
                z += vehicle_length(new) + rng.uniform(12, 48)
    for direction in (1, -1):
        z = rng.uniform(4, 30)
        while z < end:
            motor = rng.random() < 0.42
            meshes = people.riders()[motor, False]
            x = direction * (street.lane_edge - rng.uniform(0.0, 0.2))
            things.append(_rider(rng, meshes, x, z, direction * CYCLE_SPEED))
            z += rng.uniform(12, 45)
    return things


def _rider(rng: Random, meshes: tuple[Mesh, ...], x: float, z: float, vz: float) -> Thing:
    size = rng.uniform(0.95, 1.08)
    return Thing(
        meshes, x, z, Band.ROAD, rng.getrandbits(30), sx=size, sy=size, facing=True, vz=vz, rate=8.0
    )
