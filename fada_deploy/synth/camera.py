"""A pinhole camera in a street that may bend.

Street coordinates: x to the right of the center line, y up, z along the street; meters. The bend
shifts every cross-section sideways by a smooth function of z, so that a town can be laid out along
a straight line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Distance of the near clipping plane, in meters.
NEAR = 0.5
FLOATS = NDArray[np.float64]


@dataclass(frozen=True)
class Bend:
    """Sideways shift of the street: `amplitude`·sin(z/`length` + `phase`).

    `amplitude` and `length` are in meters, `phase` in radians.
    """

    amplitude: float
    length: float
    phase: float

    def shift(self, z: NDArray[np.floating[Any]]) -> FLOATS:
        """Return the sideways shift at each z."""
        return np.asarray(self.amplitude * np.sin(z / self.length + self.phase))

    def shift_at(self, z: float) -> float:
        """Return the sideways shift at one z."""
        return self.amplitude * math.sin(z / self.length + self.phase)

    def slope_at(self, z: float) -> float:
        """Return d shift/d z at one z."""
        return self.amplitude / self.length * math.cos(z / self.length + self.phase)


@dataclass(frozen=True)
class Camera:
    """Position in street coordinates, heading (radians to the right) and projection.

    `focal` and `center` (u, v) are in pixels; the center of pixel (i, j) lies at u = j, v = i.
    """

    size_hw: tuple[int, int]
    x: float
    y: float
    z: float
    heading: float
    focal: float
    center: tuple[float, float]
    bend: Bend

    @classmethod
    def place(
        cls,
        *,
        size_hw: tuple[int, int],
        x: float,
        y: float,
        z: float,
        yaw: float,
        horizon: float,
        bend: Bend,
        focal: float = 1.1,
    ) -> Camera:
        """Place a camera at (x, y, z), turned by `yaw` radians from the tangent of the street.

        `horizon` is the height of the horizon as a fraction of the image height, from the top.
        `focal` is the focal length in image heights, so that narrow images crop the sides and keep
        the scale.
        """
        height, width = size_hw
        heading = math.atan(bend.slope_at(z)) + yaw
        return cls(
            size_hw,
            x,
            y,
            z,
            heading,
            focal * height,
            (width / 2 - 0.5, height * horizon - 0.5),
            bend,
        )

    def rotate(self, vectors: FLOATS) -> FLOATS:
        """Rotate street directions (N, 3) into view space (N, 3): right, up, depth."""
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        x, z = vectors[:, 0], vectors[:, 2]
        return np.stack((cos * x - sin * z, vectors[:, 1], sin * x + cos * z), 1)

    def to_view(self, points: FLOATS) -> FLOATS:
        """Apply the bend to street points (N, 3) and transform them into view space (N, 3)."""
        x = points[:, 0] + self.bend.shift(points[:, 2]) - (self.x + self.bend.shift_at(self.z))
        return self.rotate(np.stack((x, points[:, 1] - self.y, points[:, 2] - self.z), 1))

    def project(self, view: FLOATS) -> FLOATS:
        """Project view points (N, 3) with positive depth to pixels (N, 2): u, v."""
        scale = self.focal / view[:, 2]
        return np.stack(
            (self.center[0] + view[:, 0] * scale, self.center[1] - view[:, 1] * scale), 1
        )


def clip_near(view: FLOATS) -> FLOATS:
    """Clip a polygon (N, 3) in view space at the near plane; the result may be empty."""
    result: list[FLOATS] = []
    for a, b in zip(view, np.roll(view, -1, 0), strict=True):
        if a[2] >= NEAR:
            result.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            result.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(result).reshape(-1, 3)
