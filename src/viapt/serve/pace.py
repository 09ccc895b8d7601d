"""How many rows a pass should have: as many as make it cheaper, and no more, since each waits for the others.

A GPU computes tens of rows nearly as fast as one. On a few cores a row costs about the same whatever else is in its
pass, and whoever shares it only gets the answer later.
"""

from __future__ import annotations

import time

import torch

from viapt.backbones.base import Backbone
from viapt.device import synchronise
from viapt.multitask import ROWS

GAIN = 0.1  # of the seconds a row takes, that twice as many rows must save
TURNS = 3  # the fastest counts: other programs can slow a pass down, but never speed it up


def efficient_rows(backbone: Backbone, most: int = ROWS) -> int:
    """The smallest power of two of rows from which twice as many would save less than a tenth of a row's time.

    Measured where the backbone is; about a second on two cores.
    """
    rows, best = 1, seconds_per_row(backbone, 1)
    while 2 * rows <= most and (twice := seconds_per_row(backbone, 2 * rows)) <= (1 - GAIN) * best:
        rows, best = 2 * rows, twice
    return rows


@torch.no_grad()
def seconds_per_row(backbone: Backbone, rows: int) -> float:
    """Of a pass without prompts."""
    device = next(backbone.parameters()).device
    images = torch.zeros(rows, *backbone.input_shape, device=device)
    taken = []
    for _ in range(1 + TURNS):  # the first one is the warm-up
        start = time.perf_counter()
        backbone(images)
        synchronise(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:]) / rows
