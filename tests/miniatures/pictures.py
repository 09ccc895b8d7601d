# NOTE to the author of originals.py and fine_grained.py: the first version of this file was overwritten by mistake and
# is lost; this is a reconstruction from its uses. Put yours back (or check this one), and remove this note.
"""Single-coloured pictures by number, and text files."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}


def colour(which: int) -> tuple[int, int, int]:
    """Another one for each number."""
    return (37 * which) % 256, (101 * which + 40) % 256, (59 * which + 90) % 256


def encoded(which: int, suffix: str = ".jpg") -> bytes:
    """A picture of 16 x 16 in its colour, as the bytes of a file."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour(which)).save(stream, FORMATS[suffix])
    return stream.getvalue()


def save(path: Path, which: int) -> None:
    """A picture in a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(which, path.suffix))


def text(path: Path, *lines: str) -> None:
    """Lines in a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
