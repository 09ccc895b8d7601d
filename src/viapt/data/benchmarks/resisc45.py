"""NWPU-RESISC45: a folder for each class, extracted or still in a zip archive, which is then read where it lies."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from viapt.data.benchmarks.archives import ZipImages, reading
from viapt.data.benchmarks.layouts import Finding, Parts, Release, candidates
from viapt.data.benchmarks.listed import by_part
from viapt.data.folders import read_folder
from viapt.data.images import SUFFIXES
from viapt.data.listing import composed, sort_classes
from viapt.data.sources import Item, LazyImage
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

FOLDER = "NWPU-RESISC45"


class Resisc45(Release):
    """The folder or the zip archive. A RAR archive, as which it was first published, is named as such."""

    name = "resisc45"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        archive = next((path for path in candidates(root, task, self.name) if path.is_file()), None)
        finding = self.nearest(root, task, _missing)
        if archive is not None and not finding.complete:
            return Finding(self.name, archive)
        rar = next((path for path in candidates(root, task, self.name) if path.with_suffix(".rar").exists()), None)
        if rar is not None and finding.where is None:
            return Finding(self.name, rar.parent, (f"{FOLDER} (only {rar.stem}.rar is there: unpack it)",))
        return finding

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        items, classes = read_resisc45(folder)
        form = "zip archive" if folder.is_file() else "original release"
        return by_part(items, classes, None if folder.is_file() else folder, f"{task.title}, {form}")


def _missing(folder: Path) -> tuple[str, ...]:
    """A folder that holds nothing but the release's own folder is not it."""
    inner = {path.name for path in folder.iterdir() if path.is_dir()}
    return ("folders of classes",) if inner <= {FOLDER} else ()


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
