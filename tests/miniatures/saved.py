"""Data sets of Hugging Face's `datasets` as `save_to_disk` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

from miniatures.pictures import encoded


def saved(folder: Path, sizes: Mapping[str, int], names: Sequence[str], used: int | None = None) -> None:
    """Splits of these sizes; pictures are numbered through all of them, and the (first `used`) classes take turns."""
    coarse, fine = datasets.ClassLabel(names=["x", "y", "z"]), datasets.ClassLabel(names=list(names))
    features = datasets.Features({"img": datasets.Image(), "coarse": coarse, "fine": fine})
    first, content, cycle = 0, {}, used or len(names)
    for split, size in sizes.items():
        rows = [
            {
                "img": {"bytes": encoded(first + k), "path": None},
                "coarse": k % 2,
                "fine": (first + k) % cycle,
            }
            for k in range(size)
        ]
        content[split] = datasets.Dataset.from_list(rows, features=features)
        first += size
    datasets.disable_progress_bars()
    datasets.DatasetDict(content).save_to_disk(str(folder))
