"""What an experiment's records say, computed: tables, pictures, and sentences that claim no more than the tests do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from viapt.bench import plots
from viapt.bench.caveats import caveats
from viapt.bench.experiments import Axis, Design, Family
from viapt.bench.grid import Grid, arrange, costs
from viapt.bench.policies import Measured, policy_figures, policy_sentence, policy_table, tested_policies
from viapt.bench.protocol import Protocol
from viapt.bench.publish import draw_tasks
from viapt.bench.records import scores_of
from viapt.bench.scores import Score
from viapt.bench.statistics import ALPHA, Comparison, compare, mean_over_seeds, mean_over_tasks
from viapt.bench.store import Cell as Place
from viapt.bench.tables import Cell, Column, Table, accuracy_table, by_mean, comparison_table, cost_table
from viapt.report.rendering import Plot

RUN = "task", "seed"
CONTRARY = "told apart by ranks, against the sign of the mean"
Record = dict[str, Any]


@dataclass
class Findings:
    """Of an experiment, or of a part of it."""

    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Plot] = field(default_factory=list)
    families: list[list[Comparison]] = field(default_factory=list)  # of tests, each corrected by itself

    def add(self, other: Findings) -> None:
        """Append all of another."""
        for name in vars(self):
            getattr(self, name).extend(getattr(other, name))


def findings(
    design: Design, protocol: Protocol, records: Sequence[Record], empty: Sequence[Place] = ()
) -> tuple[Findings, list[str]]:
    """All findings, and what a reader must know of them.

    Args:
        records: of the design's entrants, searches left out; at least one.
        empty: places of the design's entrants without a record, since they failed or could not be had.
    """
    scores = [score for score in scores_of(protocol, list(records)) if score.part == protocol.part]
    grid, found = arrange(scores, protocol.part), Findings()
    names = {entrant.name for entrant in design.entrants}
    found.sentences.append(coverage(names, grid, empty))
    for pair in design.twins:
        found.add(identical(pair[0].name, pair[1].name, records))
    for axis in design.axes:
        found.add(along(axis, grid, scores))
    for family in design.families:
        found.add(compared(family, scores, protocol.part))
    if protocol.rounds:
        found.add(sampled(protocol, records))
    if not any({entrant.name for _, entrant in axis.points} >= names for axis in design.axes):
        found.tables.append(accuracy_table(grid))
        if design.families:
            found.figures.append(draw_tasks(grid, by_mean(grid)))
    found.tables.append(cost_table(costs(scores, protocol.part), by_mean(grid)))
    return found, caveats(grid, found.families) if found.families else []


def coverage(names: set[str], grid: Grid, empty: Sequence[Place] = ()) -> str:
    """How much was measured, of all entrants on the tasks and with the seeds that have a record or an empty place."""
    tasks, seeds = ({getattr(place, name) for place in empty} for name in ("task", "seed"))
    lacking = [
        *sorted(names - set(grid.methods)),
        *(f"the task {task}" for task in sorted(tasks - set(grid.tasks))),
        *(f"the seed {seed}" for seed in sorted(seeds - set(grid.seeds))),
    ]
    runs, wanted = int((~np.isnan(grid.values)).sum()), len(tasks | {*grid.tasks}) * len(seeds | {*grid.seeds})
    missing = f" Not measured: {', '.join(lacking)}." if lacking else ""
    part = {"val": "validation images", "test": "test images"}[grid.part]
    return (
        f"{runs} of {len(names) * wanted} runs: {len(grid.methods)} entrants, "
        f"{len(grid.tasks)} tasks, {len(grid.seeds)} seeds, measured on {part}.{missing}"
    )


# What must be identical


def identical(one: str, other: str, records: Sequence[Record]) -> Findings:
    """Whether two entrants have the same numbers in every run, to the last digit."""
    runs = [{tuple(r[k] for k in RUN): numbers(r) for r in records if r["method"] == name} for name in (one, other)]
    both = sorted(runs[0].keys() & runs[1].keys())
    title = f"{one} and {other}"
    if not both:
        return Findings([f"{title}: no run of both."])
    gaps = {run: {name: abs(runs[0][run][name] - runs[1][run][name]) for name in runs[0][run]} for run in both}
    largest = {name: max(gap[name] for gap in gaps.values()) for name in gaps[both[0]]}
    same = sum(not any(gap.values()) for gap in gaps.values())
    rows: list[list[Cell]] = [[name, "0" if not value else f"{value:.3g}"] for name, value in largest.items()]
    columns = [Column("number"), Column("largest difference", "text")]
    caption = f"Largest difference over {len(both)} runs (task and seed); 0 is equality of every bit"
    table = Table(f"twins-{slug(other)}", f"{title}, number by number", caption, columns, rows)
    if same == len(both):
        sentence = f"{title}: identical in all {same} runs, every number to the last bit ({', '.join(largest)})."
    else:
        differing = [f"{task}, seed {seed}" for (task, seed), gap in gaps.items() if any(gap.values())]
        told = ", ".join(f"{name} {value:.3g}" for name, value in largest.items() if value)
        sentence = (
            f"{title}: NOT identical. {same} of {len(both)} runs have equal numbers; the largest differences are "
            f"{told} ({'; '.join(differing)})."
        )
    return Findings([sentence], [table])


def numbers(record: Record) -> dict[str, float]:
    """All that a training left behind."""
    parts = {"val": record["val"], "test": record["test"]}
    measured = {
        f"{name.replace('_', ' ')} ({part})": value
        for part, values in parts.items()
        if values is not None
        for name, value in values.items()
        if name != "images"
    }
    return measured | {"training loss": record["train_loss"]}


# Comparisons


def compared(family: Family, scores: Sequence[Score], part: str) -> Findings:
    """A family of paired tests."""
    names = [entrant.name for entrant in family.others]
    return tested(family.title, family.reference.name, names, scores, part)


def tested(title: str, reference: str, others: Sequence[str], scores: Sequence[Score], part: str) -> Findings:
    """Some methods against one, by paired tests; nothing where the scores lack one side."""
    chosen = [score for score in scores if score.method in (reference, *others)]
    methods = {score.method for score in chosen}
    if reference not in methods or len(methods) < 2:
        return Findings([f"{title} Not answered: no runs to compare with {reference}."])
    grid = arrange(chosen, part)
    comparisons = compare(grid, reference)
    table = replace(comparison_table(comparisons, reference, grid), name=slug(title), title=title)
    return Findings([f"{title} {verdict(comparisons, reference)}"], [table], families=[comparisons])


def verdict(comparisons: Sequence[Comparison], reference: str) -> str:
    """Who is told apart from the reference over runs, and who is not; with the p over tasks, the cautious one."""
    told: dict[str, list[str]] = {name: [] for name in ("higher", "lower", CONTRARY, "not told apart")}
    for one in sorted(comparisons, key=lambda c: -(c.difference.value if c.difference else -1)):
        if one.difference is None or one.runs_holm is None:
            continue
        half = "" if one.difference.half is None else f" ± {100 * one.difference.half:.1f}"
        over_tasks = "" if one.by_task_holm is None else f", {one.by_task_holm:.2g} over tasks"
        p = f"p = {one.runs_holm:.2g} over runs{over_tasks}"
        words = f"{one.method} ({100 * one.difference.value:+.1f}{half}, {p})"
        told[standing(one)].append(words)
    parts = [f"{name}: {', '.join(methods)}" for name, methods in told.items() if methods]
    if not told["higher"] and not told["lower"] and not told[CONTRARY]:
        parts.insert(0, "no difference was shown")
    meaning = "higher and lower are told apart over runs, which speaks of these tasks alone"
    return f"Against {reference}, in points, p after Holm ({meaning}): {'; '.join(parts)}."


def standing(one: Comparison) -> str:
    """What p over runs allows to say: it is of ranks, and the mean may be that of a few runs."""
    if one.difference is None or one.runs_holm is None or one.runs_holm >= ALPHA:
        return "not told apart"
    if one.contrary(one.runs):
        return CONTRARY
    return "higher" if one.runs.sign > 0 else "lower"


# Along an axis


def along(axis: Axis, grid: Grid, scores: Sequence[Score]) -> Findings:
    """Where the optimum of a setting lies."""
    points = [(shown, entrant.name) for shown, entrant in axis.points if entrant.name in grid.methods]
    if len(points) < 2:
        return Findings([f"{axis.label}: fewer than two values were measured."])
    rows = [grid.methods.index(name) for _, name in points]
    values = grid.values[rows]
    whole = np.asarray(~np.isnan(values).all(2).any(0))  # tasks that every point has
    means = [mean_over_tasks(own[whole]) for own in values]
    learnable = {name: cost.learnable for name, cost in costs(scores, grid.part).items()}
    columns = [
        Column(axis.label),
        Column("method"),
        Column("learnable parameters", "count"),
        *(Column(task, "percent", len(grid.seeds)) for task in grid.tasks),
        Column(f"mean of {int(whole.sum())} tasks", "percent", len(grid.seeds), "complete seed"),
    ]
    lines: list[list[Cell]] = [
        [shown, name, max(learnable[name]), *map(mean_over_seeds, own), mean]
        for (shown, name), own, mean in zip(points, values, means, strict=True)
    ]
    caption = "In per cent: mean over seeds ± half of the 95 % interval"
    table = Table(f"axis-{slug(axis.label)}", f"Along {axis.label}", caption, columns, lines)
    if not whole.any():
        return Findings([f"{axis.label}: no task has all of its values."], [table])
    labels = [shown for shown, _ in points]
    found = Findings([optimum(axis.label, labels, values[:, whole], grid.named(whole))], [table])
    drawn = plots.profile(labels, values[:, whole], grid.named(whole), axis.label)
    words = ", ".join(f"{shown}: {100 * mean.value:.1f} %" for shown, mean in zip(labels, means, strict=True) if mean)
    caption = f"Accuracy along {axis.label}, less each task's mean over the axis; bold: mean of tasks, 95 % over seeds"
    found.figures.append(Plot(f"axis-{slug(axis.label)}", caption, drawn, f"Mean accuracy by {axis.label}: {words}."))
    return found


def optimum(label: str, shown: Sequence[str], values: Float[np.ndarray, "points tasks seeds"], tasks: Any) -> str:
    """Where the means over seeds are highest: over all tasks, and by task."""
    by_task = np.nanmean(values, axis=2)
    overall = by_task.mean(1)
    best = int(overall.argmax())
    place = "inside the range" if 0 < best < len(shown) - 1 else "at an end of the range"
    each = ", ".join(f"{task} {shown[int(column.argmax())]}" for task, column in zip(tasks, by_task.T, strict=True))
    ties = int((overall == overall[best]).sum()) - 1
    also = f" (with {ties} others equal)" if ties else ""
    return (
        f"{label}: the highest mean is at {shown[best]}{also}, {place}: {100 * overall[best]:.1f} %; at {shown[0]} "
        f"{100 * overall[0]:.1f} %, at {shown[-1]} {100 * overall[-1]:.1f} %. By task: {each}. The highest of several "
        "means is too high on average: the tests say what is told apart."
    )


# Policies of inference


def sampled(protocol: Protocol, records: Sequence[Record]) -> Findings:
    """What sampling changes against the mean, for each entrant that samples."""
    found, curves = Findings(), dict[str, Measured]()
    for method in dict.fromkeys(record["method"] for record in records if record["policies"]):
        measured = Measured([record for record in records if record["method"] == method and record["policies"]])
        curves[method] = measured
        found.sentences.append(policy_sentence(method, measured, protocol))
        table = policy_table(method, measured, protocol)
        found.tables.append(replace(table, name=f"policies-{slug(method)}"))
        policies = tested_policies(measured)
        for name, title in (
            (protocol.metric, f"Does sampling change the accuracy of {method}?"),
            ("calibration_error", f"Does it change its calibration error (lower is better)? {method}:"),
        ):
            scores = measured.scores(policies, name, protocol.part)
            others = [policy.name for policy in policies[1:]]
            found.add(tested(title, policies[0].name, others, scores, protocol.part))
    found.figures += policy_figures(curves, protocol.metric) if curves else []
    return found


def slug(text: str) -> str:
    """Letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
