"""Suites of benchmark tasks: a published protocol as the laboratory has it, and means as publications have them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from viapt.bench.protocol import Protocol
from viapt.data.benchmarks import SUITES, TASKS
from viapt.data.benchmarks.protocols import GRIDS, find_protocol

GROUPS = "natural", "specialized", "structured"


def suite_protocol(suite: str, name: str, changes: Mapping[str, Any], settings: Mapping[str, Any]) -> Protocol:
    """The laboratory's protocol for a published one.

    Args:
        suite: whose tasks are run.
        name: of the published protocol.
        changes: to its fields; they are written down as changes, those of the fields' own values left out.
        settings: of the laboratory, such as backbone and image size; `trials` None searches the whole grid.

    Raises:
        ConfigError: no such protocol or grid, or a value that is out of range.
    """
    published = find_protocol(name)
    changed = {key: value for key, value in changes.items() if getattr(published, key) != value}
    resolved = replace(published, **changed)
    grid = GRIDS[resolved.grid].at(resolved.batch_size)
    settings = dict(settings)
    trials = settings.pop("trials")
    trials = points_of(grid) if trials is None else trials
    named_changes = [*changed, *(["trials"] if trials != points_of(grid) else [])]
    kept = resolved.to_dict() | {"suite": suite, "changed": sorted(named_changes), "trials": trials}
    return Protocol(
        **settings,
        epochs=resolved.epochs,
        batch_size=resolved.batch_size,
        selection=resolved.selection,
        augmentation=resolved.augmentation,
        read_test=True,
        trials=trials,
        space=grid if trials else {},
        suite=kept,
    )


def points_of(space: Mapping[str, Mapping[str, Any]]) -> int:
    """How many a space of choices has."""
    return math.prod(len(values["choices"]) for values in space.values())


def title(suite: Mapping[str, Any]) -> str:
    """What was run, in a few words: "vtab-1k, changed in epochs, seeds"."""
    name = suite["suite"] if suite["name"] == suite["suite"] else f"{suite['suite']}, protocol {suite['name']}"
    return name + (f", changed in {', '.join(suite['changed'])}" if suite["changed"] else "")


def members(tasks: tuple[str, ...], suite: str) -> dict[str, tuple[str, ...]]:
    """Which of some tasks each mean is over, by a name that says so if they are not all of the suite.

    The mean over tasks is always there; for VTAB-1k those of its groups too, and then the mean of group means is
    `group_mean_name`.
    """
    whole = SUITES[suite]
    there = tuple(task for task in whole if task in tasks)
    found = {named("mean", len(there), len(whole)): there}
    for group in GROUPS:
        own = [task for task in whole if TASKS[task].group == group]
        if own:
            found[named(f"{group} mean", len(set(own) & set(there)), len(own))] = tuple(
                task for task in own if task in there
            )
    return found


def named(what: str, there: int, whole: int) -> str:
    """ "mean of 19 tasks", or "mean of 12 of 19 tasks"."""
    return f"{what} of {whole} tasks" if there == whole else f"{what} of {there} of {whole} tasks"


def group_mean_name(tasks: tuple[str, ...], suite: str) -> str:
    """What the mean of group means is called; "" where a suite has no groups, or none of their tasks is there."""
    groups = {TASKS[task].group for task in SUITES[suite]} - {None}
    there = {TASKS[task].group for task in tasks if task in SUITES[suite]} - {None}
    if not there:
        return ""
    name = f"mean of {len(groups)} group means" if there == groups else f"mean of {len(there)} of 3 group means"
    missing = sum(TASKS[task].group is not None and task not in tasks for task in SUITES[suite])
    return name + (f" without {missing} task{'s' * (missing > 1)}" if missing else "")


def without(tasks: Iterable[str], suite: str) -> list[str]:
    """A sentence on the tasks of a suite that are not among some; none if all are."""
    there = set(tasks)
    missing = [task for task in SUITES[suite] if task not in there]
    if not missing:
        return []
    return [f"Of {suite}'s {len(SUITES[suite])} tasks {len(missing)} are in no mean: {', '.join(missing)}."]


def averages(values: Mapping[str, float], suite: str) -> dict[str, float]:
    """Every mean of a suite over the tasks that have a value, by a name that says how many these are."""
    tasks = tuple(values)
    over = members(tasks, suite)
    found = {name: math.fsum(values[task] for task in own) / len(own) for name, own in over.items() if own}
    if name := group_mean_name(tasks, suite):
        groups = [value for key, value in found.items() if key.partition(" ")[0] in GROUPS]
        found[name] = math.fsum(groups) / len(groups)
    return found
