"""`viapt data check`: what of the benchmark tasks is there, and what to do about the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.diagnosis import Diagnosis
    from viapt.data.benchmarks.doctor import Progress

INCOMPLETE = 1


def check(
    root: Annotated[Path, typer.Option(envvar="VIAPT_TASKS", help="Folder in which the tasks lie, in any layouts.")],
    name: Annotated[str | None, typer.Argument(metavar="SUITE|TASK", help="By default all 34 tasks.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Also write everything that was found there.")] = None,
) -> None:
    """See which benchmark tasks are there, complete and readable; a second time only what changed is read.

    Exit code 0: everything asked for is complete. 1: something is missing or wrong, and is listed with what to do.
    """
    from viapt.data.benchmarks import TASKS, find_tasks
    from viapt.data.benchmarks.doctor import check_tasks

    tasks = tuple(TASKS.values()) if name is None else find_tasks(name)
    if not root.is_dir():
        raise DataError(f"{root} is no folder", expected="the folder in which the tasks lie", remedy="give --root DIR")
    if report is not None and not report.parent.is_dir():
        raise DataError(f"{report} cannot be written: {report.parent} is no folder", remedy="make the folder first")
    with _progress() as progress:
        found = list(check_tasks(tasks, root, progress))
    _show(found)
    if report is not None:
        _write(report, root, found)
    if not all(diagnosis.complete for diagnosis in found):
        raise typer.Exit(INCOMPLETE)


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("")

        def update(task: str, done: int, total: int) -> None:
            bar.update(shown, description=task, completed=done, total=total)

        yield update


def _show(found: Sequence[Diagnosis]) -> None:
    """A row for each task, then what there is to say of those that need it."""
    from rich.table import Table

    from viapt.data.benchmarks.diagnosis import MISSING, printable
    from viapt.tables import show

    table = Table(box=None, pad_edge=False)
    for heading in ("task", "state", "layout"):
        table.add_column(heading, overflow="fold")
    for part in ("train", "val", "test"):
        table.add_column(part, justify="right")
    for one in found:
        table.add_row(one.task, one.state, one.layout or "-", *(_count(one, part) for part in ("train", "val", "test")))
    show(table)
    for one in found:
        if one.problems or one.warnings:
            remarks = Table.grid(padding=(0, 2, 0, 0))
            remarks.add_column()
            remarks.add_column(overflow="fold")
            for kind, texts in (("problem", one.problems), ("warning", one.warnings)):
                for remark in texts:
                    remarks.add_row(f"  {kind}", printable(remark.text))
            if one.next_step:
                remarks.add_row("  to do", printable(one.next_step))
            where = f", in {printable(one.folder)}" if one.folder else ""
            show("", f"{one.task}: {one.state}{where}", remarks)
    missing = [one for one in found if one.state == MISSING]
    steps = Table("missing", box=None, pad_edge=False)
    steps.add_column("to do", overflow="fold")  # addresses are shown whole
    for one in missing:
        steps.add_row(one.task, printable(one.next_step))
    show(*(("", steps) if missing else ()), "", f"{sum(one.complete for one in found)} of {len(found)} tasks complete")


def _count(one: Diagnosis, part: str) -> str:
    """Images of a part, and how many are expected where that is another number."""
    check = one.parts.get(part)
    if check is None:
        return "-"
    return f"{check.images:,}" if check.images == check.expected else f"{check.images:,}/{check.expected:,}"


def _write(path: Path, root: Path, found: Sequence[Diagnosis]) -> None:
    from viapt.data.benchmarks.diagnosis import printable
    from viapt.packaged import write_whole

    content = {
        "root": printable(str(root)),
        "complete": all(one.complete for one in found),
        "tasks": [one.to_dict() for one in found],
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, lambda temporary: _fill(temporary, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
