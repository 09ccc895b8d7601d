"""What the policies of inference make of the same trained models: accuracy, its spread, calibration, cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from viapt.bench.protocol import Protocol
from viapt.bench.scores import Score
from viapt.bench.statistics import Mean, mean_over_tasks
from viapt.bench.tables import Cell, Column, Table
from viapt.report.plots import lines
from viapt.report.rendering import Plot

SHOWN = 1, 2, 3, 5, 10, 15, 20  # rounds that tables show; pictures show all
TESTED = 1, 5  # rounds that are compared with the mean, besides the most of all


@dataclass(frozen=True)
class Policy:
    """One way to answer: "mean", "multi" with so many rounds, or "adaptive" with at most so many."""

    kind: str
    rounds: int

    @property
    def name(self) -> str:
        """For readers: one sample is what `fixed` is."""
        if self.kind == "multi":
            return "fixed" if self.rounds == 1 else f"multi, R = {self.rounds}"
        return self.kind if self.kind == "mean" else f"adaptive, R = {self.rounds}"


class Measured:
    """The rows of an entrant's records, by what is asked for.

    Args:
        records: of one entrant, with policies.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.records = records
        self.tasks, self.seeds = (sorted({record[name] for record in records}) for name in ("task", "seed"))
        self.rounds = max(row["rounds"] for record in records for row in record["policies"])

    def draws(self, policy: Policy, name: str) -> Float[np.ndarray, "tasks seeds draws"]:
        """A number for each noise seed (one where there is no noise); NaN where there is no run."""
        found = {
            (record["task"], record["seed"]): [row[name] for row in record["policies"] if is_of(row, policy)]
            for record in self.records
        }
        count = max(map(len, found.values()))
        gap = [np.nan] * count
        return np.array([[found.get((task, seed), gap) for seed in self.seeds] for task in self.tasks])

    def mean(self, policy: Policy, name: str) -> Mean | None:
        """Over tasks, with an interval over seeds of training."""
        return mean_over_tasks(self.draws(policy, name).mean(2))

    def spread(self, policy: Policy, name: str) -> float | None:
        """Standard deviation over noise seeds, averaged over trained models; None for fewer than two noise seeds."""
        draws = self.draws(policy, name)
        return float(np.nanmean(draws.std(2, ddof=1))) if draws.shape[2] > 1 else None

    def curve(self, name: str) -> list[float]:
        """1, 2, ... rounds less the mean."""
        gaps = [
            self.draws(Policy("multi", count), name).mean(2) - self.draws(Policy("mean", 1), name).mean(2)
            for count in range(1, self.rounds + 1)
        ]
        return [float(np.nanmean(gap)) for gap in gaps]

    def scores(self, policies: Sequence[Policy], name: str, part: str) -> list[Score]:
        """One for each policy, task and seed, the mean over noise seeds; so the tests can be those of methods."""
        return [
            Score(
                method=policy.name,
                task=record["task"],
                seed=record["seed"],
                value=float(np.mean([row[name] for row in record["policies"] if is_of(row, policy)])),
                metric=name,
                part=part,
                learnable_parameters=record["learnable_parameters"],
                seconds=record["seconds"],
                peak_memory_mib=record["peak_memory_mib"],
                key=record["key"],
            )
            for policy in policies
            for record in self.records
        ]


def is_of(row: dict[str, Any], policy: Policy) -> bool:
    """Whether a row was measured with a policy."""
    return (row["policy"], row["rounds"]) == (policy.kind, policy.rounds)


def policy_table(method: str, measured: Measured, protocol: Protocol) -> Table:
    """All policies of one entrant."""
    shown = sorted({count for count in SHOWN if count <= measured.rounds} | {measured.rounds})
    policies = [Policy("mean", 1), *(Policy("multi", count) for count in shown), Policy("adaptive", measured.rounds)]
    images = protocol.val if protocol.part == "val" else protocol.test
    seeds = len(measured.seeds)
    columns = [
        Column("policy"),
        Column("passes of an image", "number"),
        Column("seconds for a part", "number"),
        Column(protocol.metric.replace("_", " "), "percent", seeds, "complete seed"),
        Column("deviation over noise seeds", "percent"),
        Column("calibration error", "percent", seeds, "complete seed"),
        Column("loss", "rank"),
    ]
    rows: list[list[Cell]] = [
        [
            policy.name,
            average(measured.draws(policy, "passes")),
            average(measured.draws(policy, "seconds")),
            measured.mean(policy, protocol.metric),
            measured.spread(policy, protocol.metric),
            measured.mean(policy, "calibration_error"),
            average(measured.draws(policy, "loss")),
        ]
        for policy in policies
    ]
    caption = (
        f"The same trained models, in per cent: mean over tasks ± half of the 95 % interval over seeds of training; "
        f"standard deviation over noise seeds of one model, averaged; seconds of the passes over the {protocol.part} "
        f"part (up to {images} images)"
    )
    return Table("policies", f"Policies of {method}", caption, columns, rows)


def average(values: Float[np.ndarray, "..."]) -> float:
    """Over all that there is."""
    return float(np.nanmean(values))


def policy_sentence(method: str, measured: Measured, protocol: Protocol) -> str:
    """The ends, in a sentence."""
    most = measured.rounds
    parts = []
    for policy in (Policy("mean", 1), Policy("multi", 1), Policy("multi", most), Policy("adaptive", most)):
        accuracy, spread = average(measured.draws(policy, protocol.metric)), measured.spread(policy, protocol.metric)
        noise = "" if spread is None else f", {100 * spread:.2f} points of deviation over noise seeds"
        error = average(measured.draws(policy, "calibration_error"))
        passes = average(measured.draws(policy, "passes"))
        parts.append(
            f"{policy.name} {100 * accuracy:.2f} % ({passes:.1f} passes, calibration error {100 * error:.2f}{noise})"
        )
    return f"{method}: {'; '.join(parts)}."


def tested_policies(measured: Measured) -> list[Policy]:
    """The mean, and what is compared with it."""
    counts = sorted({count for count in TESTED if count <= measured.rounds} | {measured.rounds})
    return [Policy("mean", 1), *(Policy("multi", count) for count in counts), Policy("adaptive", measured.rounds)]


def policy_figures(curves: dict[str, Measured], metric: str) -> list[Plot]:
    """How accuracy and calibration error change with the number of rounds, by entrant (up to seven)."""
    figures = []
    for name, what in ((metric, metric.replace("_", " ")), ("calibration_error", "calibration error")):
        series = {method: measured.curve(name) for method, measured in list(curves.items())[:7]}
        drawn = lines(series, x="rounds R", y=f"{what}: points above the mean's", percent=True)
        ends = ", ".join(f"{method} {100 * values[-1]:+.2f}" for method, values in series.items())
        caption = f"{what.capitalize()} of R rounds less that of the policy mean, in points"
        figures.append(Plot(f"rounds-{name.replace('_', '-')}", caption, drawn, f"{caption}; with all rounds: {ends}."))
    return figures
