"""Solid scenes: which way does it face, from how high is it seen, how far is the nearest thing?

Each scene is built for its label, and then seen: `build_*` gives geometry, `see` a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from viapt.data.rendered.canvas import (
    SIZE,
    Canvas,
    Colour,
    Picture,
    blank,
    light_gradient,
    random_colour,
    sensor_noise,
    texture,
    to_picture,
)
from viapt.data.rendered.draws import Draws, Number, cos_sin
from viapt.data.rendered.models import random_model
from viapt.data.rendered.solids import (
    SAMPLES,
    Camera,
    Seen,
    Solid,
    Vector,
    Vectors,
    dot,
    look,
    shadowed,
    spread,
    vector,
)

AZIMUTHS = 18
ELEVATIONS = 9
LOWEST, STEP = 8.0, 9.0
"""Degrees: the first bin of elevations, and from one bin to the next."""

DISTANCES = 6
NEAREST, RATIO = 3.0, 1.22
"""Where the first bin of distances begins, and where each ends as a multiple of where it begins."""

CAMERA_HEIGHT = 1.6
CLEAR = 1e-4
"""How far above a surface its shadow is looked for, so that it does not shade itself."""


@dataclass(frozen=True)
class Lamp:
    """A distant lamp: where it is, what it adds to a surface that faces it, and what every surface gets."""

    direction: Vector
    strength: Number
    ambient: Number


@dataclass(frozen=True)
class Scene:
    """What there is to see.

    Args:
        camera, solids, lamp: in units of the world.
        backdrop: the picture where there is no solid.
    """

    camera: Camera
    solids: tuple[Solid, ...]
    lamp: Lamp
    backdrop: Canvas


def build_azimuth(draws: Draws, label: int, clean: bool = False) -> Scene:
    """One thing whose front looks label * 20 degrees, give or take 8, counter-clockwise from the camera.

    At 0 it faces the camera, at 90 the right. Thing, elevation, distance, lamp, colours and backdrop vary.
    """
    turns = (label + draws.uniform(-0.4, 0.4)) / AZIMUTHS
    return _one_thing(draws, turns, draws.uniform(12, 60) / 360, clean)


def build_elevation(draws: Draws, label: int, clean: bool = False) -> Scene:
    """One thing seen from 8 + 9 * label degrees above the ground, give or take 3.6; else as `build_azimuth`."""
    return _one_thing(draws, draws.uniform(0, 1), (LOWEST + STEP * (label + draws.uniform(-0.4, 0.4))) / 360, clean)


def _one_thing(draws: Draws, turns: Number, elevation: Number, clean: bool) -> Scene:
    background = random_colour(draws)
    solid = Solid(random_model(draws, background), turns, vector(0, 0, 0))
    away, zoom = draws.uniform(4.5, 7), draws.uniform(0.75, 1)
    flat, steep = cos_sin(elevation)
    target = vector(0, 0, 0.5)
    camera = Camera(
        position=target + away * vector(flat, 0, steep),
        azimuth=0,
        elevation=elevation,
        focal=zoom * away * SIZE / 2 / 1.25,
        centre=(SIZE / 2 + draws.uniform(-7, 7), SIZE / 2 + draws.uniform(-7, 7)),
    )
    lamp = _random_lamp(draws)
    backdrop = blank(background)
    return Scene(camera, (solid,), lamp, backdrop if clean else backdrop * light_gradient(draws) + texture(draws, 16))


def build_distance(draws: Draws, label: int, clean: bool = False) -> Scene:
    """Two to four things on a tiled floor; the nearest is in the given bin of distances, the others are farther away.

    The distance is from the camera to where the middle of the thing touches the floor: NEAREST * RATIO ** label and up
    to RATIO times that, without a tenth of the bin at each end. The camera's height and the tiles' size stay the
    same; its pitch, the things and their sizes, the floor's colours and its tiles' direction, and the lamp vary.
    """
    start = NEAREST
    for _ in range(label):
        start *= RATIO
    distance = start * (1 + (RATIO - 1) * draws.uniform(0.1, 0.9))
    camera = Camera(
        position=vector(0, 0, CAMERA_HEIGHT),
        azimuth=0,
        elevation=draws.uniform(11, 23) / 360,
        focal=SIZE * 1.1,
        centre=(SIZE / 2, SIZE / 2),
    )
    floor = random_colour(draws)
    solids = _place(draws, distance, 1 + draws.integer(3), floor)
    lamp = _random_lamp(draws)
    backdrop = _floor(draws, camera, floor, random_colour(draws))
    return Scene(camera, solids, lamp, backdrop if clean else backdrop * light_gradient(draws) + texture(draws, 10))


def _place(draws: Draws, distance: Number, others: int, floor: Colour) -> tuple[Solid, ...]:
    """Things that do not touch, each less than 18 degrees from the middle of the picture."""
    solids: list[Solid] = []
    while len(solids) <= others:
        away = distance * (draws.uniform(1.15, 1.8) if solids else 1)
        cosine, sine = cos_sin(draws.uniform(-18, 18) / 360)
        ground = np.sqrt(away * away - CAMERA_HEIGHT * CAMERA_HEIGHT)
        place, scale = vector(-ground * cosine, ground * sine, 0), draws.uniform(0.5, 0.75)
        gaps = [place - solid.position for solid in solids]
        if all(dot(gap, gap) > (scale + other.scale) ** 2 for gap, other in zip(gaps, solids, strict=True)):
            solids.append(Solid(random_model(draws, floor), draws.uniform(0, 1), place, scale))
    return tuple(solids)


def _floor(draws: Draws, camera: Camera, floor: Colour, sky: Colour) -> Canvas:
    """A floor of square tiles, 1 unit wide, that fade away into the distance; the sky above."""
    rays = camera.rays()
    down = rays[2] < 0
    away = np.where(down, -CAMERA_HEIGHT / np.where(down, rays[2], -1), np.inf)
    reach = np.where(down, away, 0)
    cosine, sine = cos_sin(draws.uniform(0, 1))
    u = (cosine * rays[0] - sine * rays[1]) * reach + draws.uniform(0, 2)
    v = (sine * rays[0] + cosine * rays[1]) * reach + draws.uniform(0, 2)
    odd = (np.floor(u) + np.floor(v)) % 2 - 0.5
    contrast = draws.uniform(30, 70) * np.clip(1 - reach / 16, 0, 1)
    samples = np.where(down[..., None], floor + (odd * contrast)[..., None], sky)
    return _merge(samples)


def _random_lamp(draws: Draws) -> Lamp:
    (cosine, sine), (flat, steep) = cos_sin(draws.uniform(0, 1)), cos_sin(draws.uniform(35, 75) / 360)
    return Lamp(vector(flat * cosine, flat * sine, steep), draws.uniform(0.55, 0.85), draws.uniform(0.3, 0.5))


def see(scene: Scene, draws: Draws, clean: bool = False) -> Picture:
    """The picture, with sensor noise unless `clean`."""
    seen = look(scene.camera, scene.solids)
    backdrop = np.repeat(np.repeat(scene.backdrop, SAMPLES, axis=0), SAMPLES, axis=1)
    surface = np.where((seen.solid >= 0)[..., None], np.moveaxis(seen.colour, 0, 2), backdrop)
    canvas = _merge(surface * _light(scene, seen)[..., None])
    return to_picture(canvas if clean else canvas + sensor_noise(draws))


def _light(scene: Scene, seen: Seen) -> Float64[np.ndarray, "rows columns"]:
    """What each sample's colour is multiplied by."""
    rays, eye, lamp = scene.camera.rays(), scene.camera.position, scene.lamp
    solid = seen.solid >= 0
    facing = np.where(solid, dot(spread(lamp.direction, rays), seen.normal), 0)
    lit = facing > 0
    normals = seen.normal[:, lit]
    points = _along(eye, rays[:, lit], seen.depth[lit]) + CLEAR * normals
    lit[lit] = ~shadowed(points, lamp.direction, scene.solids)
    light = np.where(solid, lamp.ambient + lamp.strength * np.where(lit, facing, 0), 1.0)
    ground = ~solid & (rays[2] < 0)
    where = _along(eye, rays[:, ground], -eye[2] / rays[2][ground])
    light[ground] = np.where(shadowed(where, lamp.direction, scene.solids), 1 - 0.6 * lamp.strength, 1)
    return light


def _along(eye: Vector, rays: Vectors, depth: Float64[np.ndarray, "*rays"]) -> Vectors:
    return spread(eye, rays) + depth * rays


def _merge(samples: Float64[np.ndarray, "rows columns 3"]) -> Canvas:
    """The mean of each pixel's samples."""
    rows = sum((samples[k::SAMPLES] for k in range(1, SAMPLES)), samples[::SAMPLES])
    return sum((rows[:, k::SAMPLES] for k in range(1, SAMPLES)), rows[:, ::SAMPLES]) / SAMPLES**2


def draw_azimuth(draws: Draws, label: int, clean: bool = False) -> Picture:
    """`build_azimuth`, seen."""
    return see(build_azimuth(draws, label, clean), draws, clean)


def draw_elevation(draws: Draws, label: int, clean: bool = False) -> Picture:
    """`build_elevation`, seen."""
    return see(build_elevation(draws, label, clean), draws, clean)


def draw_distance(draws: Draws, label: int, clean: bool = False) -> Picture:
    """`build_distance`, seen."""
    return see(build_distance(draws, label, clean), draws, clean)
