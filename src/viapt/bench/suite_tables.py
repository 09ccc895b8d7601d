"""What a report says of its data; of a suite, means as publications have them, and what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from viapt.bench.grid import Grid
from viapt.bench.shown import remarks
from viapt.bench.statistics import mean_over_tasks
from viapt.bench.store import FINAL
from viapt.bench.suites import GROUPS, group_mean_name, members, title, without
from viapt.bench.tables import Cell, Column, Table, by_mean
from viapt.data.benchmarks.published import published

Records = Sequence[dict[str, Any]]


def suite_tables(grid: Grid, protocol: Mapping[str, Any], records: Records) -> list[Table]:
    """On which data the scores were made; of a suite, its means and what others published."""
    suite = protocol.get("suite")
    final = [record for record in records if record["trial"] == FINAL]
    data = [data_table(final)] if final else []
    return [means_table(grid, suite), *data, published_table(suite["suite"])] if suite else data


def suite_notes(grid: Grid, protocol: Mapping[str, Any], records: Records) -> list[str]:
    """What a reader has to know: numbers not made alike; of a suite, tasks that are missing or not as published."""
    suite = protocol.get("suite")
    return [*(without(grid.named(grid.shared), suite["suite"]) if suite else []), *remarks(records)]


def data_table(records: Records) -> Table:
    """What the numbers were made on; of a benchmark task's pictures the hash is that of the test part, once read."""
    columns = [Column(name) for name in ("task", "source", "data hash", "split hash")]
    found = {(r["task"], r["data_source"], _data_hash(r), r["job"]["split_hash"]) for r in records}
    rows = [list(row) for row in sorted(found)]
    return Table("data", "Data", "SHA-256 of pictures and labels, and of the split", columns, rows)


def _data_hash(record: Mapping[str, Any]) -> str:
    return record.get("benchmark", {}).get("contents", {}).get("test", record["data_hash"])


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
