"""Pictures that look alike: a perceptual hash of 255 bits, and what differs in a few of them.

The hash is pHash (Zauner, 2010) with more bits than its
usual 63, which distinct pictures of one kind often share: a grey picture of 64 x 64, its cosine transform, and whether
each of the 16 x 16 lowest frequencies but the mean lies above their median. It survives another size, another
compression and a change of brightness; not a crop, a mirror image or a turn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from scipy.fft import dctn

SIDE, KEPT = 64, 16
BITS = KEPT**2 - 1
BYTES = KEPT**2 // 8
NEAR = 12
"""Bits in which pictures that look alike may differ; distinct ones differ in some 127."""
FLAT = 2.0
"""A picture whose grey values spread less than this (standard deviation, of 255) has no appearance to speak of."""
ROWS = 1024  # of the table of distances that is held at once


class Alike(NamedTuple):
    """The picture among the known ones that looks most like one of the others."""

    other: int
    known: int
    distance: int


def appearance(image: Image.Image) -> bytes:
    """The perceptual hash of a picture: 32 bytes, of which the last bit is 0; none if the picture is flat."""
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
    if grey.std() < FLAT:
        return b""
    low = np.asarray(dctn(grey, norm="ortho"))[:KEPT, :KEPT].ravel()[1:]
    return np.packbits(low > np.median(low)).tobytes()


def find_alike(others: list[bytes], known: list[bytes]) -> list[Alike]:
    """For each of the `others` that looks like some of the `known`, the nearest one; the first of several.

    Args:
        others: hashes from `appearance`; empty ones are like nothing.
        known: likewise.
    """
    rows, columns = (np.array([i for i, value in enumerate(side) if value], int) for side in (others, known))
    if not (len(rows) and len(columns)):
        return []
    signs = _signs([known[i] for i in columns]).T
    found = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        # Signs that agree count 1, others -1, and the padding bit, which always agrees, 1.
        agreement = _signs([others[i] for i in part]) @ signs
        nearest = agreement.argmax(1)
        distance = ((8 * BYTES - agreement[np.arange(len(part)), nearest]) / 2).astype(int)
        close = distance <= NEAR
        pairs = zip(part[close], columns[nearest[close]], distance[close], strict=True)
        found += [Alike(int(i), int(k), int(d)) for i, k, d in pairs]
    return found


def _signs(hashes: list[bytes]) -> Float32[np.ndarray, "n bits"]:
    """-1 and 1 for every bit: their matrix product, exact in float32, counts the bits that agree."""
    packed: UInt8[np.ndarray, "n bytes"] = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, BYTES)
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
