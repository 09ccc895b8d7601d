"""Statistics of the laboratory: hand-computed cases, published values, scipy called otherwise, invariances."""

from __future__ import annotations

import itertools
import math
import statistics as plain
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import viapt.bench.statistics
from score_cases import drawn, score, scores_of
from viapt.bench.caveats import caveats, on_ranks
from viapt.bench.findings import CONTRARY, standing, verdict
from viapt.bench.grid import arrange, costs, means
from viapt.bench.statistics import (
    Ranking,
    compare,
    critical_difference,
    friedman,
    half_width,
    holm,
    mean_over_seeds,
    mean_over_tasks,
    not_told_apart,
    rank,
    signed_rank,
)
from viapt.errors import ConfigError, DataError

NAN = float("nan")


def signed_rank_by_counting(differences: list[float]) -> float:
    """Two-sided p-value over all changes of signs, zeros ranked and without a sign."""
    sizes = [abs(d) for d in differences]
    ranks = [sum(s < t for s in sizes) + (sizes.count(t) + 1) / 2 for t in sizes]
    moving = [r for r, d in zip(ranks, differences, strict=True) if d]
    observed = sum(r for r, d in zip(ranks, differences, strict=True) if d > 0)
    sums = [sum(itertools.compress(moving, signs)) for signs in itertools.product((0, 1), repeat=len(moving))]
    above, below = (sum(s >= observed for s in sums), sum(s <= observed for s in sums))
    return min(1.0, 2 * min(above, below) / len(sums))


def friedman_by_formula(ranks: np.ndarray) -> float:
    """Demšar (2006), section 3.2.2, without ties."""
    k, n = ranks.shape
    return 12 * n / (k * (k + 1)) * ((ranks.mean(1) ** 2).sum() - k * (k + 1) ** 2 / 4)


# Means


def test_interval_of_a_mean_by_the_table_of_students_t() -> None:
    values = [0.70, 0.72, 0.74, 0.71, 0.73]
    found = mean_over_seeds(np.array([*values, NAN]))
    assert found is not None and found.count == 5 and found.value == pytest.approx(0.72)
    assert found.half == pytest.approx(2.776445 * plain.stdev(values) / math.sqrt(5), rel=1e-6)  # t(0.975, 4)


def test_few_and_equal_seeds() -> None:
    assert mean_over_seeds(np.array([NAN])) is None
    single = mean_over_seeds(np.array([0.5, NAN]))
    assert single is not None and single.half is None and single.count == 1
    assert half_width(np.array([0.1 + 0.2, 0.3, 0.3])) == 0.0  # they differ by rounding alone


def test_mean_over_tasks_stands_on_complete_seeds() -> None:
    values = np.array([[0.5, 0.6, 0.7], [0.9, 0.7, NAN]])
    found = mean_over_tasks(values)
    assert found is not None and found.value == pytest.approx((0.6 + 0.8) / 2) and found.count == 2
    by_seed = [0.7, 0.65]
    assert found.half == pytest.approx(12.7062047 * plain.stdev(by_seed) / math.sqrt(2), rel=1e-6)  # t(0.975, 1)
    assert mean_over_tasks(np.array([[0.5], [NAN]])) is None
    assert mean_over_tasks(np.empty((0, 3))) is None
    scattered = mean_over_tasks(np.array([[0.5, NAN], [NAN, 0.7]]))
    assert scattered is not None and scattered.half is None and scattered.count == 0


# Signed ranks


def test_signed_rank_of_a_published_example() -> None:
    """Demšar (2006), table 2: C4.5 without and with a pruning parameter on 14 data sets: R- = 12 of 105."""
    without = [.763, .599, .954, .628, .882, .936, .661, .583, .775, 1.0, .940, .619, .972, .957]  # fmt: skip
    with_m = [.768, .591, .971, .661, .888, .931, .668, .583, .838, 1.0, .962, .666, .981, .978]  # fmt: skip
    found = signed_rank(np.array(with_m) - np.array(without))
    assert (found.pairs, found.zeros) == (14, 2)
    assert found.p is not None and 0.005 < found.p < 0.02  # two-sided: significant at 0.05, as there


@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
@settings(max_examples=30, deadline=None)
def test_signed_rank_with_ties_and_zeros_counts_all_signs(steps: list[int]) -> None:
    found = signed_rank(np.array(steps) / 2000)
    assert found.p == pytest.approx(signed_rank_by_counting([float(s) for s in steps]), abs=1e-12)
    assert found.p is not None and found.p >= found.smallest - 1e-12


@given(
    st.lists(st.integers(1, 10**6).flatmap(lambda n: st.sampled_from([n, -n])), min_size=1, max_size=40, unique_by=abs)
)
@settings(max_examples=20, deadline=None)
def test_signed_rank_without_ties_is_scipys_exact_test(steps: list[int]) -> None:
    differences = np.array(steps) / 1e6
    found = signed_rank(differences)
    assert found.how == "exact"
    assert found.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)
    assert signed_rank(-differences).p == pytest.approx(found.p)


def test_signed_rank_of_many_ties_is_approximate_and_close() -> None:
    steps = np.random.default_rng(1).integers(-4, 9, 16).astype(float)
    found = signed_rank(steps)
    assert found.how == "approximate"
    assert found.p == pytest.approx(signed_rank_by_counting(list(steps)), rel=0.15)


def test_a_few_lost_runs_may_turn_the_mean_but_not_the_ranks() -> None:
    """Three runs that one method lost, and 37 in which it was better by a little."""
    gaps = np.array([0.23, 0.38, 0.235, *-np.linspace(0.001, 0.013, 37)])
    found = signed_rank(gaps)
    assert gaps.mean() > 0 and found.p is not None and found.p < 0.001
    ranks = stats.rankdata(np.abs(gaps))
    assert ranks[gaps > 0].sum() < ranks[gaps < 0].sum() and found.sign == -1
    assert signed_rank(-gaps).sign == 1 and signed_rank(np.zeros(3)).sign == 0
    whole = {"a": {"x": [0.5 + gap for gap in gaps]}, "b": {"x": [0.5] * 40}}
    (one,) = compare(arrange(scores_of(whole)), "b")
    assert one.contrary(one.runs) and not one.contrary(one.by_task)
    assert standing(one) == CONTRARY and standing(replace(one, runs_holm=0.2)) == "not told apart"
    assert "higher" not in verdict([one], "b").split("): ")[1] and f"{CONTRARY}: a (+1.5" in verdict([one], "b")
    assert any(
        "worse in the mean, or the reverse: a (runs)" in note for note in caveats(arrange(scores_of(whole)), [[one]])
    )


def test_differences_equal_but_for_rounding_are_ties() -> None:
    a, b = 0.70 - 0.65, 0.80 - 0.75
    assert a != b
    assert signed_rank(np.array([a, b, 0.3])).how == "exact, with ties"
    assert signed_rank(np.array([0.1 + 0.2 - 0.3, 0.1])).zeros == 1


def test_small_samples_say_what_they_cannot_do() -> None:
    five, six = signed_rank(np.arange(1.0, 6)), signed_rank(np.arange(1.0, 7))
    assert five.p == five.smallest == 0.0625
    assert six.p == six.smallest == 0.03125
    equal = signed_rank(np.zeros(8))
    assert (equal.p, equal.smallest, equal.how) == (1.0, 1.0, "no difference")
    assert signed_rank(np.array([])).p is None


# Comparisons


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": None, "c": 0.04, "d": 0.03})
    assert found == pytest.approx({"a": 0.03, "c": 0.06, "d": 0.06})
    assert holm({"a": None}) == {}


def test_comparison_by_hand_with_gaps() -> None:
    scores = scores_of(
        {
            "ours": {"x": [0.8, 0.9], "y": [0.5, 0.6], "z": [0.3, 0.3]},
            "peer": {"x": [0.7, 0.9], "y": [0.6, NAN]},
            "alone": {"w": [0.4]},
        }
    )
    alone, peer = compare(arrange(scores), "ours")
    assert (peer.method, peer.tasks) == ("peer", ("x", "y"))
    assert (peer.wins, peer.ties, peer.losses) == (1, 1, 1)
    assert peer.difference is not None and peer.difference.value == pytest.approx((-0.05 + 0.1) / 2)
    assert peer.difference.count == 1 and peer.difference.half is None
    assert (peer.runs.pairs, peer.runs.zeros, peer.by_task.pairs) == (3, 1, 2)
    assert peer.runs_holm == peer.runs.p  # the other comparison was not possible: a family of one
    assert alone.difference is None and alone.runs.p is None and alone.runs_holm is None and alone.tasks == ()


def test_holm_is_taken_over_all_methods_compared() -> None:
    grid = arrange(drawn(4, 6))
    found = compare(grid, "method-0")
    p = [comparison.runs.p for comparison in found]
    order = np.argsort(p)
    expected = np.maximum.accumulate([min(1, (3 - k) * p[i]) for k, i in enumerate(order)])
    assert [found[i].runs_holm for i in order] == pytest.approx(list(expected))
    pairs = (grid.of("method-2") - grid.of("method-0")).ravel()
    assert found[1].runs.p == pytest.approx(
        stats.wilcoxon(pairs.round(12), zero_method="pratt", correction=True, method="asymptotic").pvalue
    )


def test_unknown_reference_is_refused_with_a_proposal() -> None:
    with pytest.raises(ConfigError, match="did you mean 'viapt'"):
        compare(arrange(scores_of({"viapt": {"x": [0.5]}})), "vaipt")


# Ranks


@pytest.mark.parametrize(
    ("methods", "q"),  # Demšar (2006), table 5a, alpha = 0.05
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_critical_values_are_the_published_ones(methods: int, q: float) -> None:
    tasks = 14
    expected = q * math.sqrt(methods * (methods + 1) / (6 * tasks))
    assert critical_difference(methods, tasks) == pytest.approx(expected, rel=0.001 / q)  # printed to three places


def test_ranking_of_the_published_example() -> None:
    """Demšar (2006), table 6: C4.5 with and without two parameters, 14 data sets; two are ranked that print alike."""
    rows = [
        (.763, .768, .771, .798), (.599, .591, .590, .569), (.954, .971, .968, .967), (.628, .661, .654, .657),
        (.882, .888, .886, .898), (.936, .931, .916, .931), (.661, .668, .609, .685), (.583, .583, .563, .625),
        (.775, .838, .866, .875), (1.000, 1.000, 1.000, 1.000), (.940, .962, .965, .962), (.619, .666, .614, .669),
        (.972, .981, .9751, .975), (.957, .978, .946, .970),
    ]  # fmt: skip
    names = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]
    scores = [score(names[m], f"{t:02d}", 0, row[m]) for t, row in enumerate(rows) for m in range(4)]
    found = rank(arrange(scores))
    assert found is not None
    assert {name: round(r, 3) for name, r in found.ranks.items()} == {
        "C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964
    }  # fmt: skip
    assert round(found.critical_difference, 2) == 1.25
    assert found.statistic == pytest.approx(
        9.28 / tie_correction(rows), abs=0.02
    )  # the paper does not correct for ties
    assert found.p is not None and found.p_permuted == pytest.approx(found.p, abs=0.01)
    assert found.groups == (("C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"),)  # 3.143 - 1.964 < 1.25


def tie_correction(rows: list[tuple[float, ...]]) -> float:
    k = len(rows[0])
    tied = sum(row.count(value) ** 3 - row.count(value) for row in rows for value in set(row))
    return 1 - tied / (len(rows) * (k**3 - k))


def test_friedman_by_formula_and_by_counting_all_permutations() -> None:
    ranks = np.array([[1.0, 1, 2], [2, 3, 1], [3, 2, 3]])
    statistic, p, permuted = friedman(ranks)
    assert statistic == pytest.approx(friedman_by_formula(ranks))
    assert p == pytest.approx(stats.chi2.sf(statistic, 2))
    every = list(itertools.product(itertools.permutations((1.0, 2, 3)), repeat=3))
    counted = [friedman_by_formula(np.array(way).T) >= statistic - 1e-9 for way in every]
    assert permuted == pytest.approx(sum(counted) / len(every))
    assert friedman(np.full((4, 3), 2.5)) == (0.0, 1.0, 1.0)


def test_groups_by_hand() -> None:
    ranks = {"a": 1.0, "b": 1.5, "c": 2.4, "d": 3.9, "e": 5.0}
    assert not_told_apart(ranks, 1.45) == (("a", "b", "c"), ("d", "e"))
    assert not_told_apart(ranks, 1.5) == (("a", "b", "c"), ("d", "e"))  # 2.4 and 3.9 differ by exactly so much
    assert not_told_apart(ranks, 1.6) == (("a", "b", "c"), ("c", "d"), ("d", "e"))
    assert not_told_apart(ranks, 0.1) == ()
    assert not_told_apart(ranks, 9.0) == (tuple(ranks),)


def test_ranks_stand_on_seeds_that_all_have() -> None:
    """The lost run of seed 2, which `thin` has not, decides no rank."""
    lost = {"thin": {"x": [0.7, 0.7], "y": [0.7, 0.7]}, "whole": {"x": [0.8, 0.8, 0.1], "y": [0.8, 0.8, 0.1]}}
    grid = arrange(scores_of(lost))
    assert means(grid.of("whole")).max() < 0.7  # over all of its seeds it would be the worse
    found = rank(grid)
    assert found is not None and found.ranks == {"whole": 1.0, "thin": 2.0}
    assert np.isnan(grid.common.values[:, :, 2]).all() and not np.isnan(grid.common.values[:, :, :2]).any()
    assert any("the 4 runs (task and seed) that every method has" in note for note in on_ranks(grid, found))
    even = arrange(drawn(3, 4))
    assert not any("that every method has:" in note for note in on_ranks(even, rank(even)))


def test_ranks_stand_on_tasks_that_all_have() -> None:
    scores = [s for s in drawn(3, 4) if (s.method, s.task) != ("method-1", "task-2")]
    found = rank(arrange(scores))
    assert found is not None and found.left_out == ("task-2",) and len(found.tasks) == 3
    assert rank(arrange(drawn(3, 1))) is None and rank(arrange(drawn(1, 5))) is None
    two = rank(arrange(drawn(2, 5)))
    assert two is not None and two.p is None and two.statistic is None


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 10_000), st.randoms(use_true_random=False))
@settings(max_examples=6, deadline=None)
def test_ranks_and_tests_do_not_depend_on_order_names_or_a_constant(
    methods: int, tasks: int, seed: int, random
) -> None:
    scores = drawn(methods, tasks, seeds=2, seed=seed, images=20)
    grid, found = arrange(scores), ranking(scores)
    assert sum(found.ranks.values()) == pytest.approx(methods * (methods + 1) / 2)
    assert list(found.ranks.values()) == sorted(found.ranks.values())

    shuffled = random.sample(scores, len(scores))
    np.testing.assert_array_equal(arrange(shuffled).values, grid.values)

    new = dict(zip(grid.methods, random.sample([f"m{k}" for k in range(methods)], methods), strict=True))
    renamed = [replace(s, method=new[s.method]) for s in scores]
    assert ranking(renamed).ranks == pytest.approx({new[m]: r for m, r in found.ranks.items()})
    before, after = compare(grid, "method-0"), compare(arrange(renamed), new["method-0"])
    assert {new[c.method]: c.runs_holm for c in before} == pytest.approx({c.method: c.runs_holm for c in after})

    moved = [replace(s, value=s.value / 2 + 0.25) for s in scores]  # halved is exact; the constant is the task's own
    assert ranking(moved).ranks == pytest.approx(found.ranks)
    assert ranking(moved).p == pytest.approx(found.p)
    assert [c.runs.p for c in compare(arrange(moved), "method-0")] == pytest.approx([c.runs.p for c in before])


def ranking(scores) -> Ranking:
    with patch.object(viapt.bench.statistics, "PERMUTATIONS", 50):
        found = rank(arrange(scores))
    assert found is not None
    return found


# The grid


def test_grid_has_gaps_and_shared_tasks() -> None:
    grid = arrange(scores_of({"b": {"x": [0.1, 0.2]}, "a": {"x": [NAN, 0.4], "y": [0.5]}}))
    assert (grid.methods, grid.tasks, grid.seeds) == (("a", "b"), ("x", "y"), (0, 1))
    np.testing.assert_allclose(grid.values, [[[NAN, 0.4], [0.5, NAN]], [[0.1, 0.2], [NAN, NAN]]])
    np.testing.assert_allclose(grid.task_means, [[0.4, 0.5], [0.15, NAN]])
    assert grid.named(grid.shared) == ("x",) and grid.tasks_of("b") == ("x",)


def test_all_problems_of_scores_in_one_message() -> None:
    good = score("a", "x", 0, 0.5)
    bad = [good, good, score("a", "y", 0, NAN), score("b", "y", 1, 1.2), replace(good, seed=3, metric="other")]
    with pytest.raises(DataError) as caught:
        arrange(bad)
    for text in ("a on x, seed 0, 2 times", "seed 0: nan", "seed 1: 1.2", "x (accuracy, other)"):
        assert text in str(caught.value)


def test_parts_are_kept_apart() -> None:
    scores = [score("a", "x", 0, 0.5, "val"), score("a", "x", 0, 0.6)]
    assert arrange(scores).values.item() == 0.6 and arrange(scores, "val").values.item() == 0.5
    with pytest.raises(DataError, match=r"'test'.*\(val\)"):
        arrange(scores[:1])
    with pytest.raises(DataError, match="none at all"):
        arrange([])


def test_costs_are_over_all_scores_of_a_method() -> None:
    runs = [
        replace(score("a", "x", 0, 0.5, learnable=10), seconds=1.0, peak_memory_mib=5.0),
        replace(score("a", "y", 0, 0.5, learnable=30), seconds=2.0, peak_memory_mib=9.0),
        replace(score("a", "y", 0, 0.5, "val"), seconds=99.0),
    ]
    (cost,) = costs(runs).values()
    assert (cost.learnable, cost.seconds, cost.peak_memory_mib) == ((10, 30), 1.5, 9.0)
