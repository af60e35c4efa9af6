"""Shadows on the ground: the bounding box of each thing, projected along the rays of the sun."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.camera import FLOATS, NEAR, Camera, clip_near
from fada_deploy.synth.draw_list import DrawList
from fada_deploy.synth.raster import BITS, fixed_point
from fada_deploy.synth.things import Band

# Further away a shadow is thinner than a pixel, in meters.
SHADOW_DISTANCE = 90.0
LIT, SHADED, UNDER_VEHICLE = 0, 1, 2
_CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])


def render_shadows(
    draw_list: DrawList, camera: Camera, sun: tuple[float, float, float], time: float
) -> NDArray[np.uint8]:
    """Return the shadow mask (H, W) uint8: `LIT`, `SHADED` or `UNDER_VEHICLE`."""
    mask = np.full(camera.size_hw, LIT, np.uint8)
    near = np.abs(draw_list.params[:, 2] - camera.z) < SHADOW_DISTANCE
    boxes = [
        (i, cast)
        for i, thing in enumerate(draw_list.things)
        if near[i] and thing.band > Band.BEHIND and (cast := thing.mesh_at(time).cast)
    ]
    if not boxes:
        return mask
    index = [i for i, _ in boxes]
    rows, casts = draw_list.params[index], np.array([cast for _, cast in boxes])
    footprints = _footprints(rows, casts)
    drift = np.array([-sun[0] / sun[1], -sun[2] / sun[1]])
    low, high = ((casts[:, k] * rows[:, 5])[:, None, None] * drift for k in (2, 3))
    _fill(mask, np.concatenate((footprints + low, footprints + high), 1), camera, SHADED)
    on_road = np.array([draw_list.things[i].band >= Band.PARKED for i in index])
    if on_road.any():
        _fill(mask, footprints[on_road], camera, UNDER_VEHICLE)
    return mask


def _footprints(rows: FLOATS, casts: FLOATS) -> FLOATS:
    """Return the corners (N, 4, 2) of boxes on the ground: x, z."""
    half = casts[:, None, :2] * np.abs(rows[:, None, [4, 6]]) * _CORNERS
    cos, sin = np.cos(rows[:, 3])[:, None], np.sin(rows[:, 3])[:, None]
    rotated = np.stack(
        (cos * half[..., 0] + sin * half[..., 1], cos * half[..., 1] - sin * half[..., 0]), 2
    )
    return np.asarray(rotated + rows[:, None, [0, 2]])


def _fill(mask: NDArray[np.uint8], outlines: FLOATS, camera: Camera, value: int) -> None:
    """Fill the convex hulls of outlines (N, K, 2) on the ground."""
    hulls = [cv2.convexHull(outline)[:, 0] for outline in outlines.astype(np.float32)]
    ground = np.concatenate(hulls).astype(np.float64)
    view = camera.to_view(np.stack((ground[:, 0], np.zeros(len(ground)), ground[:, 1]), 1))
    clamped = np.concatenate((view[:, :2], np.maximum(view[:, 2:], NEAR)), 1)
    fixed = fixed_point(camera.project(clamped), 1)
    start = 0
    for hull in hulls:
        end = start + len(hull)
        nearest, furthest = view[start:end, 2].min(), view[start:end, 2].max()
        if nearest >= NEAR:
            cv2.fillConvexPoly(mask, fixed[start:end], value, cv2.LINE_8, BITS)
        elif furthest > NEAR:
            points = fixed_point(camera.project(clip_near(view[start:end])), 1)
            cv2.fillConvexPoly(mask, points, value, cv2.LINE_8, BITS)
        start = end
