"""Random numbers and angles that are the same, to the last bit, on every machine.

NumPy promises to keep the raw output of PCG64, but neither the distributions that are made from it nor the last digit
of its sines and matrix products, which differ between processors. So pictures are drawn with raw output and with
operations that IEEE 754 rounds in one way only: + - * / and the square root.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt64

Number = float | int
"""What numbers of a scene are given as."""


class Draws:
    """A stream of random numbers for one picture.

    Args:
        key: what the stream belongs to, numbers from 0 to 2**64: a task, a seed, an index. Another key, another stream.
    """

    def __init__(self, *key: int) -> None:
        self._source = np.random.PCG64(key)

    def uniform(self, low: Number, high: Number) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._unit(1)[0])

    def uniforms(self, low: Number, high: Number, *shape: int) -> Float64[np.ndarray, "*shape"]:
        """Numbers in [low, high)."""
        return low + (high - low) * self._unit(math.prod(shape)).reshape(shape)

    def noise(self, deviation: Number, *shape: int) -> Float64[np.ndarray, "*shape"]:
        """Numbers around 0 with a standard deviation: differences of two uniform ones (a triangle)."""
        raw = self._raw(math.prod(shape))
        upper, lower = (raw >> np.uint64(32)).astype(np.float64), (raw & np.uint64(2**32 - 1)).astype(np.float64)
        return ((upper - lower) * (deviation * math.sqrt(6) * 2.0**-32)).reshape(shape)

    def integer(self, count: int) -> int:
        """A number in range(count)."""
        return int(self.uniform(0, count))

    def choice(self, options: Any) -> Any:
        """One of a sequence."""
        return options[self.integer(len(options))]

    def permutation(self, count: int) -> Int64[np.ndarray, " count"]:
        """range(count) in random order."""
        return np.argsort(self._raw(count), kind="stable").astype(np.int64)

    def _unit(self, count: int) -> Float64[np.ndarray, " count"]:
        return (self._raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _raw(self, count: int) -> UInt64[np.ndarray, " count"]:
        return self._source.random_raw(count)


def cos_sin(turns: Number) -> tuple[float, float]:
    """Cosine and sine of an angle in turns, each within 1e-15: Taylor's series inside an eighth of a turn."""
    quarters = round(4 * turns)
    x = (turns - quarters / 4) * (2 * math.pi)
    square, cosine, sine = x * x, 0.0, 0.0
    for degree in range(18, -1, -2):  # Horner's rule: 1 - x²/2 (1 - x²/12 ...)
        cosine = 1.0 - square * cosine / ((degree + 1) * (degree + 2))
        sine = 1.0 - square * sine / ((degree + 2) * (degree + 3))
    sine *= x
    return ((cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine))[quarters % 4]
