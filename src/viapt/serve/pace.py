"""How passes are made fastest: how many at the same time, on how many threads each, and with how many rows.

A GPU computes tens of rows nearly as fast as one. On a few cores a row costs about the same whatever else is in its
pass, and whoever shares it only gets the answer later; and a pass of few rows hardly gains from a second core, on which
another pass could be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from viapt.backbones.base import Backbone
from viapt.device import computes_on_threads, synchronise
from viapt.multitask import ROWS
from viapt.precision import on_threads, timed

GAIN = 0.1  # of the seconds a row takes, that twice as many rows must save
SPEED_UP = 0.45  # of the seconds a row takes, that twice as many threads must save: of 0.5 that there could be
SAMPLE = 8  # rows of a pass that is timed, at most: in more, a row hardly takes less, but all take long
TURNS, REPEATS = 2, 3  # the fastest counts: other programs can slow a pass down, but never speed it up


class Pace(NamedTuple):
    """How many passes at the same time, on how many threads each, and of how many rows at most; all >= 1."""

    passes: int
    threads: int
    rows: int

    def __str__(self) -> str:
        return f"passes at a time: {self.passes}, threads of each: {self.threads}, rows at most: {self.rows}"


def efficient_pace(backbone: Backbone, passes: int | None = None, rows: int | None = None) -> Pace:
    """What makes rows fastest where the backbone is, by passes that are made alone; numbers that are given stand.

    A few seconds on two cores.
    """
    available = torch.get_num_threads()
    if passes is None:
        several = computes_on_threads(next(backbone.parameters()).device)
        passes = available // efficient_threads(backbone, available) if several else 1
    threads = max(1, available // passes)
    with on_threads(threads):
        return Pace(passes, threads, rows or efficient_rows(backbone))


def seconds_at(backbone: Backbone, pace: Pace) -> float:
    """That a row takes in a pass that is made alone."""
    with on_threads(pace.threads):
        return seconds_per_row(backbone, min(pace.rows, SAMPLE))


def efficient_threads(backbone: Backbone, most: int) -> int:
    """The smallest power of two of threads from which twice as many would not make a row nearly twice as fast."""
    threads = 1
    while 2 * threads <= most:
        slower, faster = seconds_on(backbone, [threads, 2 * threads])
        if faster > (1 - SPEED_UP) * slower:
            break
        threads *= 2
    return threads


def seconds_on(backbone: Backbone, counts: Sequence[int]) -> list[float]:
    """Of a pass of one row on each of these numbers of threads, which take turns."""
    taken = []
    for _ in range(TURNS):
        for threads in counts:
            with on_threads(threads):
                taken.append(seconds_per_row(backbone, 1))
    return [min(taken[place :: len(counts)]) for place in range(len(counts))]


def efficient_rows(backbone: Backbone, most: int = ROWS) -> int:
    """The smallest power of two of rows from which twice as many would save less than a tenth of a row's time."""
    rows, best = 1, seconds_per_row(backbone, 1)
    while 2 * rows <= most and (twice := seconds_per_row(backbone, 2 * rows)) <= (1 - GAIN) * best:
        rows, best = 2 * rows, twice
    return rows


def seconds_per_row(backbone: Backbone, rows: int) -> float:
    """Of a pass without prompts."""
    images = torch.zeros(rows, *backbone.input_shape, device=next(backbone.parameters()).device)
    _, *taken = [timed(partial(whole_pass, backbone, images)) for _ in range(1 + REPEATS)]  # the first is the warm-up
    return min(taken) / rows


def whole_pass(backbone: Backbone, images: Tensor) -> None:
    """Until the device has done it."""
    backbone(images)
    synchronise(images.device)
