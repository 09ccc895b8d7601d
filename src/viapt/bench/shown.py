"""The state of a folder on a terminal: while it runs, and afterwards."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from viapt.bench.jobs import Outcome
from viapt.bench.protocol import Protocol
from viapt.bench.runner import Progress
from viapt.bench.store import FINAL, Cell, Store
from viapt.bench.suites import averages, title
from viapt.pruning import PRUNING

PAUSE = 0.5  # seconds between two tables


def summary(store: Store, protocol: Protocol) -> Table:
    """Mean ± standard deviation over seeds in per cent, by method and task, with how many seeds are there."""
    part = protocol.part
    final = [record for record in store.records() if record["trial"] == FINAL]
    failures, begun = store.failures(), store.open_cells()
    begun += [failure.cell for failure in failures if failure.has_job]
    methods = sorted({one["method"] for one in final} | {c.method for c in [*begun, *(f.cell for f in failures)]})
    tasks = sorted({one["task"] for one in final} | {cell.task for cell in begun})  # those that could be had
    headings = averages_of(dict.fromkeys(tasks, 0.0), protocol)
    table = Table("method", "learnable", *tasks, *headings, box=None, pad_edge=False)
    for method in methods:
        mine = [record for record in final if record["method"] == method]
        values = {task: [r[part][protocol.metric] for r in mine if r["task"] == task] for task in tasks}
        complete = all(values.values())
        means = averages_of({task: statistics.mean(found) for task, found in values.items() if found}, protocol)
        whole = [f"{100 * value:.2f}" for value in means.values()] if complete else [""] * len(headings)
        learnable = sorted({f"{record['learnable_parameters']:,}" for record in mine})
        table.add_row(method, " or ".join(learnable), *(spread(found) for found in values.values()), *whole)
    return table


def averages_of(values: dict[str, float], protocol: Protocol) -> dict[str, float]:
    """The mean over tasks; for a suite every mean that it has, by names that say over how many tasks they are."""
    if protocol.suite:
        return averages(values, protocol.suite["suite"])
    return {"mean": statistics.mean(values.values())} if values else {}


def spread(values: list[float]) -> str:
    """ "82.31 ± 1.20 (3)", of shares, in per cent."""
    if not values:
        return "-"
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation} ({len(values)})"


def by_first(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, set[str]]]:
    """The second halves of pairs, by the first."""
    found: dict[str, set[str]] = {}
    for first, second in sorted(pairs):
        found.setdefault(first, set()).add(second)
    return list(found.items())


def chosen_on_validation(record: dict[str, Any]) -> bool:
    """Whether validation images decided on a setting or an epoch of it."""
    return record["trial"] != FINAL or record["job"]["training"]["selection"] == "best-val"


def remarks(records: Iterable[dict[str, Any]]) -> list[str]:
    """What a reader of the table has to know: numbers that were not made alike."""
    records = list(records)
    found = []
    codes = {(record["job"]["method"], record["job"]["code"].split("-")[1]) for record in records}  # each method's own
    libraries = {pair for record in records for pair in record["job"]["versions"].items()}  # some methods have more
    for what, kinds in (
        ("versions of the code", {record["job"]["code"].partition("-")[0] for record in records}),
        *((f"versions of {library}", versions) for library, versions in by_first(libraries)),
        ("devices", {str(record["device"]) for record in records}),
        *((f"versions of the code of {name}", codes_of) for name, codes_of in by_first(codes)),
    ):
        if len(kinds) > 1:
            found.append(f"The numbers were made with {len(kinds)} {what}.")
    found += on_trainings(records)
    if any(record["test"] is None for record in records) and any(map(chosen_on_validation, records)):
        found.append(
            "Settings or epochs were chosen by the same validation images that are shown: such numbers are too high on "
            "average. Those of a test part (--read-test) are not."
        )
    for task in sorted({record["task"] for record in records}):
        own = [record for record in records if record["task"] == task]
        data = {(record["data_hash"], record["job"]["split_hash"]) for record in own}
        contents = {
            record["benchmark"]["contents"]["test"] for record in own if "benchmark" in record and record["test"]
        }
        if (count := max(len(data), len(contents))) > 1:
            found.append(f"The numbers of {task} were made on {count} different data sets or splits.")
    facts = {record["task"]: record["benchmark"] for record in records if "benchmark" in record}
    for task, data in sorted(facts.items()):
        if data["own_split"] or data.get("differs") or data["unexpected"]:
            found.append(f"{task} is not as published: {data['source']}.")
    return found


def on_trainings(records: list[dict[str, Any]]) -> Iterator[str]:
    """Rows that were not trained as their names, or those of others, suggest."""
    if not any(record["trial"] != FINAL for record in records):
        rates = by_first((record["method"], str(record["job"]["training"].get("lr"))) for record in records)
        for name, found in rates:
            if len(found) > 1:
                yield f"Runs of {name} have different learning rates: {', '.join(sorted(found, key=float))}."
    pruned = {r["method"] for r in records if any(r["job"]["training"].get(name) for name in PRUNING)}
    if pruned:
        yield f"Trained twice, with the epochs of the protocol each time, to be pruned: {', '.join(sorted(pruned))}."


def by_cause(causes: Iterable[tuple[Cell, str]]) -> list[str]:
    """Why places are empty, a line for each task and cause: "elpv: 70 places: it cannot be fetched here"."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell, cause in causes:
        found.setdefault((cell.task, cause), []).append(cell)
    return [f"{places(cells)}: {cause}" for (_, cause), cells in found.items()]


def places(cells: Sequence[Cell]) -> str:
    """One of a task by its name; of several what they have in common, and how many they are."""
    if len(cells) == 1:
        return str(cells[0])
    methods, seeds = {cell.method for cell in cells}, sorted({cell.seed for cell in cells})
    if len(methods) > 1:
        return f"{cells[0].task}: {len(cells)} places"
    told = f", seeds {', '.join(map(str, seeds))}" if len(seeds) == len(cells) else ""
    return f"{cells[0].method}, {cells[0].task}{told}: {len(cells)} places"


def heading(protocol: Protocol) -> str:
    """What the numbers are."""
    parts = {"test": "on the test split, read once", "val": "on validation images"}
    searched = f", {protocol.trials} trials for each method and task" if protocol.trials else ""
    images = f"{protocol.train} training images at most"
    if protocol.suite:
        images = f"{title(protocol.suite)}, trained on {' and '.join(protocol.suite['train_on'])}"
    return (
        f"{protocol.metric.replace('_', ' ')} in %, {parts[protocol.part]}; {protocol.backbone}, "
        f"{protocol.precision}, {images}, {protocol.epochs} epochs{searched}"
    )


class Display:
    """A live table on a terminal; elsewhere a line for each job."""

    def __init__(self, store: Store, protocol: Protocol, console: Console) -> None:
        self.store, self.protocol, self.console = store, protocol, console
        self.progress = Progress(0)
        self.table: RenderableType = ""
        self.made = -math.inf  # when the table was
        self.live = Live(console=console, refresh_per_second=1 / PAUSE, get_renderable=self.render)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.console.is_terminal:
            return
        try:
            if kind in (None, KeyboardInterrupt):
                self.make_table()
        finally:
            self.live.stop()

    def observe(self, progress: Progress, cell: Cell | None, outcome: Outcome | None) -> None:
        """Show how things are; the table, for which all records are read, as they were up to `PAUSE` ago."""
        self.progress = progress
        if self.console.is_terminal:
            if time.monotonic() - self.made >= PAUSE:
                self.make_table()
        elif cell is not None and outcome is not None:
            self.console.print(
                f"{progress.wanted - progress.open}/{progress.wanted}  {cell}: {said(outcome, self.protocol)}",
                markup=False,
                soft_wrap=True,
            )

    def make_table(self) -> None:
        """Here, and not in the thread that shows it: the store belongs to this one."""
        self.table, self.made = summary(self.store, self.protocol), time.monotonic()

    def render(self) -> RenderableType:
        """The table, and how far it is."""
        now = self.progress
        seconds = time.monotonic() - now.started
        left = f", about {clock(seconds / now.done * now.open)} left" if now.done else ""
        line = (
            f"{now.done} done, {now.skipped} done before, {now.failed} failed, {now.open} open; {clock(seconds)}{left}"
        )
        return Group(self.table, line)


def said(outcome: Outcome, protocol: Protocol) -> str:
    """What became of a job, in a few words."""
    if outcome.record is None:
        return f"failed: {outcome.cause}"
    part = "test" if outcome.record["test"] else "val"
    return f"{part} {outcome.record[part][protocol.metric]:.4f}, {outcome.record['seconds']:.1f} s"


def clock(seconds: float) -> str:
    """ "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
