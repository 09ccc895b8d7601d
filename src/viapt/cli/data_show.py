"""`viapt data show`: all that is known of a benchmark task, and the tables of the list of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from viapt.data.benchmarks import BenchmarkTask


def show(
    name: Annotated[str, typer.Argument(metavar="TASK", help="SUITE/NAME, or NAME where that is one task's.")],
    root: Annotated[
        Path | None, typer.Option(envvar="VIAPT_TASKS", help="Say what of it lies below this folder, too.")
    ] = None,
) -> None:
    """One benchmark task: classes, splits, labels, metric, licence, where to get it, where to put it."""
    from rich.table import Table

    from viapt.data.benchmarks import find_task
    from viapt.tables import show as print_out

    task = find_task(name)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    facts = facts_of(task)
    if root is not None:
        facts["here"] = state(task, root)
    for heading, text in facts.items():
        table.add_row(heading, text)
    print_out(table)


def facts_of(task: BenchmarkTask) -> dict[str, str]:
    """Headings and texts."""
    from viapt.data.benchmarks import TASKS
    from viapt.data.benchmarks.splits import split_rule

    others = [other.name for other in TASKS.values() if other.release == task.release and other.name != task.name]
    facts = {
        "name": task.name,
        "title": task.title,
        "suite": task.suite + (f", {task.group}" if task.group else ""),
        "classes": str(task.classes),
        "images": ", ".join(f"{part} {count:,}" for part, count in task.counts.items()),
        "split": split_rule(task.split).words,
        "labels": task.label,
        "metric": task.metric,
        "licence": task.licence,
        "cite": task.citation,
        "get it": task.source,
        "put it": "; ".join(f"{' or '.join(names)} ({layout})" for layout, names in task.layouts.items()),
    }
    facts |= {"note": task.notes} if task.notes else {}
    return facts | ({"same data": ", ".join(others)} if others else {})


def state(task: BenchmarkTask, root: Path) -> str:
    """What lies below a root, in a few words; nothing is decoded.

    Raises:
        DataError: the root is no folder.
    """
    from viapt.data.benchmarks.loading import check_root, load_benchmark
    from viapt.errors import ViaptError

    check_root(root)
    try:
        data = load_benchmark(task, root)
    except ViaptError as error:
        return str(error)
    return f"{data.where}: {data.source}"


def list_of_tasks() -> Table:
    """The benchmark tasks, a line each."""
    from rich.table import Table

    from viapt.data.benchmarks import TASKS

    table = Table(box=None, pad_edge=False)
    table.add_column("benchmark task", no_wrap=True, min_width=max(map(len, TASKS)))  # names are there to be typed
    for heading in ("content", "classes", "train / val / test", "licence"):
        table.add_column(heading, overflow="fold")
    for task in TASKS.values():
        counts = " / ".join(f"{count:,}" for count in task.counts.values())
        table.add_row(task.name, task.title, str(task.classes), counts, task.licence)
    return table
