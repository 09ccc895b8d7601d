"""A task in the community's folders of VTAB-1k: pictures, and lists `relative/path label` of them."""

from __future__ import annotations

from pathlib import Path

from miniatures.noise import write_picture
from viapt.data.benchmarks import BenchmarkTask

LISTS = {"train800": 2, "val200": 1, "test": 1}
"""Pictures of each class in each list."""


def write_community(root: Path, task: BenchmarkTask, per_class: dict[str, int] | None = None) -> Path:
    """The folder, with all classes in each list, in turn."""
    folder = root / task.community[0]
    lines: dict[str, list[str]] = {}
    number = 0
    for name, count in (per_class or LISTS).items():
        lines[name] = []
        for index in range(count * task.classes):
            path = f"images/{name}/{index:05d}.png"
            write_picture(folder / path, number)
            lines[name].append(f"{path} {index % task.classes}\n")
            number += 1
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for name, content in lines.items():
        (folder / f"{name}.txt").write_text("".join(content))
    return folder
