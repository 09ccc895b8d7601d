"""Pictures drawn by rule, with exact labels: where does the object point, and how many objects are there?

A shape is a union of convex polygons in a unit disc. A pixel's coverage is its distance to the nearest edge, clipped to
one pixel: edges are antialiased and nothing is sampled. Picture `i` of a seed is the same however many are drawn.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, UInt8

SIZE = 96
"""Pixels a side."""

DIRECTIONS = 16
COUNTS = range(3, 11)

Polygon = Float64[np.ndarray, "_ 2"]
Colour = Float64[np.ndarray, " 3"]
Canvas = Float64[np.ndarray, "height width 3"]
Pictures = tuple[UInt8[np.ndarray, "n height width 3"], Int64[np.ndarray, " n"]]


def _regular(corners: int, width: float = 1.0, height: float = 1.0, at: float = 0.0) -> Polygon:
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([at + width * np.cos(angles), height * np.sin(angles)], axis=1)


def _polygon(*corners: tuple[float, float]) -> Polygon:
    """Corners counter-clockwise."""
    return np.array(corners, np.float64)


# Each has a broad end at the left and a narrow end, which is where it points, at the right.
POINTERS: tuple[tuple[Polygon, ...], ...] = (
    (_polygon((-0.8, -0.5), (1.0, 0.0), (-0.8, 0.5)),),  # wedge
    (_regular(24, 0.45, 0.45, at=-0.5), _polygon((-0.45, -0.44), (1.0, 0.0), (-0.45, 0.44))),  # drop
    (_polygon((-0.8, 0.0), (-0.45, -0.5), (1.0, 0.0), (-0.45, 0.5)),),  # kite
    (  # tee
        _polygon((-0.8, -0.6), (-0.4, -0.6), (-0.4, 0.6), (-0.8, 0.6)),
        _polygon((-0.45, -0.14), (1.0, -0.14), (1.0, 0.14), (-0.45, 0.14)),
    ),
)
BLOBS: tuple[tuple[Polygon, ...], ...] = (
    (_regular(24),),  # disc
    (_regular(4),),  # square
    (_regular(3),),  # triangle
    (_regular(24, 1.0, 0.6),),  # ellipse
    (_regular(6),),  # hexagon
)


def render_orientation(n: int, seed: int, *, clean: bool = False) -> Pictures:
    """`n` pictures of one object; label k means that its narrow end points to k * 22.5 degrees, give or take 9.

    Degrees run counter-clockwise from the right. Labels are balanced to within one. Shape, position, size, both
    colours, texture, light and noise vary; `clean` leaves the last three out and everything else as it is.

    Returns:
        images (n, 96, 96, 3) and labels (n,) in [0, 16).
    """
    labels = _balanced(n, DIRECTIONS, seed)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for index, label in enumerate(labels):
        rng = np.random.Generator(np.random.PCG64([seed, index]))
        background, shape = _colour(rng), POINTERS[rng.integers(len(POINTERS))]
        canvas, radius = _blank(background), rng.uniform(18, 34)
        angle = 2 * np.pi * (label + rng.uniform(-0.4, 0.4)) / DIRECTIONS
        _paint(canvas, shape, rng.uniform(radius, SIZE - radius, 2), radius, angle, _contrasting(rng, background))
        images[index] = _finish(canvas, None if clean else rng)
    return images, labels


def render_count(n: int, seed: int, *, clean: bool = False) -> Pictures:
    """`n` pictures of 3 to 10 objects that do not touch; label k means k + 3 objects.

    Labels are balanced to within one. Objects differ in shape, size, angle and colour, and pictures in the scale of
    their objects, so that the painted area tells little of the number; texture, light and noise vary unless `clean`.

    Returns:
        images (n, 96, 96, 3) and labels (n,) in [0, 8).
    """
    labels = _balanced(n, len(COUNTS), seed)
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    for index, label in enumerate(labels):
        rng = np.random.Generator(np.random.PCG64([seed, index]))
        background = _colour(rng)
        canvas = _blank(background)
        radii = rng.uniform(5, 11) * rng.uniform(0.75, 1.0, COUNTS[label])
        for centre, radius in zip(_scatter(rng, radii), radii, strict=True):
            shape = BLOBS[rng.integers(len(BLOBS))]
            _paint(canvas, shape, centre, radius, rng.uniform(0, 2 * np.pi), _contrasting(rng, background))
        images[index] = _finish(canvas, None if clean else rng)
    return images, labels


def _balanced(n: int, classes: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Each round of `classes` labels holds every class once; a prefix of a longer drawing is a shorter drawing."""
    rng = np.random.Generator(np.random.PCG64(seed))
    rounds = [rng.permutation(classes) for _ in range(-(-n // classes))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:n].astype(np.int64)


def _blank(colour: Colour) -> Canvas:
    return np.broadcast_to(colour, (SIZE, SIZE, 3)).copy()


def _colour(rng: np.random.Generator) -> Colour:
    return rng.uniform(20, 235, 3)


def _contrasting(rng: np.random.Generator, background: Colour) -> Colour:
    """A random colour at least 70 levels away from the background in some channel."""
    while True:
        colour = _colour(rng)
        if np.abs(colour - background).max() >= 70:
            return colour


def _scatter(rng: np.random.Generator, radii: Float64[np.ndarray, " objects"]) -> Float64[np.ndarray, "objects 2"]:
    """Centres (x, y) of discs that keep 3 pixels from each other and lie inside the picture."""
    while True:
        centres = np.empty((0, 2))
        for radius in radii:
            candidates = rng.uniform(radius + 1, SIZE - radius - 1, (64, 2))
            distances = np.linalg.norm(candidates[:, None] - centres, axis=2)
            free = (distances >= radii[: len(centres)] + radius + 3).all(axis=1)
            if not free.any():
                break  # too crowded: begin anew
            centres = np.vstack([centres, candidates[free.argmax()]])
        else:
            return centres


def _paint(
    canvas: Canvas,
    shape: tuple[Polygon, ...],
    centre: Float64[np.ndarray, " 2"],
    radius: float,
    angle: float,
    colour: Colour,
) -> None:
    """Draw a shape at `centre` (x, y in pixels), turned counter-clockwise by `angle` radians, over the canvas."""
    left, top = np.maximum(np.floor(centre - radius - 1), 0).astype(int)
    right, bottom = np.minimum(np.ceil(centre + radius + 1), SIZE).astype(int)
    x, y = np.meshgrid(np.arange(left, right) + 0.5 - centre[0], np.arange(top, bottom) + 0.5 - centre[1])
    # Rows run downwards and angles upwards: turn the pixels back by the angle, in a frame with y upwards.
    u = (np.cos(angle) * x - np.sin(angle) * y) / radius
    v = (-np.sin(angle) * x - np.cos(angle) * y) / radius
    depth = np.max([_depth(polygon, u, v) for polygon in shape], axis=0)
    coverage = np.clip(depth * radius + 0.5, 0, 1)[..., None]
    window = canvas[top:bottom, left:right]
    window += coverage * (colour - window)


def _depth(
    polygon: Polygon, u: Float64[np.ndarray, "h w"], v: Float64[np.ndarray, "h w"]
) -> Float64[np.ndarray, "h w"]:
    """How deep points lie inside a convex polygon: the distance to the nearest edge's line, negative outside."""
    du, dv = (np.roll(polygon, -1, axis=0) - polygon).T
    length = np.hypot(du, dv)
    inward = (du * (v[..., None] - polygon[:, 1]) - dv * (u[..., None] - polygon[:, 0])) / length
    return inward.min(axis=2)


def _finish(canvas: Canvas, rng: np.random.Generator | None) -> UInt8[np.ndarray, "height width 3"]:
    """Texture, a gradient of light and sensor noise, when there is a generator for them; then 8 bits."""
    if rng is not None:
        texture = _SMOOTH @ rng.normal(0, 12, (3, _SMOOTH.shape[1], _SMOOTH.shape[1])) @ _SMOOTH.T
        slope = rng.uniform(-0.15, 0.15, 2)
        light = 1 + slope[0] * _AXIS[:, None] + slope[1] * _AXIS
        canvas = canvas * light[..., None] + texture.transpose(1, 2, 0) + rng.normal(0, 6, canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _interpolation(knots: int) -> Float64[np.ndarray, "size knots"]:
    """The matrix that interpolates linearly between `knots` values spread over a side."""
    position = np.linspace(0, knots - 1, SIZE)
    return np.clip(1 - np.abs(position[:, None] - np.arange(knots)), 0, None)


_SMOOTH = _interpolation(13)
_AXIS = np.linspace(-1, 1, SIZE)
