"""Flat scenes: where does the object point, and how many objects are there?

A shape is a union of convex polygons in a unit disc. A pixel's coverage is its distance to the nearest edge, clipped to
one pixel: edges are antialiased and nothing is sampled.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64

from viapt.data.rendered.canvas import (
    SIZE,
    Canvas,
    Colour,
    Picture,
    blank,
    contrasting,
    light_gradient,
    random_colour,
    sensor_noise,
    texture,
    to_picture,
)
from viapt.data.rendered.draws import Draws, cos_sin

DIRECTIONS = 16
COUNTS = range(3, 11)

Polygon = Float64[np.ndarray, "_ 2"]


def _regular(corners: int, width: float = 1.0, height: float = 1.0, at: float = 0.0) -> Polygon:
    circle = np.array([cos_sin(k / corners) for k in range(corners)])
    return circle * (width, height) + (at, 0)


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


def draw_orientation(draws: Draws, label: int, clean: bool = False) -> Picture:
    """One object whose narrow end points to label * 22.5 degrees, give or take 9, counter-clockwise from the right.

    Shape, position, size, both colours, texture, light and noise vary; `clean` leaves the last three out.
    """
    background, shape = random_colour(draws), draws.choice(POINTERS)
    canvas, radius = blank(background), draws.uniform(18, 34)
    turns = (label + draws.uniform(-0.4, 0.4)) / DIRECTIONS
    _paint(canvas, shape, draws.uniforms(radius, SIZE - radius, 2), radius, turns, contrasting(draws, background))
    return _finish(canvas, draws, clean)


def draw_count(draws: Draws, label: int, clean: bool = False) -> Picture:
    """label + 3 objects that do not touch.

    Objects differ in shape, size, angle and colour, and pictures in the scale of their objects, so that the painted
    area tells little of the number; texture, light and noise vary unless `clean`.
    """
    background = random_colour(draws)
    canvas = blank(background)
    radii = draws.uniform(5, 11) * draws.uniforms(0.75, 1.0, COUNTS[label])
    for centre, radius in zip(_scatter(draws, radii), radii, strict=True):
        _paint(canvas, draws.choice(BLOBS), centre, radius, draws.uniform(0, 1), contrasting(draws, background))
    return _finish(canvas, draws, clean)


def _scatter(draws: Draws, radii: Float64[np.ndarray, " objects"]) -> Float64[np.ndarray, "objects 2"]:
    """Centres (x, y) of discs that keep 3 pixels from each other and lie inside the picture."""
    while True:
        centres = np.empty((0, 2))
        for radius in radii:
            candidates = draws.uniforms(radius + 1, SIZE - radius - 1, 64, 2)
            x, y = np.moveaxis(candidates[:, None] - centres, 2, 0)
            reach = radii[: len(centres)] + radius + 3
            free = (x * x + y * y >= reach * reach).all(axis=1)
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
    turns: float,
    colour: Colour,
) -> None:
    """Draw a shape at `centre` (x, y in pixels), turned counter-clockwise, over the canvas."""
    left, top = np.maximum(np.floor(centre - radius - 1), 0).astype(int)
    right, bottom = np.minimum(np.ceil(centre + radius + 1), SIZE).astype(int)
    x, y = np.arange(left, right) + 0.5 - centre[0], (np.arange(top, bottom) + 0.5 - centre[1])[:, None]
    # Rows run downwards and angles upwards: turn the pixels back by the angle, in a frame with y upwards.
    cosine, sine = cos_sin(turns)
    u, v = (cosine * x - sine * y) / radius, (-sine * x - cosine * y) / radius
    depth = np.max([_depth(polygon, u, v) for polygon in shape], axis=0)
    coverage = np.clip(depth * radius + 0.5, 0, 1)[..., None]
    window = canvas[top:bottom, left:right]
    window += coverage * (colour - window)


def _depth(
    polygon: Polygon, u: Float64[np.ndarray, "h w"], v: Float64[np.ndarray, "h w"]
) -> Float64[np.ndarray, "h w"]:
    """How deep points lie inside a convex polygon: the distance to the nearest edge's line, negative outside."""
    du, dv = (np.roll(polygon, -1, axis=0) - polygon).T
    length = np.sqrt(du * du + dv * dv)
    inward = (du * (v[..., None] - polygon[:, 1]) - dv * (u[..., None] - polygon[:, 0])) / length
    return inward.min(axis=2)


def _finish(canvas: Canvas, draws: Draws, clean: bool) -> Picture:
    if not clean:
        canvas = canvas * light_gradient(draws) + texture(draws, 12) + sensor_noise(draws)
    return to_picture(canvas)
