"""Braces in arguments, as sets of shards are written: "shards-{000..146}.tar", "{train,val}-{0..9}.tar"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

from viapt.errors import DataError

MAX_NAMES = 100_000  # that one argument may stand for
BRACES = re.compile(r"(\{(?:[0-9]{1,18}\.\.[0-9]{1,18}|[^{}]*,[^{}]*)\})")


def expanded(argument: str) -> Iterator[str]:
    """What an argument stands for: the numbers or words in its braces, in their order; the last braces vary fastest.

    Braces that hold neither, and those of a file that is there, stand for themselves.

    Raises:
        DataError: it stands for more than `MAX_NAMES`.
    """
    pieces = BRACES.split(argument)
    if len(pieces) == 1 or Path(argument).exists():
        yield argument
        return
    choices = [alternatives(piece) if k % 2 else (1, [piece]) for k, piece in enumerate(pieces)]
    count = math.prod(size for size, _ in choices)
    if count > MAX_NAMES:
        raise DataError(
            f"{argument} stands for {count:,} names", expected=f"at most {MAX_NAMES:,}", remedy="a list of them (*.txt)"
        )
    yield from map("".join, product(*(words for _, words in choices)))


def alternatives(braces: str) -> tuple[int, Iterable[str]]:
    """How many words braces stand for, and the words; numbers are as wide as the wider one if one begins with 0."""
    inside = braces[1:-1]
    first, dots, last = inside.partition("..")
    if not dots or "," in inside:
        words = inside.split(",")
        return len(words), words
    padded = any(end[0] == "0" and len(end) > 1 for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    numbers = range(int(first), int(last) + step, step)
    return len(numbers), (f"{number:0{width}d}" for number in numbers)
