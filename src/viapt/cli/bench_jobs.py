"""Jobs of a plan, done before a reader's eyes: shared by all commands that do jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from viapt.bench.engines import Engine
    from viapt.bench.plan import Plan
    from viapt.bench.store import Store

FAILED = 1


def carry_out(plan: Plan, out: Path, place: Engine) -> int:
    """Do the jobs of a plan, and show how it goes and what came of it; how many failed."""
    from rich.console import Console

    from viapt.bench.runner import run as run_plan
    from viapt.bench.shown import Display, by_cause
    from viapt.bench.store import Store
    from viapt.tables import say

    for task, cause in plan.unavailable.items():
        say(f"Not available: {task}: {cause}")
    console = Console(stderr=True, highlight=False)
    with Store(out, create=True) as store:
        with Display(store, plan.protocol, console) as display:
            progress = run_plan(plan, out, place, display.observe)
        show_folder(store)
    say(*(f"Failed: {line}" for line in by_cause(progress.causes.items())))
    return progress.failed


def show_folder(store: Store) -> None:
    """The table of a folder, and how far it is."""
    from viapt.bench.shown import heading, remarks, summary
    from viapt.bench.suites import without
    from viapt.tables import show as print_out

    protocol = store.protocol()
    if protocol is None:
        print_out("nothing was begun")
        return
    records, failures = store.records(), store.failures()
    without_job = sum(not failure.has_job for failure in failures)
    told = f"{without_job} without a job, " if without_job else ""
    failed = len(failures) - without_job
    state = f"{len(records)} done, {failed} failed, {told}{len(store.open_cells())} open"
    done = {record["task"] for record in records}
    missing = without(done, protocol.suite["suite"]) if protocol.suite else []
    print_out(heading(protocol), summary(store, protocol), *missing, *remarks(records), state)
