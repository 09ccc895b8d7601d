"""Scores for the tests of the laboratory's statistics and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from viapt.bench.scores import Score


def score(method: str, task: str, seed: int, value: float, part: str = "test", learnable: int = 1000) -> Score:
    return Score(
        method=method,
        task=task,
        seed=seed,
        value=value,
        metric="accuracy",
        part=part,
        learnable_parameters=learnable,
        seconds=60.0,
        peak_memory_mib=500.0,
        key=f"{method}-{task}-{seed}-{part}",
    )


def scores_of(table: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Score]:
    """Scores from method -> task -> values of seeds 0, 1, ...; None or NaN: not measured."""
    return [
        score(method, task, seed, value)
        for method, row in table.items()
        for task, values in row.items()
        for seed, value in enumerate(values)
        if not np.isnan(value)
    ]


def drawn(methods: int, tasks: int, seeds: int = 5, seed: int = 0, images: int = 200) -> list[Score]:
    """Random scores, some better than others, as shares of a number of test images."""
    rng = np.random.default_rng(seed)
    strength = np.linspace(0.9, 0.6, methods)[:, None, None] - rng.uniform(0, 0.3, (1, tasks, 1))
    right = rng.binomial(images, strength.repeat(seeds, 2)) / images
    return [
        score(f"method-{m}", f"task-{t}", s, float(right[m, t, s]), learnable=10 ** (m % 5) * 10)
        for m, t, s in np.ndindex(right.shape)
    ]
