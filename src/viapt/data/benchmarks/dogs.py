"""Stanford Dogs: `train_list.mat` and `test_list.mat` beside (or in `lists` beside) the folder `Images`.

Both hold `file_list`, paths below `Images`, and `labels`, 1 to 120.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.listed import below, by_part, missing_in
from viapt.data.benchmarks.matlab import read_matlab
from viapt.data.sources import Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

LISTS = {"train": "train_list.mat", "test": "test_list.mat"}


class Dogs(Release):
    """A folder with `Images` of images.tar, and with the files of lists.tar, in `lists` or not."""

    name = "dogs"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, _missing)

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        items, classes = read_dogs(folder)
        return by_part(items, classes, folder / "Images", f"{task.title}, original release")


def _missing(folder: Path) -> tuple[str, ...]:
    return missing_in(folder, ["Images"]) + missing_in(list_folder(folder), LISTS.values())


def list_folder(root: Path) -> Path:
    """Where the lists are: the publisher's archive has them at its top."""
    return root / "lists" if (root / "lists").is_dir() else root


def read_dogs(root: Path) -> tuple[list[Item], tuple[str, ...]]:
    """All images in the order of the lists, by official part, and the class names (of the folders).

    Raises:
        DataError: a list is missing or damaged, or a folder has two labels.
    """
    items: list[Item] = []
    names: dict[int, str] = {}
    for part, file in LISTS.items():
        path = list_folder(root) / file
        content = read_matlab(path, ("file_list", "labels"))
        files, labels = (np.atleast_1d(content[name]) for name in ("file_list", "labels"))
        if files.shape != labels.shape:
            raise DataError(f"{path} has {files.size} files and {labels.size} labels", remedy="extract it again")
        for relative, label in zip(files.tolist(), labels.tolist(), strict=True):
            key, image = below(root / "Images", str(relative), path)
            folder = key.split("/", 1)[0]
            if int(label) < 1 or names.setdefault(int(label), folder) != folder:
                raise DataError(
                    f"{path} gives {key} the label {label}", expected=f"the label of {names.get(int(label), 'a class')}"
                )
            items.append(Item(key, int(label) - 1, part, image))
    if len(set(names.values())) < len(names) or sorted(names) != list(range(1, len(names) + 1)):
        raise DataError(
            f"the lists in {list_folder(root)} have {len(names)} labels for {len(set(names.values()))} folders",
            expected="labels 1, 2, ..., each for one folder",
            remedy="extract them again",
        )
    return items, tuple(names[label] for label in sorted(names))
