"""A benchmark task, read from wherever it lies below a root: its parts, and all that a result must say of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viapt.data.benchmarks.doctor import find_layout
from viapt.data.benchmarks.layouts import DRAWN_HERE, incomplete, layout_named
from viapt.data.benchmarks.registry import BenchmarkTask
from viapt.data.listing import PARTS
from viapt.data.sources import ImageSource
from viapt.errors import DataError

SHOWN = 3


@dataclass(frozen=True)
class BenchmarkData:
    """The parts of a task.

    Attributes:
        layout: in which it was found.
        where: the folder or archive.
        parts: "train", "val" and "test".
    """

    task: BenchmarkTask
    layout: str
    where: Path
    parts: Mapping[str, ImageSource]

    @property
    def own_split(self) -> bool:
        """Whether the split was drawn here, and is therefore not the publications', image by image."""
        return any(source.description.endswith(DRAWN_HERE) for source in self.parts.values())

    @property
    def unexpected(self) -> str:
        """Parts that have not as many images as they should, in words; "" if none."""
        wrong = [
            f"{part} has {len(self.parts[part]):,} images instead of {count:,}"
            for part, count in self.task.counts.items()
            if len(self.parts[part]) != count
        ]
        return ", ".join(wrong)

    @property
    def differs(self) -> str:
        """In what the images of this layout may be others than the publications', in words; "" if in nothing known."""
        return self.task.differs.get(self.layout, "")

    @property
    def source(self) -> str:
        """Where the data come from, in words; no path, which says nothing elsewhere."""
        split = DRAWN_HERE.removeprefix(", ") if self.own_split else "split as published"
        known = f"{self.task.title}, layout {self.layout}, {split}"
        return "; ".join(filter(None, (known, self.differs, self.unexpected)))

    def to_dict(self) -> dict[str, Any]:
        """What a result says of its data, in plain JSON types."""
        return {
            "source": self.source,
            "layout": self.layout,
            "own_split": self.own_split,
            "differs": self.differs,
            "unexpected": self.unexpected,
            "images": {part: len(source) for part, source in self.parts.items()},
            "listing": listing_hash(self),
        }


def load_benchmark(task: BenchmarkTask, root: Path) -> BenchmarkData:
    """Find and list a task; nothing is decoded.

    Raises:
        DataError: the root is no folder; the task is not below it, or only a part of it, or is not as it should be.
    """
    check_root(root)
    finding, refused = find_layout(task, root)
    if finding is None or finding.where is None:
        names = [name for layout in task.layouts for name in task.layouts[layout] if name != "."]
        also = f" {refused[0].text}" if refused else ""
        raise DataError(
            f"{task.name} ({task.title}) is not in {root}.{also}",
            expected=f"one of the folders {', '.join(dict.fromkeys(names))}",
            remedy=f"get it ({task.source}); viapt data show {task.name} says more",
        )
    if finding.missing:
        raise incomplete(task.name, finding)
    parts = layout_named(finding.layout).read_found(finding, root, task)
    check_parts(task, parts, finding.where)
    return BenchmarkData(task, finding.layout, finding.where, {part: parts[part] for part in PARTS})


def check_root(root: Path) -> None:
    """Refuse what is no folder that can be listed.

    Raises:
        DataError: saying which.
    """
    if not root.is_dir():
        reason = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"--root {root} {reason}", expected="the folder in which the data sets lie")
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"--root {root} cannot be listed: permission denied", remedy=f"chmod u+rx {root}")


def check_parts(task: BenchmarkTask, parts: Mapping[str, ImageSource], where: Path) -> None:
    """Refuse labels that are no class, and parts that name files which are not there.

    Raises:
        DataError: naming some.
    """
    classes = {len(source.classes) for source in parts.values()}
    if classes != {task.classes}:
        raise DataError(
            f"{where} has {', '.join(map(str, sorted(classes)))} classes",
            expected=f"the {task.classes} classes of {task.name}",
            remedy=f"viapt data check {task.name} --root ... says more",
        )
    files = [(source.name(i), item.image) for source in parts.values() for i, item in enumerate(source.items)]
    missing = [name for name, image in files if isinstance(image, Path) and not image.is_file()]
    if missing:
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{where} lists images that are not there: {', '.join(missing[:SHOWN])}{more}",
            remedy="unpack the archive again, to the end",
        )


def listing_hash(data: BenchmarkData) -> str:
    """SHA-256 in hex of what each part holds, without decoding: keys, labels, sizes of files.

    It tells releases, copies and splits apart before a run; the run itself adds a hash of the contents that it read.
    """
    digest = hashlib.sha256()
    for part in PARTS:
        for item in data.parts[part].items:
            size = item.image.stat().st_size if isinstance(item.image, Path) else -1
            digest.update(f"{part}\0{item.key}\0{item.label}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
