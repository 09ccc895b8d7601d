"""NWPU-RESISC45: a folder for each class, extracted or still in a zip archive, which is then read where it lies."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from viapt.data.benchmarks.archives import ZipImages, reading
from viapt.data.folders import read_folder
from viapt.data.images import SUFFIXES
from viapt.data.listing import composed, sort_classes
from viapt.data.sources import Item, LazyImage
from viapt.errors import DataError

FOLDER = "NWPU-RESISC45"


def read_resisc45(path: Path) -> tuple[list[Item], tuple[str, ...]]:
    """All images by class and name, and the class names in order.

    Args:
        path: the folder of class folders, or the zip archive of it. The keys are the same.

    Raises:
        DataError: no images, or the archive is damaged or unsafe.
    """
    return _read_zip(path) if path.is_file() else _read_folder(path)


def _read_folder(folder: Path) -> tuple[list[Item], tuple[str, ...]]:
    listing = read_folder(folder)
    classes = sort_classes(record.label for record in listing.records)
    index = {name: number for number, name in enumerate(classes)}
    return [Item(record.key, index[record.label], "", record.image) for record in listing.records], tuple(classes)


def _read_zip(archive: Path) -> tuple[list[Item], tuple[str, ...]]:
    with reading(archive) as (_, members):
        images = [
            member
            for member in members
            if len(PurePosixPath(member.name).parts) >= 2
            and PurePosixPath(member.name).suffix.lower() in SUFFIXES
            and "__MACOSX" not in PurePosixPath(member.name).parts
        ]
    if not images:
        raise DataError(f"{archive} holds no images in class folders", expected=f"{FOLDER}/CLASS/NAME.jpg")
    images.sort(key=lambda member: member.name)
    dataset = ZipImages(archive, images)
    keys = [composed("/".join(PurePosixPath(name).parts[-2:]), f"an image in {archive}") for name in dataset.names]
    if len(set(keys)) < len(keys):
        raise DataError(f"{archive} holds two images of the same class and name", expected="each image once")
    classes = sort_classes(key.split("/")[0] for key in keys)
    index = {name: number for number, name in enumerate(classes)}
    items = [Item(key, index[key.split("/")[0]], "", LazyImage(dataset, k)) for k, key in enumerate(keys)]
    return items, tuple(classes)
