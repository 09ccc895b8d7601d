"""Published results for ViT-B/16 pre-trained on ImageNet-21k: context, never mixed with results of ours.

They were collected from papers and public code in November 2026, other weights, data releases, recipes and search
budgets included. `published.csv` has a number in each line, with its source and what is to be known of it.
"""

from __future__ import annotations

import csv
from importlib.resources import files
from typing import Any, NamedTuple


class Published(NamedTuple):
    """One number.

    Attributes:
        mean: over what, as `viapt.bench.suites` calls it.
        value: accuracy as a share.
        caveat: what is to be known; "" if nothing special.
    """

    method: str
    suite: str
    mean: str
    value: float
    source: str
    caveat: str


def published(suite: str | None = None) -> list[Published]:
    """All numbers, or those of a suite, in the file's order."""
    lines = files("viapt.data.benchmarks").joinpath("published.csv").read_text(encoding="utf-8").splitlines()
    rows = []
    for row in csv.DictReader(lines):
        values: dict[str, Any] = {**row, "value": float(row["value"]) / 100}
        rows.append(Published(**values))
    return [row for row in rows if suite in (None, row.suite)]
