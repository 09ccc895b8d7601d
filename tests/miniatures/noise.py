"""Small pictures, each another one, in the format that a file's name asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 12


def pixels(number: int, side: int = SIDE) -> np.ndarray:
    """(side, side, 3) uint8 of noise, another one for each number."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_picture(path: Path, number: int, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, side)).save(path)
