"""Means with intervals, paired tests with Holm's correction, average ranks; `docs/bench-statistics.md` says why these.

Numbers that differ by rounding alone count as equal (`DECIMALS`): 0.70 - 0.65 and 0.80 - 0.75 are one difference, and
ties decide how a rank test is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from viapt.bench.grid import Grid, means, measured
from viapt.errors import ConfigError, did_you_mean

CONFIDENCE, ALPHA = 0.95, 0.05
DECIMALS = 12
EXACT, SIGN_CHANGES = 50, 13  # pairs up to which all orders of signs are counted: without ties, and with them
PERMUTATIONS = 9_999


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        half: half the width of its interval, by Student's t; None for fewer than two seeds.
        count: seeds that the interval stands on.
    """

    value: float
    half: float | None
    count: int


def mean_over_seeds(values: Float[np.ndarray, " seeds"]) -> Mean | None:
    """Of the values that are not NaN; None without any. Equal values give an interval without width."""
    there = values[~np.isnan(values)]
    return Mean(float(there.mean()), half_width(there), len(there)) if len(there) else None


def mean_over_tasks(values: Float[np.ndarray, "tasks seeds"]) -> Mean | None:
    """The mean of the tasks' means; its interval is that of the mean over tasks as each complete seed gives it.

    Such an interval needs no independence of the tasks within a seed. It speaks of new seeds on the same tasks.

    Returns:
        None when a task has no value, or there is no task.
    """
    by_task = means(values)
    if not len(by_task) or np.isnan(by_task).any():
        return None
    by_seed = values[:, ~np.isnan(values).any(0)].mean(0)
    return Mean(float(by_task.mean()), half_width(by_seed), len(by_seed))


def half_width(values: Float[np.ndarray, " n"]) -> float | None:
    """Half of the t-interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    error = stats.sem(np.round(values, DECIMALS))
    return float(stats.t.interval(CONFIDENCE, len(values) - 1, scale=error)[1]) if error > 0 else 0.0


@dataclass(frozen=True)
class SignedRank:
    """A two-sided Wilcoxon signed-rank test.

    Attributes:
        p: None without pairs; 1 when all differences are zero.
        pairs: all of them.
        zeros: pairs without a difference: they are ranked, and have no sign (Pratt, 1959).
        sign: of the sum of signed ranks: 1, 0 or -1. The mean may have the other one, where a few pairs differ much.
        how: "exact", "exact, with ties", "approximate", "no difference" or "no pairs".
    """

    p: float | None
    pairs: int
    zeros: int
    sign: int
    how: str

    @property
    def smallest(self) -> float:
        """The p-value if all differences had one sign: no values, however far apart, give a smaller one."""
        return min(1.0, 2.0 ** (1 - (self.pairs - self.zeros)))


def signed_rank(differences: Float[np.ndarray, " pairs"]) -> SignedRank:
    """Test that differences are symmetric around zero.

    Exact up to 50 pairs without ties and zeros, and by all changes of signs up to 13 pairs with them; beyond, the
    normal approximation, corrected for ties and continuity.
    """
    rounded = np.round(differences, DECIMALS)
    n, zeros = len(rounded), int((rounded == 0).sum())
    if zeros == n:
        return SignedRank(1.0 if n else None, n, zeros, 0, "no difference" if n else "no pairs")
    signed = np.sign(rounded) * stats.rankdata(np.abs(rounded))
    tied = zeros > 0 or len(np.unique(np.abs(rounded))) < n
    if tied and n <= SIGN_CHANGES:
        options: dict[str, Any] = {"permutation_type": "samples", "vectorized": True, "n_resamples": 2**n}
        found: Any = stats.permutation_test((signed,), np.sum, **options)  # wilcoxon's own takes minutes
        how = "exact, with ties"
    else:
        how = "approximate" if tied or n > EXACT else "exact"
        method = "exact" if how == "exact" else "asymptotic"
        found = stats.wilcoxon(rounded, zero_method="pratt", correction=True, method=method)
    return SignedRank(min(1.0, float(found.pvalue)), n, zeros, int(np.sign(signed.sum())), how)


@dataclass(frozen=True)
class Comparison:
    """A method beside the reference, where both have a score.

    Attributes:
        tasks: those with at least one pair.
        difference: mean over these tasks of method less reference; None without pairs.
        wins, ties, losses: pairs (task, seed) in which the method is better, equal, worse.
        runs: test over tasks x seeds.
        by_task: test over the tasks' mean differences.
        runs_holm, by_task_holm: the same, corrected for the number of methods compared; None without pairs.
    """

    method: str
    tasks: tuple[str, ...]
    difference: Mean | None
    wins: int
    ties: int
    losses: int
    runs: SignedRank
    by_task: SignedRank
    runs_holm: float | None
    by_task_holm: float | None

    def contrary(self, test: SignedRank) -> bool:
        """Whether the ranks of a test point the other way than the mean: then its p says nothing for the mean."""
        return self.difference is not None and test.sign * self.difference.value < 0


def compare(grid: Grid, reference: str) -> list[Comparison]:
    """Every other method with the reference, in the grid's order; each column of tests is one family for Holm.

    Raises:
        ConfigError: no such method.
    """
    check_reference(grid, reference)
    others = [method for method in grid.methods if method != reference]
    gaps = {method: np.round(grid.of(method) - grid.of(reference), DECIMALS) for method in others}
    runs = {method: signed_rank(gap[~np.isnan(gap)]) for method, gap in gaps.items()}
    by_task = {method: signed_rank(present(means(gap))) for method, gap in gaps.items()}
    runs_holm, by_task_holm = holm({m: t.p for m, t in runs.items()}), holm({m: t.p for m, t in by_task.items()})
    found = []
    for method, gap in gaps.items():
        compared = measured(gap)
        comparison = Comparison(
            method=method,
            tasks=grid.named(compared),
            difference=mean_over_tasks(gap[compared]),
            wins=int((gap > 0).sum()),
            ties=int((gap == 0).sum()),
            losses=int((gap < 0).sum()),
            runs=runs[method],
            by_task=by_task[method],
            runs_holm=runs_holm.get(method),
            by_task_holm=by_task_holm.get(method),
        )
        found.append(comparison)
    return found


def check_reference(grid: Grid, reference: str) -> None:
    """Raises ConfigError unless it is one of the methods."""
    if reference not in grid.methods:
        remedy = did_you_mean(reference, grid.methods) or "--reference takes a method's name as the scores have it"
        raise ConfigError(
            f"the reference {reference!r} has no scores", expected=f"one of {', '.join(grid.methods)}", remedy=remedy
        )


def present(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " m"]:
    """Without gaps."""
    return values[~np.isnan(values)]


def holm(p_values: Mapping[str, float | None]) -> dict[str, float]:
    """Corrected p-values (Holm, 1979) of the tests that were possible."""
    from statsmodels.stats.multitest import multipletests

    known = {name: p for name, p in p_values.items() if p is not None}
    if not known:
        return {}
    corrected = np.asarray(multipletests(list(known.values()), method="holm")[1])
    return dict(zip(known, corrected.tolist(), strict=True))


@dataclass(frozen=True)
class Ranking:
    """Average ranks over the tasks on which all methods have a score of one seed, and what they tell apart.

    Attributes:
        ranks: method -> average rank, 1 the best, equal means sharing their ranks; best first.
        tasks, left_out: names.
        statistic, p: Friedman's test, by the chi-square distribution; None for fewer than three methods.
        p_permuted: the same test by permuting methods within tasks: all ways, or 9,999 random ones.
        critical_difference: Nemenyi's: ranks that are at least so far apart differ at the level of 0.05.
        groups: methods that are not told apart, each group as large as can be; best first.
    """

    ranks: Mapping[str, float]
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    statistic: float | None
    p: float | None
    p_permuted: float | None
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]

    @property
    def differ(self) -> bool:
        """Whether Friedman's test, by permutations, allows to tell ranks apart; True where two methods leave it out."""
        return self.p_permuted is None or self.p_permuted < ALPHA


def rank(grid: Grid) -> Ranking | None:
    """Ranks of the tasks' means over the seeds that every method has there.

    Returns:
        None for fewer than two methods, or fewer than two tasks with such a seed.
    """
    grid = grid.common
    shared = grid.shared
    tasks = grid.named(shared)
    if len(grid.methods) < 2 or len(tasks) < 2:
        return None
    values = np.round(grid.task_means[:, shared], DECIMALS)
    by_task = stats.rankdata(-values, axis=0)
    average = by_task.mean(1)
    order = np.argsort(average, kind="stable")
    ranks = {grid.methods[k]: float(average[k]) for k in order}
    distance = critical_difference(len(ranks), len(tasks))
    statistic, p, p_permuted = friedman(by_task) if len(ranks) > 2 else (None, None, None)
    return Ranking(
        ranks, tasks, grid.named(~shared), statistic, p, p_permuted, distance, not_told_apart(ranks, distance)
    )


def friedman(ranks: Float[np.ndarray, "methods tasks"]) -> tuple[float, float, float]:
    """Friedman's statistic, corrected for ties, and its p-value twice: by chi-square, and by permutations.

    Chi-square is an approximation for many tasks; permutations hold for few.
    """
    if (ranks == ranks[0]).all():
        return 0.0, 1.0, 1.0
    found = stats.friedmanchisquare(*ranks)

    def spread(*by_method: Float[np.ndarray, "*rest tasks"], axis: int) -> Any:
        """Grows with Friedman's statistic; sums of halves are exact, so that equal arrangements count as equal."""
        return np.square(np.stack([method.sum(axis) for method in by_method])).sum(0)

    permuted = stats.permutation_test(
        tuple(ranks), spread, permutation_type="samples", alternative="greater", vectorized=True,
        n_resamples=PERMUTATIONS, batch=1_000, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.statistic), float(found.pvalue), float(permuted.pvalue)


def critical_difference(methods: int, tasks: int) -> float:
    """Nemenyi's at the level of 0.05 (Demšar, 2006): q sqrt(k (k + 1) / 6 N), q the studentized range over sqrt(2)."""
    q = stats.studentized_range.ppf(1 - ALPHA, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * tasks)))


def not_told_apart(ranks: Mapping[str, float], distance: float) -> tuple[tuple[str, ...], ...]:
    """Runs of methods, sorted by rank, whose first and last are less than the distance apart; none inside another."""
    names: Sequence[str] = list(ranks)
    groups: list[tuple[str, ...]] = []
    end = 0
    for start, first in enumerate(names):
        last = max(k for k in range(start, len(names)) if ranks[names[k]] - ranks[first] < distance)
        if last > start and last + 1 > end:
            groups.append(tuple(names[start : last + 1]))
            end = last + 1
    return tuple(groups)
