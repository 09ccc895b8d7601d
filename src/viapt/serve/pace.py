"""How many rows a pass should have: as many as make it cheaper, and no more, since each waits for the others.

A GPU computes tens of rows nearly as fast as one. On a few cores a row costs about the same whatever else is in its
pass, and whoever shares it only gets the answer later.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from viapt.backbones.base import Backbone
from viapt.device import synchronise
from viapt.multitask import ROWS
from viapt.precision import timed

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


def seconds_per_row(backbone: Backbone, rows: int) -> float:
    """Of a pass without prompts."""
    images = torch.zeros(rows, *backbone.input_shape, device=next(backbone.parameters()).device)
    _, *taken = [timed(partial(whole_pass, backbone, images)) for _ in range(1 + TURNS)]  # the first is the warm-up
    return min(taken) / rows


def whole_pass(backbone: Backbone, images: Tensor) -> None:
    """Until the device has done it."""
    backbone(images)
    synchronise(images.device)
