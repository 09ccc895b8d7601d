"""How many images of each class a release has, where that is the same for all its classes.

Source: the releases' own descriptions. Where the numbers of images are right and those of classes are not, labels have
been mixed up, or it is another release.
"""

from __future__ import annotations

from viapt.data.benchmarks.registry import BenchmarkTask

PER_CLASS: dict[str, dict[tuple[str, ...], int]] = {
    "cifar10": {("train", "val"): 5000, ("test",): 1000},
    "cifar100": {("train", "val"): 500, ("test",): 100},
    "dogs": {("train", "val"): 100},
    "dtd": {("train",): 40, ("val",): 40, ("test",): 40},
    "flowers102": {("train",): 10, ("val",): 10},
    "food101": {("train", "val"): 750, ("test",): 250},
}
"""By release: images of each class in some parts together."""


def expected_per_class(task: BenchmarkTask) -> dict[tuple[str, ...], int]:
    """Images of each class in some parts together, where the task takes the whole of them and their number is known."""
    return {
        parts: count
        for parts, count in PER_CLASS.get(task.release, {}).items()
        if sum(task.counts[part] for part in parts) == count * task.classes
    }
