"""The report of a laboratory: scores in; Markdown, one HTML file with its pictures inside, CSV and LaTeX out."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from viapt.bench import plots
from viapt.bench.caveats import caveats, on_ranks
from viapt.bench.grid import Cost, Grid, arrange, costs, listed
from viapt.bench.scores import Score
from viapt.bench.shown import by_cause
from viapt.bench.statistics import Ranking, check_reference, compare, mean_over_tasks, rank
from viapt.bench.store import FINAL, Failure
from viapt.bench.suite_tables import suite_notes, suite_tables
from viapt.bench.tables import Table, accuracy_table, by_mean, comparison_table, cost_table, rank_table
from viapt.errors import ConfigError
from viapt.report.plots import Point, accuracy_against_parameters
from viapt.report.rendering import Plot, check_libraries, render, write_pictures

REFERENCE = "viapt"  # that all others are compared with, unless another is named


def write_report(
    scores: Sequence[Score],
    folder: Path,
    reference: str = REFERENCE,
    protocol: Mapping[str, Any] | None = None,
    *,
    part: str = "test",
    max_parameters: int | None = None,
    title: str = "Laboratory",
    records: Sequence[dict[str, Any]] = (),
    failures: Sequence[Failure] = (),
) -> tuple[Path, Path]:
    """Write `report.md` with its `pictures`, `report.html`, `scores.csv`, and `tables/*.csv` and `*.tex`.

    Args:
        scores: in any order; equal scores give equal files.
        folder: made if it is not there; files of an earlier report are replaced.
        reference: method that all others are compared with.
        protocol: what was run, printed as it is: name -> text, or anything JSON can hold.
        part: "test" or "val": the scores that count; others are left out, and the report says so.
        max_parameters: methods that learn more numbers on some task, the head not counted, are left out, and the
            report says so.
        title: heading.
        records: that the scores are from; a report of a suite says on which data they were made.
        failures: why places have no score.

    Returns:
        The paths of the two reports, Markdown first.

    Raises:
        ConfigError: no such reference; a library is not installed.
        DataError: see `viapt.bench.grid.arrange`.
    """
    check_libraries("bench")
    check_statsmodels()
    large = too_large(scores, max_parameters)
    scores = [score for score in scores if score.method not in large]
    grid = arrange(scores, part)
    check_reference(grid, reference)
    comparisons, ranking, order = compare(grid, reference), rank(grid), by_mean(grid)
    prices = costs(scores, part)
    tables = [accuracy_table(grid)]
    tables += [comparison_table(comparisons, reference, grid)] if comparisons else []
    tables += [rank_table(ranking)] if ranking else []
    tables.append(cost_table(prices, order))
    tables += suite_tables(grid, protocol or {}, records)
    figures = draw(grid, ranking, prices, order)
    write_pictures(figures, folder)
    write_tables(tables, folder / "tables")
    write_scores(scores, folder / "scores.csv")
    empty = [(one.cell, one.cause) for one in failures if one.cell.trial == FINAL and one.cell.method not in large]
    left_out = len(scores) - sum(score.part == part for score in scores)
    values = {
        "title": title,
        "summary": summary(grid, reference),
        "tables": tables,
        "figures": figures,
        "notes": suite_notes(grid, protocol or {}, records)
        + [*caveats(grid, [comparisons]), *on_ranks(grid, ranking)]
        + [f"Not measured: {line}" for line in by_cause(empty)]
        + ([f"Left out are methods that learn more than {max_parameters:,} numbers: {listed(large)}."] if large else [])
        + ([f"{left_out} scores of other parts than {part} are left out."] if left_out else []),
        "facts": {name: in_words(value) for name, value in (protocol or {}).items()},
    }
    paths = folder / "report.md", folder / "report.html"
    for path in paths:
        path.write_text(render("viapt.bench", path.name, values), encoding="utf-8")
    return paths


def too_large(scores: Sequence[Score], most: int | None) -> list[str]:
    """Methods with more learnable parameters than that; none without a limit.

    Raises:
        ConfigError: that are all of them.
    """
    large = {score.method for score in scores if most is not None and score.learnable_parameters > most}
    if large and len(large) == len({score.method for score in scores}):
        fewest = min(score.learnable_parameters for score in scores)
        raise ConfigError(f"All methods learn more than {most:,} numbers", expected=f"a limit of {fewest:,} or more")
    return sorted(large)


def check_statsmodels() -> None:
    """Raises ConfigError if it is not installed."""
    try:
        import statsmodels.stats.multitest  # noqa: F401 - to say now that it is missing
    except ImportError as error:
        remedy = "pip install 'viapt[bench]'"
        raise ConfigError("Holm's correction needs statsmodels, which is not installed", remedy=remedy) from error


def summary(grid: Grid, reference: str) -> str:
    """One paragraph on what there is."""
    runs = int((~np.isnan(grid.values)).sum())
    return (
        f"{len(grid.methods)} methods, {len(grid.tasks)} tasks, {len(grid.seeds)} seeds: {runs} runs of "
        f"{grid.values.size}, measured on the {grid.part} part. The reference is {reference}."
    )


def draw(grid: Grid, ranking: Ranking | None, prices: Mapping[str, Cost], order: Sequence[str]) -> list[Plot]:
    """The figures, in the order in which they appear."""
    figures = [draw_ranks(ranking)] if ranking else []
    if grid.common.shared.any():
        figures.append(draw_parameters(grid.common, prices, order))
    return [*figures, draw_tasks(grid, order)]


def draw_tasks(grid: Grid, order: Sequence[str]) -> Plot:
    """The heat map of methods and tasks."""
    drawn = plots.heat_map(grid.task_means[[grid.methods.index(name) for name in order]], order, grid.tasks)
    caption = "Accuracy (%) by task; colours are points above or below the task's median method, hatched: no score"
    words = f"Heat map of {len(order)} methods and {len(grid.tasks)} tasks; its numbers are in the table of accuracy."
    return Plot("tasks", caption, drawn, words)


def draw_ranks(ranking: Ranking) -> Plot:
    """The critical-difference diagram."""
    drawn = plots.critical_difference(ranking.ranks, ranking.critical_difference, ranking.groups, ranking.differ)
    together = "; ".join(", ".join(group) for group in ranking.groups) if ranking.differ else "all"
    words = (
        f"Average ranks over {len(ranking.tasks)} tasks: "
        + ", ".join(f"{name} {value:.2f}" for name, value in ranking.ranks.items())
        + f". Critical difference {ranking.critical_difference:.2f}. Not told apart: {together or 'none'}."
    )
    caption = "Average ranks; methods under one bar are not told apart by Nemenyi's test at 0.05"
    return Plot("ranks", caption, drawn, words)


def draw_parameters(grid: Grid, prices: Mapping[str, Cost], order: Sequence[str]) -> Plot:
    """Accuracy against parameters, over the runs that all methods have."""
    points, words = {}, []
    for method in order:
        mean = mean_over_tasks(grid.of(method)[grid.shared])
        if mean is None:
            continue
        half = np.nan if mean.half is None else mean.half
        parameters = sum(prices[method].learnable) / 2
        points[method] = Point(parameters, mean.value, mean.value - half, mean.value + half)
        words.append(f"{method} {100 * mean.value:.1f} % with {parameters:,.0f}")
    over = (
        f"mean of {int(grid.shared.sum())} of {len(grid.tasks)} tasks" if not grid.shared.all() else "mean of all tasks"
    )
    drawn = accuracy_against_parameters(
        points, x="learnable parameters, without the head", y=f"{over} (%)", frontier=True
    )
    caption = f"Accuracy ({over}, 95 % interval over seeds) against learnable parameters"
    return Plot("parameters", caption, drawn, f"{caption}: " + ", ".join(words) + ".")


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """A CSV and a LaTeX file for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        (folder / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8")
        (folder / f"{table.name}.tex").write_text(table.latex(), encoding="utf-8")


def write_scores(scores: Sequence[Score], path: Path) -> None:
    """Every score, sorted, for other programs."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Score)], lineterminator="\n")
        writer.writeheader()
        ordered = sorted(scores, key=lambda s: (s.part, s.method, s.task, s.seed))
        writer.writerows(asdict(score) for score in ordered)


def in_words(value: Any) -> str:
    """Text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
