"""KITTI's left colour images with the distance to the closest vehicle, split by video as VTAB has it.

`training/image_2` and `training/label_2` are those that torchvision reads; which video an image is from stands in
`mapping` of the development kit, without which the split cannot be told: a tenth of the videos each, drawn by numpy's
`RandomState(123)` from their sorted names, tests and validates (tensorflow_datasets 4.9.10, datasets/kitti).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from viapt.data.benchmarks.labels import KITTI_DISTANCES, kitti_distance
from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.listed import by_part, missing_in, read_text
from viapt.data.sources import Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

IMAGES, LABELS = "training/image_2", "training/label_2"
MAPPINGS = ("mapping", "devkit/mapping", "devkit_object/mapping")
NUMBERS, VIDEOS = "train_rand.txt", "train_mapping.txt"
SHARE = 10  # per cent of the videos
TYPE, DISTANCE, FIELDS = 0, 13, 15  # of a line about an object
MAX_LABEL_BYTES = 2**20


class Kitti(Release):
    """A folder with `training` and `mapping`, the latter also in `devkit` or `devkit_object`."""

    name = "kitti"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, _missing)

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        items = read_kitti(folder)
        classes = tuple(str(number) for number in range(len(KITTI_DISTANCES)))
        return by_part(items, classes, folder / IMAGES, f"{task.title}, original release")


def _missing(folder: Path) -> tuple[str, ...]:
    mapping = () if _mapping(folder) else (f"{MAPPINGS[0]}/{NUMBERS}", f"{MAPPINGS[0]}/{VIDEOS}")
    return missing_in(folder, (IMAGES, LABELS)) + mapping


def read_kitti(folder: Path) -> list[Item]:
    """All images with labels, in order of number, each in the part of its video.

    Raises:
        DataError: a file is missing or damaged, or the mapping names fewer images than there are.
    """
    parts = split_by_video(_videos(folder))
    items = []
    for number, part in enumerate(parts):
        label_file = folder / LABELS / f"{number:06d}.txt"
        label = kitti_distance(read_objects(label_file))
        items.append(Item(f"{number:06d}.png", label, part, folder / IMAGES / f"{number:06d}.png"))
    return items


def split_by_video(videos: list[str]) -> list[str]:
    """The part of each image, from the video of each."""
    names = sorted(set(videos))
    share = max(1, SHARE * len(names) // 100)
    rng = np.random.RandomState(123)
    test = set(rng.choice(names, share, replace=False).tolist())
    val = set(rng.choice(sorted(set(names) - test), share, replace=False).tolist())
    return ["test" if video in test else "val" if video in val else "train" for video in videos]


def read_objects(path: Path) -> list[tuple[str, float]]:
    """Type and distance in metres of each object in a label file.

    Raises:
        DataError: missing, or a line that is not as it should be.
    """
    objects = []
    for number, line in enumerate(read_text(path, MAX_LABEL_BYTES).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            if len(fields) != FIELDS:
                raise ValueError(f"{len(fields)} fields")
            objects.append((fields[TYPE], float(fields[DISTANCE])))
        except ValueError as error:
            raise DataError(
                f"line {number} of {path} has {error}", expected=f"{FIELDS} fields", remedy="extract it again"
            ) from error
    return objects


def _mapping(folder: Path) -> Path | None:
    return next((folder / name for name in MAPPINGS if not missing_in(folder / name, (NUMBERS, VIDEOS))), None)


def _videos(folder: Path) -> list[str]:
    """The name of the video of each image."""
    mapping = _mapping(folder)
    if mapping is None:
        raise DataError(f"{folder} has no {MAPPINGS[0]}/{NUMBERS}", remedy="unpack the development kit there")
    lines = read_text(mapping / VIDEOS).splitlines()
    try:
        numbers = [int(number) - 1 for number in read_text(mapping / NUMBERS).split(",")]
        if min(numbers) < 0:
            raise IndexError("a number below 1")
        videos = [lines[number].split(" ")[1] for number in numbers]
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{mapping} is damaged ({error})", expected="numbers of lines, and lines `date video frame`"
        ) from error
    if len(set(videos)) < 3:
        raise DataError(f"{mapping} names {len(set(videos))} videos", expected="three or more")
    return videos
