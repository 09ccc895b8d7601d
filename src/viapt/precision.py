"""In which precision the frozen backbone computes. What learns is always float32.

Whether a CPU is fast in bfloat16 is no matter of its instruction set alone: the library must use it, too. So it is
measured, by one matrix product of the size that a vision transformer's are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from viapt.device import default_device, has_bfloat16_units, onednn_linear, prefers_onednn
from viapt.errors import ConfigError

Precision = Literal["auto", "float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

WORTHWHILE = 1.5  # times as fast must bfloat16 be: what it rounds away should buy something
ROUNDS, PATIENCE = 12, 0.1  # seconds that a product in bfloat16 may take to be tried again
TOKENS, WIDTH = 256, 768  # of ViT-B


@dataclass(frozen=True)
class Choice:
    """A precision, and why."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """As `DTYPES` calls it."""
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_precision(precision: str = "auto", device: torch.device | str | None = None) -> Choice:
    """What "auto" means on a device: bfloat16 where that is fast, else float32. Other names stand for themselves.

    Args:
        precision: "auto", "float32" or "bfloat16".
        device: where the model will run; None: where `fit` would run it.

    Raises:
        ConfigError: another name.
    """
    if precision in DTYPES:
        return Choice(DTYPES[precision], "as asked for")
    if precision != "auto":
        raise ConfigError(f"There is no precision {precision!r}", expected=f"one of auto, {', '.join(DTYPES)}")
    device = default_device() if device is None else torch.device(device)
    units = has_bfloat16_units(device)
    if units is not None:
        dtype = torch.bfloat16 if units else torch.float32
        return Choice(dtype, f"the {device.type} device has {'' if units else 'no '}units for bfloat16")
    gain = bfloat16_gain()
    dtype = torch.bfloat16 if gain >= WORTHWHILE else torch.float32
    return Choice(dtype, f"measured here: bfloat16 multiplies {gain:.1f} times as fast as float32")


def resolve_precision(precision: str = "auto", device: torch.device | str | None = None) -> torch.dtype:
    """The dtype of `choose_precision`."""
    return choose_precision(precision, device).dtype


def has_fast_bfloat16(device: torch.device | str | None = None) -> bool:
    """Whether "auto" is bfloat16 there."""
    return resolve_precision("auto", device) == torch.bfloat16


@cache
def bfloat16_gain() -> float:
    """How many times as fast this CPU multiplies in bfloat16 as in float32; measured once a process.

    Both take turns, and the best of each counts: other programs can slow a product down, but never speed it up. The
    products are short, and on one thread (several would wait for the one that another program holds up), so that
    the best is undisturbed on a busy machine, too. Some tens of milliseconds, and two products where bfloat16 is
    emulated, which can be a hundred times slower.
    """
    products = {dtype: product(dtype) for dtype in DTYPES.values()}
    best = dict.fromkeys(products, float("inf"))
    with on_threads(1):
        for round_ in range(ROUNDS):
            for dtype, run in products.items():
                best[dtype] = min(best[dtype], timed(run))
            if round_ > 0 and best[torch.bfloat16] > max(PATIENCE, best[torch.float32]):
                break
    return best[torch.float32] / best[torch.bfloat16]


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """torch on so many threads; afterwards on as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def product(dtype: torch.dtype) -> Callable[[], Tensor]:
    """One layer's matrix product, as the backbone does it."""
    tokens, weight = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    return partial(onednn_linear if prefers_onednn(tokens) else F.linear, tokens, weight)


def timed(run: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    with torch.no_grad():
        run()
    return time.perf_counter() - start
