"""Pictures drawn by rule, with exact labels; picture `i` of a task is the same however many are drawn, and where."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from viapt.data.rendered.canvas import SIZE, Picture
from viapt.data.rendered.draws import Draws
from viapt.data.rendered.planar import COUNTS, DIRECTIONS, draw_count, draw_orientation
from viapt.data.rendered.scenes import (
    AZIMUTHS,
    DISTANCES,
    ELEVATIONS,
    LOWEST,
    NEAREST,
    RATIO,
    STEP,
    draw_azimuth,
    draw_distance,
    draw_elevation,
)

__all__ = ["SIZE", "TASKS", "RenderedTask", "render", "rendered_labels"]


class RenderedTask(NamedTuple):
    """Names of the classes, and what draws a picture from a random stream and a label ("clean": without noise)."""

    classes: list[str]
    draw: Callable[[Draws, int, bool], Picture]


TASKS = {
    "azimuth": RenderedTask([f"{360 * k // AZIMUTHS} degrees" for k in range(AZIMUTHS)], draw_azimuth),
    "elevation": RenderedTask([f"{LOWEST + STEP * k:g} degrees" for k in range(ELEVATIONS)], draw_elevation),
    "distance": RenderedTask(
        [f"{NEAREST * RATIO**k:.1f} to {NEAREST * RATIO ** (k + 1):.1f}" for k in range(DISTANCES)], draw_distance
    ),
    "orientation": RenderedTask([f"{360 * k / DIRECTIONS:g} degrees" for k in range(DIRECTIONS)], draw_orientation),
    "count": RenderedTask([f"{n} objects" for n in COUNTS], draw_count),
}


def rendered_labels(name: str, start: int, stop: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Labels of pictures `start` to `stop` - 1: each round of labels holds every class once."""
    classes = len(TASKS[name].classes)
    first = start // classes
    rounds = [Draws(_key(name), seed, k, 0).permutation(classes) for k in range(first, -(-stop // classes))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[start - first * classes : stop - first * classes]


def render(
    name: str, start: int, stop: int, seed: int, *, clean: bool = False
) -> tuple[UInt8[np.ndarray, "n height width 3"], Int64[np.ndarray, " n"]]:
    """Pictures `start` to `stop` - 1 of a task, 96 x 96 RGB, and their labels; `clean`: without texture and noise."""
    labels = rendered_labels(name, start, stop, seed)
    images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    for image, index, label in zip(images, range(start, stop), labels, strict=True):
        image[:] = TASKS[name].draw(Draws(_key(name), seed, index, 1), int(label), clean)
    return images, labels


def _key(name: str) -> int:
    return zlib.crc32(name.encode())
