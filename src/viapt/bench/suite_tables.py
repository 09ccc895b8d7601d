"""Two tables that a report of a suite has besides: means as publications have them, and what was published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from viapt.bench.grid import Grid
from viapt.bench.statistics import mean_over_tasks
from viapt.bench.suites import GROUPS, group_mean_name, members, title
from viapt.bench.tables import Cell, Column, Table, by_mean
from viapt.data.benchmarks.published import published


def suite_tables(grid: Grid, protocol: Mapping[str, Any]) -> list[Table]:
    """Tables of a suite; none for packaged tasks."""
    suite = protocol.get("suite")
    if not suite:
        return []
    return [means_table(grid, suite), published_table(suite["suite"])]


def means_table(grid: Grid, suite: Mapping[str, Any]) -> Table:
    """Every mean of the suite, over the tasks on which all methods have a score; names say how many these are."""
    shared = grid.named(grid.shared)
    over = {name: tasks for name, tasks in members(shared, suite["suite"]).items() if tasks}
    groups = [tasks for name, tasks in over.items() if name.partition(" ")[0] in GROUPS]
    headings = [*over, *filter(None, [group_mean_name(shared, suite["suite"])])]
    rows: list[list[Cell]] = []
    for method in by_mean(grid):
        own = dict(zip(grid.tasks, grid.of(method), strict=True))
        cells: list[Cell] = [
            method,
            *(mean_over_tasks(np.stack([own[task] for task in tasks])) for tasks in over.values()),
        ]
        if len(headings) > len(over):
            cells.append(mean_over_tasks(np.stack([_by_seed(own, tasks) for tasks in groups])))
        rows.append(cells)
    columns = [Column("method"), *(Column(name, "percent", len(grid.seeds), "complete seed") for name in headings)]
    caption = (
        "In per cent, ± half of the 95 % interval over seeds. A mean over fewer tasks than the suite has says so in "
        "its name, and is to be compared with no other"
    )
    return Table("suite", f"Means of {title(suite)}", caption, columns, rows)


def _by_seed(own: Mapping[str, Float[np.ndarray, " seeds"]], tasks: tuple[str, ...]) -> Float[np.ndarray, " seeds"]:
    """The mean over a group's tasks, by seed; a gap where a task has one."""
    return np.stack([own[task] for task in tasks]).mean(0)


def published_table(suite: str) -> Table:
    """What others published; nothing of ours is in it."""
    columns = [Column("method"), Column("mean"), Column("accuracy", "percent"), Column("source"), Column("caveat")]
    rows = [[row.method, row.mean, row.value, row.source, row.caveat] for row in published(suite)]
    caption = (
        "ViT-B/16, ImageNet-21k, in per cent, as published: with other weights, data releases, recipes and budgets of "
        "search than here. Context, not a comparison"
    )
    return Table("published", f"Published for {suite}, not run here", caption, columns, rows)
