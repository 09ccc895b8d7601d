"""Things with a front, of random proportions and colours: a car, a truck, a plane, an animal, a figure.

Each looks along x, stands on z = 0, is some 2 units long or high, and the same to the left and to the right.
"""

from __future__ import annotations

from collections.abc import Callable

from viapt.data.rendered.canvas import Colour, contrasting
from viapt.data.rendered.draws import Draws, Number
from viapt.data.rendered.solids import Block, Ellipsoid, Part, vector

Parts = tuple[Part, ...]
DARK, PALE = vector(28, 28, 32), vector(240, 238, 220)


def _ball(x: Number, y: Number, z: Number, rx: Number, ry: Number, rz: Number, colour: Colour) -> Part:
    return Part(Ellipsoid(vector(x, y, z), vector(rx, ry, rz)), colour)


def _balls(x: Number, y: Number, z: Number, rx: Number, ry: Number, rz: Number, colour: Colour) -> Parts:
    """One on each side."""
    return _ball(x, y, z, rx, ry, rz, colour), _ball(x, -y, z, rx, ry, rz, colour)


def car(draws: Draws, paint: Colour, trim: Colour) -> Parts:
    """The bonnet is at the front, and so are two lamps."""
    width, roof, rear = draws.uniform(0.38, 0.48), draws.uniform(0.82, 1.0), draws.uniform(-0.85, -0.6)
    wheel, bonnet = draws.uniform(0.18, 0.24), draws.uniform(0.2, 0.4)
    return (
        Part(Block((-1, 1, width), (-0.95, 0.95, width * 0.95), 0.14, 0.5), paint),
        Part(Block((rear, bonnet, width * 0.92), (rear + 0.1, bonnet - 0.32, width * 0.75), 0.5, roof), trim),
        *_balls(0.62, width, wheel, wheel, 0.08, wheel, DARK),
        *_balls(-0.62, width, wheel, wheel, 0.08, wheel, DARK),
        *_balls(0.97, width * 0.66, 0.38, 0.06, 0.1, 0.08, PALE),
    )


def truck(draws: Draws, paint: Colour, trim: Colour) -> Parts:
    """The cab is at the front, lower than the load, with a dark windscreen and two lamps."""
    width, height, wheel = draws.uniform(0.36, 0.44), draws.uniform(0.95, 1.2), draws.uniform(0.15, 0.19)
    load, cab = draws.uniform(0.2, 0.4), draws.uniform(0.7, 0.85)
    return (
        Part(Block((-1, load, width), (-1, load, width), 0.22, height), paint),
        Part(Block((load + 0.08, 1, width * 0.95), (load + 0.08, 0.86, width * 0.9), 0.16, cab), trim),
        Part(Block((0.9, 0.98, width * 0.8), (0.86, 0.9, width * 0.75), cab * 0.62, cab * 0.92), DARK),
        *(part for x in (-0.75, -0.4, 0.65) for part in _balls(x, width, wheel, wheel, 0.08, wheel, DARK)),
        *_balls(0.99, width * 0.66, 0.3, 0.06, 0.09, 0.07, PALE),
    )


def plane(draws: Draws, paint: Colour, trim: Colour) -> Parts:
    """The fin is at the back, and the nose has the other colour."""
    span, thick, fin = draws.uniform(0.8, 1.05), draws.uniform(0.15, 0.2), draws.uniform(0.8, 1.0)
    at = draws.uniform(-0.05, 0.2)
    return (
        _ball(0, 0, 0.45, 1.0, thick, thick, paint),
        _ball(0.82, 0, 0.45, 0.22, thick * 0.72, thick * 0.72, trim),
        Part(Block((at - 0.25, at + 0.22, span), (at - 0.2, at + 0.1, span), 0.4, 0.48), trim),
        Part(Block((-0.97, -0.72, 0.4), (-0.95, -0.8, 0.38), 0.45, 0.5), trim),
        Part(Block((-0.97, -0.6, 0.04), (-1.0, -0.85, 0.03), 0.45, fin), paint),
        Part(Block((0.1, 0.2, 0.04), (0.1, 0.2, 0.04), 0, 0.4), DARK),
        _ball(0.5, 0, 0.45 + thick * 0.75, 0.16, 0.09, 0.08, DARK),
    )


def animal(draws: Draws, paint: Colour, trim: Colour) -> Parts:
    """Head, ears and a snout of the other colour at the front; a tail at the back."""
    body, leg, neck = draws.uniform(0.22, 0.3), draws.uniform(0.35, 0.5), draws.uniform(0.1, 0.4)
    back, foot = leg + body * 0.8, draws.uniform(0.06, 0.09)
    head = back + neck
    return (
        _ball(-0.05, 0, back, 0.68, body, body, paint),
        Part(Block((0.35, 0.62, 0.12), (0.58, 0.8, 0.1), back, head), paint),
        _ball(0.74, 0, head, 0.22, 0.16, 0.17, paint),
        _ball(0.95, 0, head - 0.05, 0.14, 0.09, 0.09, trim),
        *_balls(0.66, 0.12, head + 0.17, 0.05, 0.05, 0.12, trim),
        *(part for x in (0.32, -0.42) for part in _legs(x, 0.15, foot, back, paint)),
        _ball(-0.78, 0, back + 0.1, 0.18, 0.05, 0.05, trim),
    )


def figure(draws: Draws, paint: Colour, trim: Colour) -> Parts:
    """Arms, feet and a nose point to the front, and the face is pale."""
    width, hip, shoulder = draws.uniform(0.3, 0.4), draws.uniform(0.55, 0.7), draws.uniform(1.15, 1.35)
    reach = draws.uniform(0.5, 0.75)
    head = shoulder + 0.24
    return (
        Part(Block((-0.18, 0.18, width * 0.8), (-0.2, 0.2, width), hip, shoulder), paint),
        _ball(0, 0, head, 0.24, 0.22, 0.25, trim),
        _ball(0.1, 0, head, 0.19, 0.17, 0.19, PALE),
        _ball(0.29, 0, head - 0.02, 0.08, 0.05, 0.06, DARK),
        *_legs(0, width * 0.45, 0.12, hip, trim),
        *_balls(0.14, width * 0.45, 0.07, 0.26, 0.12, 0.08, DARK),
        *_balls(reach / 2, width + 0.06, shoulder - 0.14, reach / 2 + 0.1, 0.09, 0.09, paint),
        *_balls(reach + 0.06, width + 0.06, shoulder - 0.14, 0.11, 0.1, 0.1, PALE),
    )


def _legs(x: Number, y: Number, half: Number, top: Number, colour: Colour) -> Parts:
    """Two, down to the ground."""
    return _balls(x, y, top / 2, half, half, top / 2, colour)


MODELS: tuple[Callable[[Draws, Colour, Colour], Parts], ...] = (car, truck, plane, animal, figure)


def random_model(draws: Draws, background: Colour) -> Parts:
    """One of the models, in two colours that stand out from each other and from the background."""
    paint = contrasting(draws, background)
    return draws.choice(MODELS)(draws, paint, contrasting(draws, background, paint))
