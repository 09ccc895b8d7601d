"""Stanford Cars, 16,185 images, in the two forms in which it was published.

- `cars_annos.mat` beside the folder `car_ims`: all images in one table, the test images marked.
- `devkit/cars_train_annos.mat` and `cars_test_annos_withlabels.mat` (in or beside `devkit`) for `cars_train` and
  `cars_test`; the names of the classes in `devkit/cars_meta.mat`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.listed import below, by_part, missing_in
from viapt.data.benchmarks.matlab import read_matlab
from viapt.data.sources import Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

ALL_ANNOTATIONS = "cars_annos.mat"
TRAIN_ANNOTATIONS = "devkit/cars_train_annos.mat"
TEST_ANNOTATIONS = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
META = "devkit/cars_meta.mat"


class Cars(Release):
    """Either form; the one table of all images is preferred where both are there."""

    name = "cars"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, _missing)

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        items, classes = read_cars(folder)
        return by_part(items, classes, folder, f"{task.title}, original release")


def _missing(folder: Path) -> tuple[str, ...]:
    if (folder / ALL_ANNOTATIONS).is_file():
        return missing_in(folder, ["car_ims"])
    missing = missing_in(folder, [TRAIN_ANNOTATIONS, META, "cars_train", "cars_test"])
    tests = missing_in(folder, TEST_ANNOTATIONS)
    return missing + (tests[:1] if len(tests) == len(TEST_ANNOTATIONS) else ())


def read_cars(root: Path) -> tuple[list[Item], tuple[str, ...]]:
    """All images in the order of the tables, by official part, and the class names.

    Raises:
        DataError: a table is missing or damaged, or a label is no class.
    """
    if (root / ALL_ANNOTATIONS).is_file():
        path = root / ALL_ANNOTATIONS
        content = read_matlab(path, ("annotations", "class_names"))
        rows = _rows(path, content["annotations"], ("relative_im_path", "class", "test"))
        listed = [(root, path, relative, label, "test" if test else "train") for relative, label, test in rows]
        names = content["class_names"]
    else:
        test_table = next(
            (root / name for name in TEST_ANNOTATIONS if (root / name).is_file()), root / TEST_ANNOTATIONS[0]
        )
        listed = []
        for part, path in (("train", root / TRAIN_ANNOTATIONS), ("test", test_table)):
            rows = _rows(path, read_matlab(path, ("annotations",))["annotations"], ("fname", "class"))
            listed += [(root / f"cars_{part}", path, file, label, part) for file, label in rows]
        names = read_matlab(root / META, ("class_names",))["class_names"]
    classes = tuple(str(name) for name in np.atleast_1d(names).tolist())
    items = []
    for folder, path, relative, label, part in listed:
        key, image = below(folder, str(relative), path)
        if not 1 <= int(label) <= len(classes):
            raise DataError(f"{path} gives {key} the label {label}", expected=f"1 to {len(classes)}")
        items.append(Item(key if folder == root else f"{folder.name}/{key}", int(label) - 1, part, image))
    return items, classes


def _rows(path: Path, annotations: Any, fields: tuple[str, ...]) -> list[tuple[Any, ...]]:
    table = np.atleast_1d(annotations)
    if missing := [field for field in fields if field not in (table.dtype.names or ())]:
        raise DataError(
            f"the annotations of {path} have no {missing[0]!r}",
            expected=", ".join(fields),
            remedy="the labels of the test images come in cars_test_annos_withlabels.mat"
            if missing == ["class"]
            else "",
        )
    return list(zip(*(table[field].tolist() for field in fields), strict=True))
