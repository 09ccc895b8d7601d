"""What a reader must know before believing a number: gaps, few seeds, few tasks, ties, families of tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from viapt.bench.grid import Grid, listed, measured
from viapt.bench.statistics import ALPHA, Comparison, Ranking, half_width, present

GENERAL = (
    "Intervals are Student's t over seeds: they speak of new seeds on the same tasks and images, not of other tasks or "
    "images.",
    "Runs on one task resemble each other: p over runs speaks of these tasks alone, and is too small if read for tasks "
    "in general; p over tasks is the cautious one.",
)


def caveats(grid: Grid, families: Sequence[Sequence[Comparison]]) -> list[str]:
    """Sentences; those that always hold, then those that these scores give reason for; `on_ranks` has those on ranks.

    Args:
        families: of comparisons with one reference, each corrected by itself.
    """
    return [*GENERAL, *on_gaps(grid), *on_seeds(grid), *on_tests(families)]


def on_gaps(grid: Grid) -> Iterator[str]:
    """What was not measured."""
    lacking = [
        f"{method}: {', '.join(sorted(set(grid.tasks) - set(grid.tasks_of(method))))}"
        for method in grid.methods
        if len(grid.tasks_of(method)) < len(grid.tasks)
    ]
    if lacking:
        yield (
            f"No score for {listed(lacking)}. Such cells are shown as -, comparisons take pairs that both methods "
            "have, and no column mixes means over different tasks."
        )
    seeds = np.isnan(grid.values).any(2) & measured(grid.values)
    if seeds.any():
        yield (
            f"{int(seeds.sum())} cells have fewer seeds than {len(grid.seeds)}: the table says how many. The interval "
            "of a mean over tasks stands on the seeds that have all of its tasks."
        )
    if len(set(grid.metrics.values())) > 1:
        named = ", ".join(f"{task} {metric}" for task, metric in grid.metrics.items())
        yield f"Tasks have different metrics ({named}): means over tasks mix them."


def on_seeds(grid: Grid) -> Iterator[str]:
    """Seeds that say little."""
    if len(grid.seeds) == 1:
        yield "There is one seed: nothing is known of the spread, and there are no intervals over seeds."
    elif len(grid.seeds) < 3:
        yield "There are two seeds: intervals are wide, and themselves uncertain."
    cells = [present(cell) for cell in grid.values.reshape(-1, len(grid.seeds))]
    if any(len(cell) > 1 and half_width(cell) == 0 for cell in cells):
        yield "An interval of ± 0.0 may mean that all seeds gave one value; it does not mean certainty."


def on_tests(families: Sequence[Sequence[Comparison]]) -> Iterator[str]:
    """What the signed-rank tests cannot do here."""
    tested = [[c for c in family if c.runs.p is not None] for family in families]
    tested = [family for family in tested if family]
    if not tested:
        yield "No method could be compared with the reference."
        return
    yield on_correction([len(family) for family in tested])
    possible = list(chain.from_iterable(tested))
    equal = dict.fromkeys(c.method for c in possible if c.runs.how == "no difference")
    if equal:
        yield f"Equal to the reference in every run (p = 1 by definition): {', '.join(equal)}."
    zeros = sum(c.runs.zeros for c in possible)
    if zeros:
        yield (
            f"{zeros} pairs of runs have no difference: they count in the ranking and have no sign (Pratt). Ties and "
            "such pairs rule the usual exact distribution out: up to 13 pairs all changes of signs are counted, beyond "
            "that p is a normal approximation."
        )
    yield from on_direction(possible)
    for name in ("runs", "tasks"):
        yield from on_smallest(tested, name)


def on_direction(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Where a small p does not speak for the difference beside it."""
    contrary = [
        f"{c.method} ({name})"
        for c in comparisons
        for name, test in (("runs", c.runs), ("tasks", c.by_task))
        if test.p is not None and test.p < ALPHA and c.contrary(test)
    ]
    if contrary:
        yield (
            f"Better in ranks and worse in the mean, or the reverse: {', '.join(contrary)}. Few large differences "
            "stand against many small ones there, and p, which is of ranks, says nothing for the mean."
        )


def on_correction(sizes: Sequence[int]) -> str:
    """Over how many comparisons p is corrected."""
    if len(sizes) == 1:
        return f"Holm's correction is over {counted(sizes[0], 'comparison')} with the reference, in each column apart."
    among = f"{min(sizes)} to {max(sizes)} comparisons" if min(sizes) < max(sizes) else counted(sizes[0], "comparison")
    return (
        f"Each of the {len(sizes)} tables of comparisons has its own reference, and Holm's correction is within each "
        f"table ({among}), in each column apart: not over the whole page."
    )


def on_smallest(tested: Sequence[Sequence[Comparison]], name: str) -> Iterator[str]:
    """What p over runs or tasks cannot fall below, however large the differences."""
    smallest = [[(c.runs if name == "runs" else c.by_task).smallest for c in family] for family in tested]
    few = dict.fromkeys(
        c.method for family, bounds in zip(tested, smallest, strict=True) for c, p in zip(family, bounds, strict=True)
        if p > ALPHA
    )  # fmt: skip
    if few:
        yield (
            f"Over {name}, fewer than six pairs differ for {listed(list(few))}: p cannot fall below {ALPHA}, however "
            "large the differences."
        )
    elif all(min(bounds) * len(bounds) > ALPHA for bounds in smallest):
        best, bounds = min(((min(bounds) * len(bounds), bounds) for bounds in smallest), key=lambda pair: pair[0])
        yield (
            f"Over {name}, no p can fall below {min(bounds):.2g}, and corrected for {len(bounds)} comparisons none can "
            f"fall below {min(1.0, best):.2g}: more {name} or fewer methods are needed to tell any difference."
        )


def on_ranks(grid: Grid, ranking: Ranking | None) -> Iterator[str]:
    """What average ranks stand on, and the picture of parameters."""
    common, there = grid.common, ~np.isnan(grid.values[:, grid.shared])
    if (there.any(0) & ~there.all(0)).any():
        runs = int(there.all(0).sum())
        yield (
            f"Ranks and the picture of parameters stand on the {counted(runs, 'run')} (task and seed) that every "
            "method has: a mean over other seeds holds other lost runs."
        )
    if ranking is None:
        yield (
            "There are no average ranks: they need two methods and two tasks on which every method has a score of one "
            f"seed (here {counted(len(grid.methods), 'method')} and {counted(int(common.shared.sum()), 'such task')})."
        )
        return
    if ranking.left_out:
        yield f"Ranks leave out tasks that some method lacks, or has with other seeds: {', '.join(ranking.left_out)}."
    k, n = len(ranking.ranks), len(ranking.tasks)
    if ranking.p is None:
        yield "Friedman's test needs three methods: with two, the ranks have the critical difference alone."
    else:
        yield (
            f"Friedman's test over {n} tasks: chi-square {ranking.statistic:.2f} with {k - 1} degrees of freedom, "
            f"p = {ranking.p:.2g}; by permutations within tasks p = {ranking.p_permuted:.2g}"
            + ("." if n > 10 else ", which holds for so few tasks, where chi-square is rough.")
        )
    if not ranking.differ:
        yield "Friedman's test finds no difference at 0.05: average ranks are not to be told apart."
    elif ranking.critical_difference > k - 1:
        yield (
            f"The critical difference ({ranking.critical_difference:.2f}) is larger than any difference of ranks can "
            f"be ({k - 1}): {counted(n, 'task')} cannot tell {k} methods apart."
        )
    yield "Nemenyi's critical difference is cautious and depends on which other methods take part."


def counted(n: int, noun: str) -> str:
    """A number with its noun."""
    return f"{n} {noun}" + ("" if n == 1 else "s")
