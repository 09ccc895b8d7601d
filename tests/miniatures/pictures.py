"""Small pictures whose colour tells which they are."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def colour(number: int) -> tuple[int, int, int]:
    """A colour of its own for each number below 512, far enough from others to survive JPEG."""
    return 32 * (number % 8), 32 * (number // 8 % 8), 32 * (number // 64 % 8)


def number(image: Image.Image) -> int:
    """The number that `colour` was given."""
    red, green, blue = (round(value / 32) for value in np.asarray(image.convert("RGB")).reshape(-1, 3).mean(0))
    return int(red + 8 * green + 64 * blue)


def encoded(which: int, kind: str = "JPEG") -> bytes:
    """A picture of 16 x 16 in its colour, as the bytes of a file."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), colour(which)).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def save(path: Path, which: int) -> None:
    """A picture in a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(which, "PNG" if path.suffix == ".png" else "JPEG"))


def text(path: Path, *lines: str) -> None:
    """Lines in a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
