"""Chosen images of a long array in a (compressed) file: read in one pass when the first is asked for, then kept.

smallNORB holds 448 MB and dSprites 3 GB of pixels; a task needs some of them. Those are kept in memory, dSprites's
black-and-white ones as single bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BufferedIOBase

import numpy as np
from jaxtyping import Int64, UInt8

from viapt.errors import DataError

CHUNK_BYTES = 2**22


@dataclass
class StreamedImages:
    """A map-style data set of (uint8 image (height, width), 0). It can be pickled for workers, with what it has read.

    Attributes:
        name: what errors call the file.
        open_rows: opens the stream where the first row begins; picklable.
        rows: how many there are.
        row_shape: of one row of bytes, (..., height, width); the first image of a row counts.
        wanted: ascending numbers of the rows that can be asked for; its index asks.
        binary: whether pixels are 0 or 1: kept as bits, and shown as 0 or 255.
    """

    name: str
    open_rows: Callable[[], BufferedIOBase]
    rows: int
    row_shape: tuple[int, ...]
    wanted: Int64[np.ndarray, " wanted"]
    binary: bool = False
    _kept: UInt8[np.ndarray, "wanted kept_bytes"] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "height width"], int]:
        if self._kept is None:
            self._kept = self._read()
        row, shape = self._kept[index], self.row_shape[-2:]
        pixels = np.unpackbits(row, count=math.prod(shape)) * np.uint8(255) if self.binary else row
        return pixels.reshape(shape), 0

    def _read(self) -> UInt8[np.ndarray, "wanted kept_bytes"]:
        kept = [self._keep(rows) for rows in self._chosen()]
        return np.concatenate(kept)

    def _chosen(self) -> Iterable[UInt8[np.ndarray, "chosen pixels"]]:
        """The first image of each wanted row, chunk by chunk."""
        row_bytes, image_bytes = math.prod(self.row_shape), math.prod(self.row_shape[-2:])
        step = max(1, CHUNK_BYTES // row_bytes)
        with self.open_rows() as stream:
            for start in range(0, int(self.wanted[-1]) + 1, step):
                count = min(step, self.rows - start)
                data = read_exactly(stream, count * row_bytes, self.name)
                low, high = np.searchsorted(self.wanted, (start, start + count))
                yield np.frombuffer(data, np.uint8).reshape(count, row_bytes)[
                    self.wanted[low:high] - start, :image_bytes
                ]

    def _keep(self, pixels: UInt8[np.ndarray, "chosen pixels"]) -> UInt8[np.ndarray, "chosen kept_bytes"]:
        if not self.binary:
            return pixels
        if pixels.size and pixels.max() > 1:
            raise DataError(f"{self.name} has the pixel {pixels.max()}", expected="pixels 0 and 1")
        return np.packbits(pixels, axis=1)


def read_exactly(stream: BufferedIOBase, size: int, name: str) -> bytes:
    """Exactly `size` bytes.

    Raises:
        DataError: the stream ends before, or is damaged.
    """
    pieces, left = [], size
    try:
        while left and (data := stream.read(left)):
            pieces.append(data)
            left -= len(data)
    except Exception as error:  # gzip and zip raise several kinds
        raise _truncated(name, f"{type(error).__name__}: {error}") from error
    if left:
        raise _truncated(name, f"{left:,} bytes are missing")
    return b"".join(pieces)


def _truncated(name: str, reason: str) -> DataError:
    return DataError(
        f"{name} is damaged or truncated ({reason})",
        expected="the publisher's file, unchanged",
        remedy="compare its size with the publisher's and download it again",
    )
