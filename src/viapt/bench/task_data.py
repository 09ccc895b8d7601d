"""The data of a job: a packaged task, split here, or a benchmark task, read from the user's own copy.

A benchmark task is called SUITE/NAME and lies below the folder that the variable VIAPT_TASKS names, on every node.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from viapt.backbones.base import Preprocessing
from viapt.data import read_source
from viapt.data.packaged import PackagedTask, load_task, split
from viapt.data.sources import ImageSource
from viapt.errors import ConfigError

PARTS = "train", "val", "test"
ROOT = "VIAPT_TASKS"

Statistics = tuple[float, float, float]
STATISTICS: dict[str, tuple[Statistics, Statistics]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation by normalisation; "weights" leaves those of the weights."""


@dataclass(frozen=True)
class TaskData:
    """What a job reads.

    Attributes:
        classes: names by index.
        parts: "train", "val" and "test".
        data_hash, split_hash: tell other data and other splits apart, before anything is decoded.
        source: where the data come from, in words.
        facts: of a benchmark task, see `BenchmarkData.to_dict`.
    """

    classes: list[str]
    parts: dict[str, ImageSource]
    data_hash: str
    split_hash: str
    source: str
    facts: dict[str, Any]

    @property
    def images(self) -> dict[str, int]:
        """How many there are, by part."""
        return {part: len(source) for part, source in self.parts.items()}

    def joined(self, parts: tuple[str, ...]) -> ImageSource:
        """Some parts, one after the other."""
        first = self.parts[parts[0]]
        return replace(first, items=tuple(item for part in parts for item in self.parts[part].items))


def is_benchmark(task: str) -> bool:
    """Whether a name is that of a benchmark task, not of a packaged one."""
    return "/" in task


def task_data(task: str, images: Mapping[str, int], split_seed: int) -> TaskData:
    """A task by name.

    Args:
        task: of the packaged suite, or SUITE/NAME.
        images: of each part of a packaged task, at most.
        split_seed: of a packaged task.

    Raises:
        ViaptError: it is not there, or not as it should be.
    """
    if is_benchmark(task):
        return benchmark_data(task)
    packaged = load_task(task)
    indices = parts_of(packaged, images, split_seed)
    source = read_source((packaged.images, packaged.labels), classes=packaged.classes)
    parts = {part: source.select(indices[part].tolist()) for part in PARTS}
    return TaskData(packaged.classes, parts, packaged.content_hash, hash_of(indices), packaged.source, {})


def benchmark_data(name: str) -> TaskData:
    """A benchmark task below the folder that VIAPT_TASKS names.

    Raises:
        ConfigError: no such task, or the variable is not set.
        DataError: it is not there, or not as it should be.
    """
    from viapt.data.benchmarks import find_task
    from viapt.data.benchmarks.loading import load_benchmark

    root = os.environ.get(ROOT)
    if not root:
        raise ConfigError(
            f"{name} is read from a folder of data sets, and none is named", remedy=f"--root DIR, or {ROOT}=DIR"
        )
    data = load_benchmark(find_task(name), Path(root))
    facts = data.to_dict()
    classes = list(data.parts["train"].classes)
    return TaskData(classes, dict(data.parts), facts["listing"], facts["listing"], data.source, facts)


def preprocessing_under(own: Preprocessing, suite: Mapping[str, Any] | None) -> Preprocessing:
    """How images are prepared: as the weights want it, unless a suite's protocol says something else."""
    if suite is None:
        return own
    mean, std = STATISTICS.get(suite["normalization"], (own.mean, own.std))
    direct = suite["resize"] == "direct"
    share, mode = (1.0, "squash") if direct else (224 / 256, "center")
    return replace(own, mean=mean, std=std, crop_pct=share, crop_mode=mode)


def parts_of(
    task: PackagedTask, images: Mapping[str, int], split_seed: int
) -> dict[str, Int64[np.ndarray, " indices"]]:
    """Indices of the three parts of a task.

    Raises:
        ConfigError: the task is smaller.
    """
    return split(task, images["train"], images["val"], images["test"], split_seed)


def hash_of(indices: Mapping[str, Int64[np.ndarray, " indices"]]) -> str:
    """SHA-256 of a split, in hex."""
    listed = {part: indices[part].tolist() for part in PARTS}
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
