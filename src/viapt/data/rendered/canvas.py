"""What pictures are painted on: colours, smooth textures, a gradient of light, sensor noise, 8 bits."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, UInt8

from viapt.data.rendered.draws import Draws, Number

SIZE = 96
"""Pixels a side."""

KNOTS = 13
"""Of a texture, a side: its spots are some 8 pixels wide."""

Colour = Float64[np.ndarray, " 3"]
Canvas = Float64[np.ndarray, "height width 3"]
Picture = UInt8[np.ndarray, "height width 3"]

AXIS = (np.arange(SIZE) * 2 + 1 - SIZE) / SIZE
"""The middles of pixels, from -1 to 1."""


def blank(colour: Colour) -> Canvas:
    """A canvas of one colour, levels 0 to 255."""
    return np.broadcast_to(colour, (SIZE, SIZE, 3)).copy()


def random_colour(draws: Draws) -> Colour:
    """Any colour but the extremes."""
    return draws.uniforms(20, 235, 3)


def contrasting(draws: Draws, *others: Colour, by: Number = 70) -> Colour:
    """A random colour at least `by` levels away from each of the others in some channel; `by` is at most 100."""
    while True:
        colour = random_colour(draws)
        if all(np.abs(colour - other).max() >= by for other in others):
            return colour


def texture(draws: Draws, deviation: Number) -> Canvas:
    """Smooth spots: random levels with a standard deviation at the knots, interpolated linearly."""
    position = np.arange(SIZE) * ((KNOTS - 1) / (SIZE - 1))
    before = np.minimum(position.astype(np.int64), KNOTS - 2)
    after = position - before
    knots = draws.noise(deviation, KNOTS, KNOTS, 3)
    rows = knots[before] * (1 - after[:, None, None]) + knots[before + 1] * after[:, None, None]
    return rows[:, before] * (1 - after[:, None]) + rows[:, before + 1] * after[:, None]


def light_gradient(draws: Draws) -> Float64[np.ndarray, "height width 1"]:
    """Factors around 1 that change evenly over the picture, by at most 0.15 each way."""
    down, across = draws.uniform(-0.15, 0.15), draws.uniform(-0.15, 0.15)
    return (1 + down * AXIS[:, None] + across * AXIS)[..., None]


def sensor_noise(draws: Draws) -> Canvas:
    """Independent for each pixel and channel."""
    return draws.noise(6, SIZE, SIZE, 3)


def to_picture(canvas: Canvas) -> Picture:
    """Rounded to 8 bits."""
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
