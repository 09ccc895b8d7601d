"""Tables as objects: what is in them is decided once; Markdown, HTML, LaTeX and CSV only write it down."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from viapt.bench.grid import Cost, Grid, measured
from viapt.bench.statistics import Comparison, Mean, Ranking, mean_over_seeds, mean_over_tasks

Cell = str | int | float | Mean | None
Kind = Literal["text", "percent", "points", "count", "rank", "p", "number"]
MISSING = "-"
LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "×": r"$\times$",
    **{character: "\\" + character for character in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A heading, and what stands under it.

    Attributes:
        kind: how cells are written. "percent" and "points" are shares, or means of shares, shown times 100; CSV keeps
            shares.
        seeds: for columns of means: of how many seeds they should be; a mean of another number says so.
        unit: what is counted: for means over tasks, seeds that all of these tasks have.
    """

    heading: str
    kind: Kind = "text"
    seeds: int | None = None
    unit: Literal["seed", "complete seed"] = "seed"

    @property
    def is_number(self) -> bool:
        """Written flush right."""
        return self.kind != "text"

    def shown(self, cell: Cell) -> str:
        """The cell for a reader."""
        if cell is None:
            return MISSING
        if isinstance(cell, Mean):
            width = "" if cell.half is None else f" ± {100 * cell.half:.1f}"
            return f"{signed(cell.value, self.kind)}{width}{self.remark(cell)}"
        if isinstance(cell, str):
            return cell
        if self.kind == "p":
            return f"{cell:.4f}" if cell >= 0.0001 else "< 0.0001"
        if self.kind in ("percent", "points"):
            return signed(cell, self.kind)
        return {"count": f"{cell:,.0f}", "rank": f"{cell:.2f}", "number": f"{cell:,.1f}", "text": str(cell)}[self.kind]

    def csv_headings(self) -> list[str]:
        """A mean takes three cells."""
        return [self.heading, *(f"{self.heading}: {part}" for part in ("half interval", "seeds") if self.seeds)]

    def csv(self, cell: Cell) -> list[str | int | float | None]:
        """The cell for a program."""
        if isinstance(cell, Mean):
            return [cell.value, cell.half, cell.count]
        return [cell, None, None] if self.seeds else [cell]

    def remark(self, mean: Mean) -> str:
        """On how many seeds a mean stands, if not on as many as others."""
        if mean.count == self.seeds:
            return ""
        return f" ({mean.count or 'no'} {self.unit}{'' if mean.count == 1 else 's'})"


def signed(share: float, kind: Kind) -> str:
    """In per cent; differences always with a sign."""
    return f"{100 * share:+.1f}" if kind == "points" else f"{100 * share:.1f}"


@dataclass(frozen=True)
class Table:
    """What is written down.

    Attributes:
        name: of its files, without suffix.
        title, caption: plain text.
        rows: a cell for each column.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @property
    def shown(self) -> list[list[str]]:
        """Cells for a reader."""
        return [[column.shown(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]

    def csv(self) -> str:
        """Full precision, one number in a cell: a mean is three columns. Shares stay shares; gaps are empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([head for column in self.columns for head in column.csv_headings()])
        for row in self.rows:
            writer.writerow([part for column, cell in zip(self.columns, row, strict=True) for part in column.csv(cell)])
        return buffer.getvalue()

    def latex(self) -> str:
        """A `table` with the rules of the package booktabs."""
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(self.title)}. {latex(self.caption)}}}",
            rf"\label{{tab:{self.name}}}",
            rf"\begin{{tabular}}{{{''.join('r' if column.is_number else 'l' for column in self.columns)}}}",
            r"\toprule",
            " & ".join(latex(column.heading) for column in self.columns) + r" \\",
            r"\midrule",
            *(" & ".join(map(latex, row)) + r" \\" for row in self.shown),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Plain text for LaTeX."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def by_mean(grid: Grid) -> list[str]:
    """Methods, best mean over the shared tasks first; those without shared tasks by the mean over their own."""
    means = {}
    for method in grid.methods:
        own = grid.of(method)[grid.shared] if grid.shared.any() else grid.of(method)
        mean = mean_over_tasks(own[measured(own)])
        means[method] = mean.value if mean else 0.0
    return sorted(grid.methods, key=lambda method: -means[method])


def accuracy_table(grid: Grid) -> Table:
    """Means over seeds for each task, and over tasks; every mean over fewer tasks than all has a column of its own."""
    seeds, shared, all_tasks = len(grid.seeds), grid.shared, len(grid.tasks)
    columns = [Column("method"), *(Column(task, "percent", seeds) for task in grid.tasks)]
    columns.append(Column(f"mean of all {all_tasks} tasks", "percent", seeds, "complete seed"))
    partial = 0 < shared.sum() < all_tasks
    if partial:
        heading = f"mean of the {shared.sum()} of {all_tasks} tasks that all have"
        columns.append(Column(heading, "percent", seeds, "complete seed"))
    rows = []
    for method in by_mean(grid):
        own = grid.of(method)
        cells: list[Cell] = [method, *map(mean_over_seeds, own), mean_over_tasks(own)]
        rows.append([*cells, mean_over_tasks(own[shared])] if partial else cells)
    metrics = sorted(set(grid.metrics.values()))
    caption = (
        f"{' or '.join(metrics).replace('_', ' ')} on the {grid.part} part, in per cent: mean over {seeds} "
        f"{'seed' if seeds == 1 else 'seeds'} ± half of the 95 % interval"
    )
    return Table("accuracy", "Accuracy by task", caption[0].upper() + caption[1:], columns, rows)


def comparison_table(comparisons: Sequence[Comparison], reference: str, grid: Grid) -> Table:
    """Differences and paired tests, best difference first."""
    columns = [
        Column("method"),
        Column("tasks", "count"),
        Column("difference, points", "points", len(grid.seeds), "complete seed"),
        Column("runs better / equal / worse"),
        Column("p, runs", "p"),
        Column("Holm, runs", "p"),
        Column("p, tasks", "p"),
        Column("Holm, tasks", "p"),
        Column("how, runs / tasks"),
    ]
    rows: list[list[Cell]] = [
        [
            c.method,
            len(c.tasks),
            c.difference,
            f"{c.wins} / {c.ties} / {c.losses}",
            c.runs.p,
            c.runs_holm,
            c.by_task.p,
            c.by_task_holm,
            f"{c.runs.how} / {c.by_task.how}",
        ]
        for c in sorted(comparisons, key=lambda c: -c.difference.value if c.difference else float("inf"))
    ]
    caption = (
        f"Each method less {reference} where both have a score, in points of per cent ± half of the 95 % interval; "
        "p of two-sided Wilcoxon signed-rank tests over runs (task and seed) and over tasks, alone and corrected (Holm)"
    )
    return Table("comparison", f"Compared with {reference}", caption, columns, rows)


def rank_table(ranking: Ranking) -> Table:
    """Average ranks, best first."""
    caption = f"1 is the best; mean over the {len(ranking.tasks)} tasks on which every method has a score"
    rows = [[name, value] for name, value in ranking.ranks.items()]
    return Table("ranks", "Average ranks", caption, [Column("method"), Column("average rank", "rank")], rows)


def cost_table(costs: Mapping[str, Cost], order: Sequence[str]) -> Table:
    """Parameters, time and memory."""
    columns = [
        Column("method"),
        Column("learnable parameters, at least", "count"),
        Column("at most", "count"),
        Column("seconds per run", "number"),
        Column("peak memory, MiB", "count"),
    ]
    rows = [[m, *costs[m].learnable, costs[m].seconds, costs[m].peak_memory_mib] for m in order]
    caption = "Parameters without the head; time of training, mean over all runs; largest peak of memory"
    return Table("cost", "Cost", caption, columns, rows)
