"""Diabetic Retinopathy Detection: Kaggle's photos in `train` and `test`, and two tables of grades.

`trainLabels.csv` has `image,level`; `retinopathy_solution.csv`, published after the competition, has
`image,level,Usage` for the photos of `test`: "Public" ones validate, "Private" ones test. They are read as they are:
VTAB's were scaled to a radius of 300 pixels and normalised first (btgraham-300), which the results say.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.listed import below, by_part, missing_in, read_text
from viapt.data.sources import Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

TRAIN_TABLE, TEST_TABLE = "trainLabels.csv", "retinopathy_solution.csv"
CONTENT = (TRAIN_TABLE, TEST_TABLE, "train", "test")
USAGES = {"Public": "val", "Private": "test"}
GRADES = 5


class Retinopathy(Release):
    """A folder with the unpacked files of the competition."""

    name = "retinopathy"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, lambda folder: missing_in(folder, CONTENT))

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        items = _read(folder, TRAIN_TABLE, "train") + _read(folder, TEST_TABLE, "test")
        classes = tuple(str(grade) for grade in range(GRADES))
        return by_part(items, classes, folder, f"{task.title}, original photos")


def _read(folder: Path, table: str, images: str) -> list[Item]:
    path = folder / table
    needed = {"image", "level"} if table == TRAIN_TABLE else {"image", "level", "Usage"}
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    items = []
    try:
        if not needed <= set(rows.fieldnames or ()):
            raise ValueError(f"it has the columns {rows.fieldnames}")
        for row in rows:
            key, image = below(folder, f"{images}/{row['image']}.jpeg", path)
            grade = int(row["level"])
            if not 0 <= grade < GRADES:
                raise ValueError(f"line {rows.line_num} has the level {grade}")
            if table == TEST_TABLE and row["Usage"] not in USAGES:
                raise ValueError(f"line {rows.line_num} has the usage {row['Usage']!r}")
            items.append(Item(key, grade, "train" if table == TRAIN_TABLE else USAGES[row["Usage"]], image))
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"{path} is damaged: {error}",
            expected=f"the columns {', '.join(sorted(needed))}, and levels 0 to {GRADES - 1}",
            remedy="download it again",
        ) from error
    return items
