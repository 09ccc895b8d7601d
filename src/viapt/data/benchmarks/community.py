"""The community's folders of VTAB-1k: pictures under `images`, and lists of them with their labels.

A list has a line `relative/path label` for each picture. The lists are TensorFlow Datasets' splits as somebody
exported them; pictures may have been compressed again on the way, which a content hash tells apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from viapt.data.benchmarks.layouts import Finding, Layout, Parts, candidates
from viapt.data.benchmarks.listed import below, read_text
from viapt.data.sources import ImageSource, Item
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

LISTS = {"train": "train800.txt", "val": "val200.txt", "test": "test.txt"}
SHOWN = 5


class CommunityFolders(Layout):
    """`<task>/images/...` and `<task>/{train800,val200,test}.txt`."""

    name = "community"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        folder = next((path for path in candidates(root, task, self.name) if has_a_list(path)), None)
        if folder is None:
            return Finding(self.name)
        if lists := [name for name in LISTS.values() if not (folder / name).is_file()]:
            return Finding(self.name, folder, tuple(lists))
        try:
            parts = self.read_at(folder, task)
        except DataError:  # what is wrong with a list is said when it is read
            return Finding(self.name, folder)
        items = (item for source in parts.values() for item in source.items)
        return Finding(self.name, folder, tuple(item.key for item in items if not item.image.is_file()), parts)

    def read_at(self, where: Path, task: BenchmarkTask) -> Parts:
        classes = tuple(map(str, range(task.classes)))
        return {
            part: ImageSource(tuple(read_list(where, part, task.classes)), classes, where, str(where / name))
            for part, name in LISTS.items()
        }


def has_a_list(folder: Path) -> bool:
    """Whether any of the lists is there: folders of other layouts may have the same name."""
    return any((folder / name).is_file() for name in LISTS.values())


def read_list(folder: Path, part: str, classes: int) -> list[Item]:
    """The pictures of a part, in the order of its list.

    Raises:
        DataError: with the first bad lines: no label, a label that is no class, a path that leaves the folder, a
            picture listed twice.
    """
    path = folder / LISTS[part]
    items: dict[str, Item] = {}
    problems = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        relative, _, label = line.rstrip().rpartition(" ")
        if not relative or not label.isdecimal() or int(label) >= classes:
            problems.append(f"line {number}: {line[:80]!r}")
            continue
        key, image = below(folder, relative.strip(), path)
        if key in items:
            problems.append(f"line {number}: {key} is listed twice")
            continue
        items[key] = Item(key, int(label), part, image)
    if problems or not items:
        listed = "; ".join(problems[:SHOWN]) + ("; ..." if len(problems) > SHOWN else "")
        raise DataError(
            f"{path} has {len(problems)} bad line(s): {listed}" if problems else f"{path} is empty",
            expected=f"lines `relative/path label`, each path once, with labels from 0 to {classes - 1}",
            remedy="take the list from the archive again",
        )
    return list(items.values())
