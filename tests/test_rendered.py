"""Rendered labels against independent geometry: connected components and moments."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from viapt.data.rendered import BLOBS, POINTERS, SIZE, render_count, render_orientation

RENDERERS = (render_orientation, render_count)


def difference(image: np.ndarray) -> np.ndarray:
    """How far each pixel of a clean picture is from the background, whose colour a corner shows."""
    image = image.astype(float)
    return np.abs(image - image[0, 0]).max(axis=2)


def test_counts_are_the_number_of_connected_components():
    images, labels = render_count(240, 5, clean=True)
    found = [ndimage.label(difference(image) > 15, np.ones((3, 3)))[1] for image in images]
    np.testing.assert_array_equal(found, labels + 3)
    assert set(found) == set(range(3, 11))


def direction(image: np.ndarray) -> float:
    """Where the narrow end points, in degrees: along the long axis, to the side of the longer tail."""
    weight = difference(image)
    weight = weight / weight.max()
    rows, columns = np.mgrid[:SIZE, :SIZE]
    points = np.stack([columns.ravel(), -rows.ravel()], axis=1).astype(float)
    mass = weight.ravel() / weight.sum()
    points -= mass @ points
    axis = np.linalg.eigh((points * mass[:, None]).T @ points)[1][:, -1]
    axis *= np.sign(mass @ (points @ axis) ** 3)
    return float(np.degrees(np.arctan2(axis[1], axis[0])))


def test_orientations_agree_with_moments():
    images, labels = render_orientation(320, 5, clean=True)
    error = np.array([direction(image) for image in images]) - labels * 22.5
    error = (error + 180) % 360 - 180
    assert np.abs(error).max() < 9 + 1.5  # up to 9 degrees by design, the rest by pixels
    assert np.abs(error).max() > 8  # and the design is used to the full


@pytest.mark.parametrize("render", RENDERERS)
def test_same_seed_same_pictures_and_a_prefix_is_a_prefix(render):
    images, labels = render(12, 3)
    again, same = render(7, 3)
    np.testing.assert_array_equal(images[:7], again)
    np.testing.assert_array_equal(labels[:7], same)
    other, _ = render(7, 4)
    assert not any((image == different).all() for image, different in zip(again, other, strict=True))
    assert images.shape == (12, SIZE, SIZE, 3)


@pytest.mark.parametrize("render", RENDERERS)
def test_clean_pictures_show_the_same_scene(render):
    """Without texture, light and noise every picture resembles its own noisy version more than any other."""
    noisy, labels = render(12, 3)
    clean, same = render(12, 3, clean=True)
    np.testing.assert_array_equal(labels, same)
    distance = np.abs(noisy[:, None].astype(float) - clean[None]).mean((2, 3, 4))
    assert (distance.argmin(axis=1) == np.arange(12)).all()
    assert (np.diagonal(distance) > 3).all()


@pytest.mark.parametrize(("render", "classes"), [(render_orientation, 16), (render_count, 8)])
@pytest.mark.parametrize("n", [0, 1, 20, 40])
def test_labels_are_balanced(render, classes, n):
    images, labels = render(n, 1)
    counts = np.bincount(labels, minlength=classes)
    assert len(images) == n and len(counts) == classes and counts.max() - counts.min() <= 1


def test_no_global_state():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    render_count(2, 0)
    render_orientation(2, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_painted_area_tells_little_of_the_count():
    """The best thresholds on the painted area name the count rarely: an upper bound by looking at the answers."""
    images, labels = render_count(400, 2, clean=True)
    area = np.array([(difference(image) > 15).sum() for image in images])
    neighbours = np.argsort(np.abs(area[:, None] - area), axis=1)[:, 1:16]
    votes = np.array([np.bincount(labels[row], minlength=8).argmax() for row in neighbours])
    assert (votes == labels).mean() < 0.35


@pytest.mark.parametrize("shape", [*POINTERS, *BLOBS], ids=range(9))
def test_shapes_are_convex_counter_clockwise_and_inside_their_radius(shape):
    for polygon in shape:
        edges = np.roll(polygon, -1, axis=0) - polygon
        following = np.roll(edges, -1, axis=0)
        assert (edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0] > 0).all()
        assert np.linalg.norm(polygon, axis=1).max() <= 1.01  # a third of a pixel at most
