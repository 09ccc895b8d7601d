"""Ray casting: solids made of ellipsoids and blocks, a pinhole camera, a distant lamp, shadows.

World and models have x, y on the ground and z upwards. A ray is origin + t * direction; t is the same number in the
world and in a model's own frame, so depths of different solids compare. Only exactly rounded operations are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from viapt.data.rendered.canvas import SIZE, Colour
from viapt.data.rendered.draws import Number, cos_sin

SAMPLES = 2
"""Rays a pixel, along each side."""

Vector = Float64[np.ndarray, " 3"]
Vectors = Float64[np.ndarray, "3 *rays"]
Others = Float64[np.ndarray, "3 *others"]
Numbers = Float64[np.ndarray, "*rays"]
Bounds = tuple[Vector, Vector]


def vector(x: Number, y: Number, z: Number) -> Vector:
    """Three numbers."""
    return np.array([x, y, z], np.float64)


def dot(a: Vectors, b: Others) -> Float64[np.ndarray, "*broadcast"]:
    """Inner products, added in this order on every machine."""
    return np.asarray(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def unit(a: Vectors) -> Vectors:
    """Vectors of length 1."""
    return a / np.sqrt(dot(a, a))


def spread(a: Vector, like: Vectors) -> Others:
    """One vector, shaped to meet many."""
    return a.reshape(3, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the axes."""

    centre: Vector
    radii: Vector

    @property
    def bounds(self) -> Bounds:
        """Lowest and highest coordinates."""
        return self.centre - self.radii, self.centre + self.radii

    def enter(self, origin: Others, direction: Vectors) -> Numbers:
        """t where rays enter from outside; infinite where they miss or come from inside."""
        radii = spread(self.radii, direction)
        start, way = (origin - spread(self.centre, origin)) / spread(self.radii, origin), direction / radii
        square, half = dot(way, way), dot(start, way)
        root = half * half - square * (dot(start, start) - 1)
        t = (-half - np.sqrt(np.maximum(root, 0))) / square
        return np.where((root > 0) & (t > 0), t, np.inf)

    def normal(self, points: Vectors) -> Vectors:
        """Outward, of length 1, at points of the surface."""
        radii = spread(self.radii, points)
        return unit((points - spread(self.centre, points)) / (radii * radii))


@dataclass(frozen=True)
class Block:
    """A box whose top may be smaller than its bottom, moved forwards or backwards, even a ridge or a point.

    Args:
        bottom, top: (lowest x, highest x, half width in y).
        low, high: z.
    """

    bottom: tuple[Number, Number, Number]
    top: tuple[Number, Number, Number]
    low: Number
    high: Number

    @property
    def bounds(self) -> Bounds:
        """Lowest and highest coordinates."""
        (back, front, side), (top_back, top_front, top_side) = self.bottom, self.top
        width = max(side, top_side)
        return vector(min(back, top_back), -width, self.low), vector(max(front, top_front), width, self.high)

    def faces(self) -> list[tuple[Vector, float]]:
        """Outward normal n of length 1 and offset c of each: points inside have n.p <= c."""
        (back, front, side), (top_back, top_front, top_side), height = self.bottom, self.top, self.high - self.low
        slopes = (
            (vector(height, 0, front - top_front), vector(front, 0, self.low)),
            (vector(-height, 0, top_back - back), vector(back, 0, self.low)),
            (vector(0, height, side - top_side), vector(0, side, self.low)),
            (vector(0, -height, side - top_side), vector(0, -side, self.low)),
            (vector(0, 0, 1), vector(0, 0, self.high)),
            (vector(0, 0, -1), vector(0, 0, self.low)),
        )
        return [(unit(normal), float(dot(unit(normal), point))) for normal, point in slopes]

    def enter(self, origin: Others, direction: Vectors) -> Numbers:
        """As `Ellipsoid.enter`."""
        entered = np.full(direction.shape[1:], -np.inf)
        left = np.full(direction.shape[1:], np.inf)
        with np.errstate(divide="ignore", invalid="ignore"):
            for normal, offset in self.faces():
                towards = dot(normal, direction)
                t = (offset - dot(normal, origin)) / towards
                entered = np.where(towards < 0, np.fmax(entered, t), entered)
                left = np.where(towards < 0, left, np.fmin(left, t))
        return np.where((entered < left) & (entered > 0), entered, np.inf)

    def normal(self, points: Vectors) -> Vectors:
        """As `Ellipsoid.normal`."""
        faces = self.faces()
        nearest = np.argmax([dot(normal, points) - offset for normal, offset in faces], axis=0)
        return np.moveaxis(np.array([normal for normal, _ in faces])[nearest], -1, 0)


class Part(NamedTuple):
    """A piece of one colour."""

    shape: Ellipsoid | Block
    colour: Colour


@dataclass(frozen=True)
class Solid:
    """A model in the world.

    Args:
        parts: in the model's own frame: its front looks along x, and it stands on z = 0.
        turns: counter-clockwise from above, about z.
        position: of the model's origin.
        scale: units of the world for one of the model.
    """

    parts: tuple[Part, ...]
    turns: Number
    position: Vector
    scale: Number = 1.0

    def to_model(self, points: Vectors) -> Vectors:
        """Points of the world, in the model's frame."""
        return self.ways_to_model(points - spread(self.position, points))

    def ways_to_model(self, ways: Vectors) -> Vectors:
        """Directions, which do not move with the position."""
        cosine, sine = cos_sin(self.turns)
        x, y, z = ways / self.scale
        return np.stack([cosine * x + sine * y, cosine * y - sine * x, z])

    def normals_to_world(self, normals: Vectors) -> Vectors:
        """Unit normals of the model, in the world."""
        cosine, sine = cos_sin(self.turns)
        x, y, z = normals
        return np.stack([cosine * x - sine * y, sine * x + cosine * y, z])

    def to_world(self, points: Vectors) -> Vectors:
        """Inverse of `to_model`."""
        return self.normals_to_world(points) * self.scale + spread(self.position, points)

    @property
    def bounds(self) -> Bounds:
        """Of all parts, in the model's frame."""
        lows, highs = zip(*(part.shape.bounds for part in self.parts), strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that is never tilted sideways.

    Args:
        position: of the pinhole.
        azimuth: where it stands as seen from what it looks at, in turns counter-clockwise from x.
        elevation: how far it looks down, in turns: 0 along the ground, 1/4 straight down.
        focal: pixels.
        centre: (x, y) in pixels of what it looks at.
    """

    position: Vector
    azimuth: Number
    elevation: Number
    focal: Number
    centre: tuple[Number, Number] = (SIZE / 2, SIZE / 2)

    @property
    def axes(self) -> tuple[Vector, Vector, Vector]:
        """Rightwards, downwards and forwards in the picture, as directions of the world."""
        (cosine, sine), (flat, steep) = cos_sin(self.azimuth), cos_sin(self.elevation)
        down = vector(steep * cosine, steep * sine, -flat)
        return vector(-sine, cosine, 0), down, vector(-flat * cosine, -flat * sine, -steep)

    def rays(self) -> Float64[np.ndarray, "3 rows columns"]:
        """The direction of each sample; the step forwards is 1, so that t is the depth."""
        right, down, forward = self.axes
        middles = (np.arange(SIZE * SAMPLES) + 0.5) / SAMPLES
        x, y = (middles - self.centre[0]) / self.focal, ((middles - self.centre[1]) / self.focal)[:, None]
        return np.stack([right[k] * x + down[k] * y + forward[k] for k in range(3)])

    def window(self, bounds: Bounds, solid: Solid) -> tuple[slice, slice]:
        """Rows and columns of samples that may see a box of a solid, which lies before the camera."""
        corners = np.array(list(product(*zip(*bounds, strict=True)))).T
        offset = solid.to_world(corners) - spread(self.position, corners)
        right, down, forward = (dot(axis, offset) for axis in self.axes)
        spans = []
        for along, middle in ((down, self.centre[1]), (right, self.centre[0])):
            pixels = (along / forward * self.focal + middle) * SAMPLES
            first, last = math.floor(pixels.min()), math.ceil(pixels.max())
            spans.append(slice(min(max(first, 0), SIZE * SAMPLES), min(max(last, 0), SIZE * SAMPLES)))
        return spans[0], spans[1]


class Seen(NamedTuple):
    """What each sample sees: depth (infinite: no solid), unit normal, colour, and which solid (-1: none)."""

    depth: Float64[np.ndarray, "rows columns"]
    normal: Float64[np.ndarray, "3 rows columns"]
    colour: Float64[np.ndarray, "3 rows columns"]
    solid: Int64[np.ndarray, "rows columns"]


def look(camera: Camera, solids: Sequence[Solid]) -> Seen:
    """Cast a ray for each sample."""
    rays = camera.rays()
    depth = np.full(rays.shape[1:], np.inf)
    normal, colour, which = np.zeros(rays.shape), np.zeros(rays.shape), np.full(rays.shape[1:], -1, np.int64)
    for number, solid in enumerate(solids):
        origin = solid.to_model(camera.position)
        for part in solid.parts:
            window = camera.window(part.shape.bounds, solid)
            ways = solid.ways_to_model(rays[:, *window])
            t = part.shape.enter(origin, ways)
            nearer = t < depth[window]
            points = spread(origin, ways[:, nearer]) + t[nearer] * ways[:, nearer]
            depth[window][nearer] = t[nearer]
            normal[:, *window][:, nearer] = solid.normals_to_world(part.shape.normal(points))
            colour[:, *window][:, nearer] = part.colour[:, None]
            which[window][nearer] = number
    return Seen(depth, normal, colour, which)


def shadowed(points: Float64[np.ndarray, "3 n"], lamp: Vector, solids: Sequence[Solid]) -> Bool[np.ndarray, " n"]:
    """Whether a solid lies between points and a lamp in direction `lamp`, which is infinitely far."""
    dark = np.zeros(points.shape[1], bool)
    for solid in solids:
        start, way = solid.to_model(points), solid.ways_to_model(lamp)
        low, high = solid.bounds
        middle, radius = (low + high) / 2, np.sqrt(dot(high - low, high - low)) / 2
        offset = start - spread(middle, start)
        along = dot(offset, way / np.sqrt(dot(way, way)))
        near = (dot(offset, offset) - along * along < radius * radius) & ~dark  # the ray meets the ball around it
        if near.any():
            candidates, ways = start[:, near], np.broadcast_to(way[:, None], (3, int(near.sum())))
            hits = [np.isfinite(part.shape.enter(candidates, ways)) for part in solid.parts]
            dark[near] = np.any(hits, axis=0)
    return dark
