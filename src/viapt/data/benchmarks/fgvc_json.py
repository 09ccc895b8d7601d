"""The splits that VPT publishes for FGVC: `{train,val,test}.json` (file name to class id) beside the original images.

Class ids are whatever the release has; in order, they are numbered from 0. File names are relative to the folder that
VPT's code takes for a release, or to the release's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from viapt.data.benchmarks.layouts import Finding, Layout, Parts, candidates
from viapt.data.benchmarks.listed import below, by_part, missing_in, read_text
from viapt.data.listing import PARTS
from viapt.data.sources import Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

IMAGE_FOLDERS = (".", "images", "Images", "jpg", "car_ims")
FILES = {part: f"{part}.json" for part in PARTS}
MAX_JSON_BYTES = 2**26

Split = dict[str, int]


class FgvcJson(Layout):
    """A release's folder with the three files."""

    name = "fgvc-json"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        folders = [path for path in candidates(root, task, self.name) if path.is_dir()]
        for folder in folders:
            missing = missing_in(folder, FILES.values())
            if len(missing) < len(FILES):
                return Finding(self.name, folder, missing)
        return Finding(self.name)

    def read_at(self, where: Path, task: BenchmarkTask) -> Parts:
        splits = {part: read_split(where / file) for part, file in FILES.items()}
        _check_disjoint(where, splits)
        ids = sorted({number for split in splits.values() for number in split.values()})
        index = {number: position for position, number in enumerate(ids)}
        images = image_folder(where, next(iter(splits["train"])))
        items = []
        for part, split in splits.items():
            for name, number in split.items():
                key, path = below(images, name, where / FILES[part])
                items.append(Item(key, index[number], part, path))
        return by_part(items, tuple(map(str, ids)), images, f"{task.title}, original images, published JSON split")


def read_split(path: Path) -> Split:
    """File names and class ids, in the file's order.

    Raises:
        DataError: missing, truncated, or no such object.
    """
    try:
        content = json.loads(read_text(path, MAX_JSON_BYTES))
        if not isinstance(content, dict) or not content:
            raise TypeError("no object, or an empty one")
        return {name: int(number) for name, number in content.items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged or truncated ({type(error).__name__}: {error})",
            expected='{"FILE": CLASS ID, ...}',
            remedy="download it again",
        ) from error


def image_folder(folder: Path, name: str) -> Path:
    """Where below a release's folder the file of this name is; the folder itself if nowhere."""
    below(folder, name, folder)
    return next((folder / inner for inner in IMAGE_FOLDERS if (folder / inner / name).is_file()), folder)


def _check_disjoint(folder: Path, splits: dict[str, Split]) -> None:
    seen: dict[str, str] = {}
    for part, split in splits.items():
        for name in split:
            if name in seen:
                raise DataError(
                    f"{name!r} is in {FILES[seen[name]]} and {FILES[part]} of {folder}",
                    expected="each image in one part",
                    remedy="download the three files again, from one place",
                )
            seen[name] = part
