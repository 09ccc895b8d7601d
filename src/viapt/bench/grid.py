"""Scores as one array, methods x tasks x seeds, with gaps where nothing was measured; and what the methods cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from viapt.bench.scores import Score
from viapt.errors import DataError

SHOWN = 5  # problems of one kind that a message spells out


@dataclass(frozen=True)
class Grid:
    """What was measured on one part of the splits. Names and seeds are sorted: the order of the scores means nothing.

    Attributes:
        values: of the metrics, in [0, 1]; NaN where there is no score.
        metrics: task -> name of the metric.
        part: "val" or "test".
    """

    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Float[np.ndarray, "methods tasks seeds"]
    metrics: Mapping[str, str]
    part: str

    def of(self, method: str) -> Float[np.ndarray, "tasks seeds"]:
        """All values of one method."""
        return self.values[self.methods.index(method)]

    def tasks_of(self, method: str) -> tuple[str, ...]:
        """The tasks on which it has at least one score."""
        return self.named(measured(self.of(method)))

    @property
    def shared(self) -> Bool[np.ndarray, " tasks"]:
        """The tasks on which every method has at least one score."""
        return np.asarray(measured(self.values).all(0))

    @property
    def common(self) -> Grid:
        """The runs, task and seed, that every method has, and gaps elsewhere: what methods may be ordered by.

        A mean over other seeds has other lost runs in it.
        """
        return replace(self, values=np.where(np.isnan(self.values).any(0), np.nan, self.values))

    def named(self, chosen: Bool[np.ndarray, " tasks"]) -> tuple[str, ...]:
        """Tasks of a mask, by name."""
        return tuple(task for task, is_in in zip(self.tasks, chosen, strict=True) if is_in)

    @property
    def task_means(self) -> Float[np.ndarray, "methods tasks"]:
        """Means over the seeds that there are; NaN where there is none."""
        return means(self.values)


@dataclass(frozen=True)
class Cost:
    """What a method takes, over all of its scores.

    Attributes:
        learnable: smallest and largest number of parameters that it learns, without the head.
        seconds: of training one run, on average.
        peak_memory_mib: the largest.
    """

    learnable: tuple[int, int]
    seconds: float
    peak_memory_mib: float


def arrange(scores: Iterable[Score], part: str = "test") -> Grid:
    """The scores of one part of the splits as an array.

    Raises:
        DataError: no scores of that part; two for one run; a task with two metrics; a value outside [0, 1].
    """
    every = list(scores)
    chosen = [score for score in every if score.part == part]
    if not chosen:
        parts = ", ".join(sorted({score.part for score in every})) or "none at all"
        raise DataError(f"no scores of the part {part!r}", expected=f"one of the parts that there are ({parts})")
    check(chosen)
    methods, tasks, seeds = (sorted({getattr(s, name) for s in chosen}) for name in ("method", "task", "seed"))
    values = np.full((len(methods), len(tasks), len(seeds)), np.nan)
    for score in chosen:
        values[methods.index(score.method), tasks.index(score.task), seeds.index(score.seed)] = score.value
    metrics = {score.task: score.metric for score in chosen}
    return Grid(tuple(methods), tuple(tasks), tuple(seeds), values, metrics, part)


def check(scores: Sequence[Score]) -> None:
    """All problems in one message."""
    runs = Counter((score.method, score.task, score.seed) for score in scores)
    doubled = [f"{m} on {t}, seed {s}, {n} times" for (m, t, s), n in sorted(runs.items()) if n > 1]
    outside = [
        f"{s.method} on {s.task}, seed {s.seed}: {s.value}"
        for s in scores
        if not (math.isfinite(s.value) and 0 <= s.value <= 1)
    ]
    metrics: dict[str, set[str]] = {}
    for score in scores:
        metrics.setdefault(score.task, set()).add(score.metric)
    mixed = [f"{task} ({', '.join(sorted(found))})" for task, found in sorted(metrics.items()) if len(found) > 1]
    kinds = {"scored twice": doubled, "outside [0, 1]": outside, "tasks with several metrics": mixed}
    problems = [f"{kind}: {listed(found)}" for kind, found in kinds.items() if found]
    if problems:
        raise DataError("; ".join(problems), expected="one value in [0, 1] per run, and one metric per task")


def listed(found: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = len(found) - SHOWN
    return "; ".join(found[:SHOWN]) + (f"; and {more} more" if more > 0 else "")


def measured(values: Float[np.ndarray, "*rest seeds"]) -> Bool[np.ndarray, "*rest"]:
    """Where the last axis has at least one value."""
    return np.asarray((~np.isnan(values)).any(-1))


def means(values: Float[np.ndarray, "*rest seeds"]) -> Float[np.ndarray, "*rest"]:
    """Means over the last axis, gaps left out; NaN where all is a gap."""
    there = ~np.isnan(values)
    return np.where(there, values, 0).sum(-1) / np.where(measured(values), there.sum(-1), np.nan)


def costs(scores: Iterable[Score], part: str = "test") -> dict[str, Cost]:
    """By method, in order of name."""
    runs: dict[str, list[Score]] = {}
    for score in scores:
        if score.part == part:
            runs.setdefault(score.method, []).append(score)
    found = {}
    for method, own in sorted(runs.items()):
        learnable = [score.learnable_parameters for score in own]
        seconds = math.fsum(score.seconds for score in own) / len(own)
        found[method] = Cost((min(learnable), max(learnable)), seconds, max(score.peak_memory_mib for score in own))
    return found
