"""Rasterize a town into a map of face numbers with the painter's algorithm, without antialiasing.

Labels, colors, depth and surface coordinates are all looked up by face number, so they agree pixel
by pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from fada_deploy.synth.appearances import SLOTS
from fada_deploy.synth.camera import FLOATS, NEAR, Camera, clip_near
from fada_deploy.synth.draw_list import DrawList
from fada_deploy.synth.mesh import LABEL, Surface

# Face numbers are drawn at twice the resolution; every second one is the center of a pixel.
SCALE = 2
# Fractional bits of the coordinates given to OpenCV.
BITS = 4
# `fine` faces are not drawn further away than this, in meters.
FINE_DISTANCE = 45.0
# Face numbers of the sky, of the ground plane and of the first face.
SKY, PLANE, FIRST = 0, 1, 2
_MAX_COORDINATE = 1 << 24


@dataclass(frozen=True, eq=False)
class Faces:
    """Attributes by face number: sky, infinite ground plane, then the faces in drawing order.

    `planes` (N, 3) hold a, b, c of 1/depth = a·u + b·v + c. `normals` (N, 3) and `origins` (N, 3),
    the first corners, are in view space. `lit` (N,) is false for flat figures, which the sun does
    not shade.
    """

    labels: NDArray[np.uint8]
    surfaces: NDArray[np.uint8]
    slots: NDArray[np.intp]
    gains: FLOATS
    seeds: NDArray[np.int64]
    planes: FLOATS
    normals: FLOATS
    origins: FLOATS
    lit: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Raster:
    """A rasterized view.

    `numbers` (2H, 2W) uint16 indexes `faces`; `numbers[::2, ::2]` are the centers of the pixels.
    """

    numbers: NDArray[np.uint16]
    faces: Faces
    camera: Camera

    @property
    def centers(self) -> NDArray[np.uint16]:
        """Face number at the center of every pixel, (H, W) uint16."""
        return self.numbers[::SCALE, ::SCALE]

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Class of the nearest thing at the center of every pixel, (H, W) uint8."""
        return np.ascontiguousarray(self.faces.labels[self.centers])


def rasterize(draw_list: DrawList, camera: Camera, time: float) -> Raster:
    """Rasterize a draw list at `time` seconds."""
    meshes = [thing.mesh_at(time) for thing in draw_list.things]
    counts = np.array([len(m.corners) for m in meshes])
    view = camera.to_view(
        _transform_corners(
            np.concatenate([m.corners for m in meshes]), np.repeat(draw_list.params, counts, 0)
        )
    )
    firsts = np.concatenate(([0], np.cumsum(counts)))[:-1]
    starts = np.concatenate([m.starts[:-1] + f for m, f in zip(meshes, firsts, strict=True)])
    ends = np.concatenate((starts[1:], [len(view)]))
    owners = np.repeat(np.arange(len(meshes)), [len(m) for m in meshes])
    solid = np.concatenate([m.solid for m in meshes])
    fine = np.concatenate([m.fine for m in meshes])

    normals, origins = _normals(view, starts)
    visible = _visible_faces(view, starts, normals, origins, camera, solid=solid, fine=fine)
    numbers = _background(camera)
    cuts = np.minimum.reduceat(view[:, 2], starts) < NEAR
    _fill(numbers, view, starts[visible], ends[visible], cuts[visible], camera)

    owners = owners[visible]
    seeds = np.array([t.seed for t in draw_list.things], np.int64)[owners]
    attributes = _FaceAttributes.collect(meshes, visible)
    flip = np.where((normals[visible] * origins[visible]).sum(1) > 0, -1.0, 1.0)[:, None]
    faces = _build_faces(
        attributes, seeds, normals[visible] * flip, origins[visible], camera, solid[visible]
    )
    return Raster(numbers, faces, camera)


@dataclass(frozen=True, eq=False)
class _FaceAttributes:
    labels: NDArray[np.uint8]
    surfaces: NDArray[np.uint8]
    slots: NDArray[np.intp]
    gains: FLOATS

    @classmethod
    def collect(cls, meshes: Sequence[object], visible: NDArray[np.intp]) -> _FaceAttributes:
        """Concatenate the attributes of the visible faces of all meshes."""
        names = ("labels", "surfaces", "slots", "gains")
        return cls(*(np.concatenate([getattr(m, n) for m in meshes])[visible] for n in names))


def _build_faces(
    attributes: _FaceAttributes,
    seeds: NDArray[np.int64],
    normals: FLOATS,
    origins: FLOATS,
    camera: Camera,
    solid: NDArray[np.bool_],
) -> Faces:
    """Return the attributes of sky, ground plane and drawn faces."""
    up = np.array([[0.0, 1.0, 0.0]])
    plane = np.array([[0.0, -camera.y, 0.0]])
    normals = np.concatenate((up, up, normals))
    origins = np.concatenate((plane, plane, origins))
    u0, v0 = camera.center
    distance = np.minimum((normals * origins).sum(1), -1e-6)
    rays = np.stack(
        (
            normals[:, 0] / camera.focal,
            -normals[:, 1] / camera.focal,
            normals[:, 2] - normals[:, 0] * u0 / camera.focal + normals[:, 1] * v0 / camera.focal,
        ),
        1,
    )
    planes = rays / distance[:, None]
    planes[SKY] = 0.0
    return Faces(
        np.concatenate((np.array([LABEL["sky"], LABEL["terrain"]], np.uint8), attributes.labels)),
        np.concatenate((np.array([Surface.PLAIN, Surface.GRASS], np.uint8), attributes.surfaces)),
        np.concatenate(
            (np.array([SLOTS.index("sky_low"), SLOTS.index("terrain")], np.intp), attributes.slots)
        ),
        np.concatenate((np.ones(2), attributes.gains)),
        np.concatenate((np.zeros(2, np.int64), seeds)),
        planes,
        normals,
        origins,
        np.concatenate((np.array([False, True]), solid)),
    )


def _transform_corners(corners: FLOATS, params: FLOATS) -> FLOATS:
    """Scale, rotate and translate corners (C, 3) by the params (C, 7) of their things."""
    x, y, z = (corners * params[:, 4:7]).T
    cos, sin = np.cos(params[:, 3]), np.sin(params[:, 3])
    return np.stack(
        (cos * x + sin * z + params[:, 0], y + params[:, 1], cos * z - sin * x + params[:, 2]), 1
    )


def _normals(view: FLOATS, starts: NDArray[np.intp]) -> tuple[FLOATS, FLOATS]:
    """Return unit normals and first corners of faces, (F, 3) each."""
    origins = view[starts]
    a, b = view[starts + 1] - origins, view[starts + 2] - origins
    normals = np.stack(
        (
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ),
        1,
    )
    return normals / np.maximum(np.sqrt((normals**2).sum(1, keepdims=True)), 1e-9), origins


def _visible_faces(
    view: FLOATS,
    starts: NDArray[np.intp],
    normals: FLOATS,
    origins: FLOATS,
    camera: Camera,
    *,
    solid: NDArray[np.bool_],
    fine: NDArray[np.bool_],
) -> NDArray[np.intp]:
    """Return the faces to draw: they face the camera, lie in the image and are large enough."""
    depth = view[:, 2]
    nearest, furthest = np.minimum.reduceat(depth, starts), np.maximum.reduceat(depth, starts)
    scale = camera.focal / np.maximum(depth, NEAR)
    u, v = view[:, 0] * scale, view[:, 1] * scale
    left, right = np.minimum.reduceat(u, starts), np.maximum.reduceat(u, starts)
    low, high = np.minimum.reduceat(v, starts), np.maximum.reduceat(v, starts)
    height, width = camera.size_hw
    u0, v0 = camera.center
    inside = (right > -u0 - 1) & (left < width - u0) & (low < v0 + 1) & (high > v0 - height)
    inside &= (right - left) + (high - low) > 0.5
    # Skip faces that are seen edge-on: they would be a line.
    facing = ~solid | ((normals * origins).sum(1) < -0.01 * np.abs(origins).sum(1))
    visible = (
        (furthest > NEAR)
        & (inside | (nearest < NEAR))
        & facing
        & ~(fine & (nearest > FINE_DISTANCE))
    )
    return np.flatnonzero(visible)


def _background(camera: Camera) -> NDArray[np.uint16]:
    height, width = camera.size_hw
    numbers = np.full((height * SCALE, width * SCALE), SKY, np.uint16)
    numbers[max(0, math.floor(camera.center[1] * SCALE) + 1) :] = PLANE
    return numbers


def _fill(
    numbers: NDArray[np.uint16],
    view: FLOATS,
    starts: NDArray[np.intp],
    ends: NDArray[np.intp],
    cuts: NDArray[np.bool_],
    camera: Camera,
) -> None:
    """Fill the faces in order, each with its face number."""
    depth = np.maximum(view[:, 2:], NEAR)
    fixed = fixed_point(camera.project(np.concatenate((view[:, :2], depth), 1)), SCALE)
    for number, (start, end, cut) in enumerate(
        zip(starts.tolist(), ends.tolist(), cuts.tolist(), strict=True), FIRST
    ):
        if cut:
            points = clip_near(view[start:end])
            if len(points) < 3:
                continue
            corners = fixed_point(camera.project(points), SCALE)
        else:
            corners = fixed[start:end]
        cv2.fillPoly(numbers, [corners], number, cv2.LINE_8, BITS)


def fixed_point(pixels: FLOATS, scale: int) -> NDArray[np.int32]:
    """Return pixel coordinates (N, 2) times `scale` in fixed point with `BITS` fractional bits."""
    scaled = np.rint(pixels * (scale << BITS))
    return np.asarray(np.clip(scaled, -_MAX_COORDINATE, _MAX_COORDINATE), np.int32)
