"""Solid rendered tasks against independent geometry: matrices in place of ray casting, and marks in the pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from viapt.data.rendered.canvas import SIZE
from viapt.data.rendered.draws import Draws
from viapt.data.rendered.models import MODELS
from viapt.data.rendered.scenes import Lamp, Scene, build_azimuth, build_distance, build_elevation, see
from viapt.data.rendered.solids import SAMPLES, Block, Camera, Ellipsoid, Part, Solid, look, shadowed, vector

RED, GREEN, BLUE = vector(255, 0, 0), vector(0, 255, 0), vector(0, 0, 255)
NOON = Lamp(vector(0, 0, 1), 0.0, 1.0)  # ambient light alone: every surface shows its own colour


def project(camera: Camera, points: np.ndarray) -> np.ndarray:
    """(x, y) in pixels of points (n, 3): rotate the world until the camera looks along z with y downwards; divide."""
    upright = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]])  # from x towards the camera, z up
    degrees = [-360 * camera.azimuth, 360 * camera.elevation]
    turned = Rotation.from_euler("zy", degrees, degrees=True).apply(points - camera.position) @ upright.T
    return turned[:, :2] / turned[:, 2:] * camera.focal + camera.centre


def marked(scene: Scene, number: int, marks: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Where small balls at places of a solid's own frame appear, (x, y) in pixels, with nothing else to see."""
    found = {}
    for name, (place, colour) in marks.items():
        solid = replace(scene.solids[number], parts=(Part(Ellipsoid(place, vector(0.12, 0.12, 0.12)), colour),))
        bare = replace(scene, solids=(solid,), lamp=NOON, backdrop=np.zeros((SIZE, SIZE, 3)))
        weight = see(bare, Draws(0), clean=True).max(axis=2).astype(float)
        rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
        found[name] = np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()
    return found


FRONT, REAR, TOP = vector(0.8, 0, 0.2), vector(-0.8, 0, 0.2), vector(0, 0, 0.8)


@pytest.mark.parametrize("label", range(18))
def test_azimuth_is_where_the_front_is_seen(label):
    """The angle at which the marks best fit, by search over all angles, lies in the label's bin."""
    scene = build_azimuth(Draws(3, label), label, True)
    seen = marked(scene, 0, {"front": (FRONT, RED), "rear": (REAR, BLUE)})
    degrees = np.arange(0, 360, 0.5)
    errors = []
    for angle in degrees:
        places = Rotation.from_euler("z", angle, degrees=True).apply([FRONT, REAR])
        errors.append(np.abs(project(scene.camera, places) - [seen["front"], seen["rear"]]).max())
    best = degrees[int(np.argmin(errors))]
    assert min(errors) < 0.6
    assert abs((best - 20 * label + 180) % 360 - 180) <= 8 + 1


@pytest.mark.parametrize("label", range(9))
def test_elevation_is_where_top_and_front_are_seen(label):
    scene = build_elevation(Draws(4, label), label, True)
    seen = marked(scene, 0, {"top": (TOP, RED), "front": (FRONT, BLUE)})
    front = Rotation.from_euler("z", scene.solids[0].turns * 360, degrees=True).apply(FRONT)
    away, degrees, errors = np.linalg.norm(scene.camera.position - (0, 0, 0.5)), np.arange(0, 90, 0.25), []
    for angle in degrees:
        position = np.array([away * np.cos(np.radians(angle)), 0, 0.5 + away * np.sin(np.radians(angle))])
        camera = replace(scene.camera, position=position, elevation=angle / 360)
        errors.append(np.abs(project(camera, np.array([TOP, front])) - [seen["top"], seen["front"]]).max())
    assert min(errors) < 0.6
    assert abs(degrees[int(np.argmin(errors))] - (8 + 9 * label)) <= 3.6 + 1


@pytest.mark.parametrize("label", range(6))
def test_distance_is_that_of_the_nearest_foot(label):
    """A mark at each foot; its pixel, and the floor under that pixel, say how far it is."""
    for seed in range(4):
        scene = build_distance(Draws(5, seed, label), label, True)
        distances = []
        for number in range(len(scene.solids)):
            x, y = marked(scene, number, {"foot": (vector(0, 0, 0), RED)})["foot"]
            right, down = (x - SIZE / 2) / scene.camera.focal, (y - SIZE / 2) / scene.camera.focal
            sight = Rotation.from_euler("y", 360 * scene.camera.elevation, degrees=True).apply([1, 0, -down])
            sight[1] = right
            distances.append(np.linalg.norm(sight) * 1.6 / -sight[2])
        first = 3.0 * 1.22**label
        assert first * 0.99 <= distances[0] <= first * 1.22 * 1.01
        assert 2 <= len(distances) <= 4 and min(distances[1:]) > distances[0] * 1.1


def test_things_stand_apart_in_sight_and_on_the_floor():
    for seed in range(30):
        scene = build_distance(Draws(6, seed), seed % 6, True)
        seen = look(scene.camera, scene.solids)
        assert (seen.solid == 0).sum() > 60  # samples of the nearest
        feet = np.array([solid.position for solid in scene.solids])
        gaps = np.linalg.norm(feet[:, None] - feet, axis=2) + 9 * np.eye(len(feet))
        assert gaps.min() > 0.9 and not feet[:, 2].any()


# Models


@pytest.mark.parametrize("model", MODELS)
def test_models_have_a_front_a_left_and_right_alike_and_stand_on_the_ground(model):
    for seed in range(5):
        parts = model(Draws(7, seed), RED, BLUE)
        points = np.random.default_rng(seed).uniform((-1.3, -1.3, 0), (1.3, 1.3, 1.8), (4000, 3))
        inside = colours_at(parts, points)
        np.testing.assert_array_equal(inside, colours_at(parts, points * (1, -1, 1)))
        for turned in ((-1, -1, 1), (-1, 1, 1)):
            differing = (inside != colours_at(parts, points * turned)).any(axis=1)
            assert differing.sum() > 0.2 * inside.any(axis=1).sum()
        solid = Solid(parts, 0, vector(0, 0, 0))
        low, high = solid.bounds
        assert low[2] >= -0.02 and np.linalg.norm(np.maximum(np.abs(low), high)) < 2.1


def colours_at(parts: tuple[Part, ...], points: np.ndarray) -> np.ndarray:
    """The sum of the colours of all parts around each point (n, 3); black outside."""
    found = np.zeros((len(points), 3))
    for part in parts:
        found += contains(part.shape, points)[:, None] * (part.colour + 1)
    return found


def contains(shape: Ellipsoid | Block, points: np.ndarray) -> np.ndarray:
    """By the definition of a shape, not by its rays."""
    if isinstance(shape, Ellipsoid):
        return (((points - shape.centre) / shape.radii) ** 2).sum(axis=1) < 1
    up = (points[:, 2] - shape.low) / (shape.high - shape.low)
    back, front, side = np.array(shape.bottom)[:, None] * (1 - up) + np.array(shape.top)[:, None] * up
    x, y = points[:, 0], np.abs(points[:, 1])
    return (up > 0) & (up < 1) & (x > back) & (x < front) & (y < side)


# Rays

sizes = st.floats(0.2, 1.0)


@st.composite
def shapes(draw):
    centre = draw(st.floats(-0.5, 0.5))
    if draw(st.booleans()):
        return Ellipsoid(vector(centre, 0, 0.5), vector(draw(sizes), draw(sizes), draw(sizes)))
    top = sorted(draw(st.floats(-1, 1)) for _ in range(2))
    return Block((centre - draw(sizes), centre + draw(sizes), draw(sizes)), (*top, draw(sizes)), 0.0, draw(sizes))


@given(shapes(), st.integers(0, 1000))
def test_rays_enter_where_a_walk_along_them_first_is_inside(shape, seed):
    rng = np.random.default_rng(seed)
    start, aim = rng.normal(size=3), rng.uniform(-0.6, 0.6, (3, 20))
    start *= 4 / np.linalg.norm(start)
    ways = aim - start[:, None]
    t = shape.enter(start, ways)
    steps = np.linspace(0, 2, 4001)
    for k in range(20):
        inside = np.flatnonzero(contains(shape, start + steps[:, None] * ways[:, k]))
        if len(inside) > 1:
            assert abs(t[k] - steps[inside[0]]) < 1e-3
            point, normal = start + t[k] * ways[:, k], shape.normal((start + t[k] * ways[:, k])[:, None])[:, 0]
            assert abs(np.linalg.norm(normal) - 1) < 1e-12 and normal @ ways[:, k] <= 0
            assert not contains(shape, (point + 1e-6 * normal)[None])[0]
        elif len(inside) == 0 and np.isfinite(t[k]):  # a shorter way through than the walk's step
            assert (
                contains(shape, (start + (t[k] + 2e-4) * ways[:, k])[None])[0]
                or not contains(shape, (start + (t[k] + 1e-3) * ways[:, k])[None])[0]
            )


def test_the_nearest_of_two_is_seen_and_windows_hide_nothing():
    near = Solid((Part(Ellipsoid(vector(0, 0, 0.5), vector(0.3, 0.3, 0.3)), RED),), 0.1, vector(1, 0.1, 0), 0.8)
    far = Solid((Part(Block((-1, 1, 1), (-1, 1, 1), 0, 1), GREEN),), 0.3, vector(-1, 0, 0), 1.1)
    camera = Camera(vector(6, 0, 2), 0, 0.05, 180)
    both, swapped = look(camera, (near, far)), look(camera, (far, near))
    np.testing.assert_array_equal(both.colour, swapped.colour)
    red = both.colour[0] > 0
    assert red.any() and (both.depth[red] < 6).all() and (both.colour[1] > 0).any()
    for solid in (near, far):  # cast at every sample, without a window
        alone = look(camera, (solid,))
        whole = solid.parts[0].shape.enter(solid.to_model(camera.position), solid.ways_to_model(camera.rays()))
        np.testing.assert_array_equal(alone.depth, whole)


def test_shadows_lie_opposite_the_lamp():
    ball = Solid((Part(Ellipsoid(vector(0, 0, 1), vector(0.5, 0.5, 0.5)), RED),), 0.2, vector(1, 0, 0))
    floor = np.stack([*np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61)), np.zeros((61, 61))]).reshape(3, -1)
    lamp = vector(0.6, 0, 0.8)
    dark = shadowed(floor, lamp, (ball,))
    middle = floor[:, dark].mean(axis=1)
    np.testing.assert_allclose(middle, (1 - 0.75, 0, 0), atol=0.02)  # one up, 0.6 / 0.8 across
    assert abs(dark.sum() * 0.01 - np.pi * 0.5 * 0.5 / 0.8) < 0.05  # a disc, stretched by the slant
    assert not shadowed(floor, -lamp, (ball,)).any()


def test_a_face_towards_the_lamp_is_brighter_by_its_angle():
    block = Solid((Part(Block((-1, 1, 1), (-1, 1, 1), 0, 1), vector(100, 100, 100)),), 0, vector(0, 0, 0))
    camera = Camera(vector(0.001, 0, 9), 0, 0.25, 200)
    scene = Scene(camera, (block,), Lamp(vector(0.6, 0, 0.8), 0.5, 0.4), np.zeros((SIZE, SIZE, 3)))
    assert (see(scene, Draws(0), clean=True)[SIZE // 2, SIZE // 2] == round(100 * (0.4 + 0.5 * 0.8))).all()
    assert SAMPLES == 2
