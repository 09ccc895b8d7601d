"""CUB-200-2011 and NABirds: `images.txt`, `image_class_labels.txt`, `train_test_split.txt` and `classes.txt`.

Both come in this form, each line an id and a value. NABirds's class ids are nodes of a hierarchy of birds; those that
carry images are its 555 classes, numbered here in order of id.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.listed import below, by_part, missing_in, read_table
from viapt.data.sources import Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
CONTENT = (*TABLES, "images")
PARTS = {"1": "train", "0": "test"}


class Cub(Release):
    """The folder `CUB_200_2011` of the publisher's archive."""

    name = "cub"
    hierarchical: ClassVar[bool] = False

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, lambda folder: missing_in(folder, CONTENT))

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        items, classes = read_birds(folder, hierarchical=self.hierarchical)
        return by_part(items, classes, folder / "images", f"{task.title}, original release")


class Nabirds(Cub):
    """The folder `nabirds` of the publisher's archive."""

    name = "nabirds"
    hierarchical = True


def read_birds(root: Path, *, hierarchical: bool) -> tuple[list[Item], tuple[str, ...]]:
    """All images in the order of `images.txt`, by official part, and the class names.

    Args:
        root: the folder of the tables and of `images`.
        hierarchical: whether only classes with images count (NABirds), or all (CUB-200-2011).

    Raises:
        DataError: a table is missing or damaged, or they do not fit together.
    """
    images, labels, parts, names = (read_table(root / table) for table in TABLES)
    unknown = set(labels.values()) - names.keys()
    if unknown:
        raise _misfit(root, f"the class {min(unknown)!r} of image_class_labels.txt is not in classes.txt")
    for table, content in (("image_class_labels.txt", labels), ("train_test_split.txt", parts)):
        if content.keys() != images.keys():
            different = min(content.keys() ^ images.keys())
            raise _misfit(root, f"images.txt and {table} do not list the same images: {different!r} is in one only")
    if wrong := set(parts.values()) - PARTS.keys():
        raise _misfit(root, f"train_test_split.txt says {min(wrong)!r} where 0 or 1 was expected")
    used = set(labels.values()) if hierarchical else names.keys()
    if not all(number.isascii() and number.isdigit() for number in used):
        raise _misfit(root, "classes.txt has ids that are no numbers")
    ids = sorted(used, key=int)
    index = {number: position for position, number in enumerate(ids)}
    items = []
    for image, relative in images.items():
        key, path = below(root / "images", relative, root / "images.txt")
        items.append(Item(key, index[labels[image]], PARTS[parts[image]], path))
    return items, tuple(names[number] for number in ids)


def _misfit(root: Path, reason: str) -> DataError:
    return DataError(f"{root}: {reason}", expected="the publisher's files, unchanged", remedy="extract them again")
