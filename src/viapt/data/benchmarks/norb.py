"""smallNORB in its own binary matrix format, packed by gzip or not.

A file begins with a magic number (4 bytes, little-endian) for the type of its elements, the number of dimensions, and
their sizes, of which at least three are stored. For `training` and `testing` each there are `dat` (24,300 pairs of
images, 96 x 96), `cat` (categories) and `info` (instance, elevation 0 to 8, azimuth 0 to 34 in steps of 2, lighting).
The first image of a pair counts, as in VTAB. Format: cs.nyu.edu/~ylclab/data/norb-v1.0-small/.
"""

from __future__ import annotations

import gzip
import math
import struct
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from viapt.data.benchmarks import labels
from viapt.data.benchmarks.layouts import Finding, Layout, Parts, cut_rows
from viapt.data.benchmarks.rows import StreamedImages, read_exactly
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

FILES = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing-{}.mat",
}
TYPES = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
MAX_ROWS, MAX_LABEL_BYTES = 10**6, 2**26
COLUMNS = {"elevation": (1, labels.norb_elevation, 9), "azimuth": (2, labels.norb_azimuth, 18)}
"""For each task: its column of `info`, its label rule, and how many classes it has."""


class SmallNorb(Layout):
    """A folder with six files, or the packed ones."""

    name = "smallnorb"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, _missing)

    def read_at(self, where: Path, task: BenchmarkTask) -> Parts:
        quantity = task.name.rpartition("-")[2]
        classes = tuple(map(str, range(COLUMNS[quantity][2])))
        return cut_rows(
            task,
            {part: read_labels(where, part, quantity) for part in FILES},
            classes,
            lambda part, wanted: stream_images(where, part, wanted),
        )


class Header(NamedTuple):
    """Of a matrix: type, shape, and where its elements begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def _missing(folder: Path) -> tuple[str, ...]:
    files = [path for part in FILES for path in part_files(folder, part).values()]
    return tuple(path.name for path in files if not path.exists())


def part_files(root: Path, part: str) -> dict[str, Path]:
    """The files dat, cat and info of "train" or "test": packed where only that is there."""
    found = {}
    for kind in ("dat", "cat", "info"):
        path = root / FILES[part].format(kind)
        packed = path.with_name(path.name + ".gz")
        found[kind] = packed if packed.exists() and not path.exists() else path
    return found


def open_matrix(path: Path, offset: int = 0) -> BufferedIOBase:
    """The bytes of a matrix file, unpacked, from `offset` on."""
    stream: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 - the caller closes it
    stream.seek(offset)
    return stream


def read_header(path: Path) -> Header:
    """Type and shape of a matrix file.

    Raises:
        DataError: missing, truncated, another magic number, or sizes that cannot be.
    """
    try:
        with open_matrix(path) as stream:
            magic, dimensions = struct.unpack("<Ii", read_exactly(stream, 8, str(path)))
            if magic not in TYPES:
                known = ", ".join(f"0x{number:08x}" for number in TYPES)
                raise DataError(
                    f"{path} begins with the magic number 0x{magic:08x}",
                    expected=f"one of {known}",
                    remedy="download it again; a page of an error may have been saved in its place",
                )
            if not 1 <= dimensions <= 8:
                raise DataError(f"{path} has {dimensions} dimensions", expected="1 to 8", remedy="download it again")
            stored = max(3, dimensions)
            sizes = struct.unpack(f"<{stored}i", read_exactly(stream, 4 * stored, str(path)))[:dimensions]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", remedy="download it again") from error
    if min(sizes) < 1 or sizes[0] > MAX_ROWS:
        raise DataError(f"{path} has the shape {sizes}", expected="sizes of 1 or more", remedy="download it again")
    return Header(TYPES[magic], sizes, 8 + 4 * stored)


def read_matrix(path: Path, max_bytes: int = MAX_LABEL_BYTES) -> Shaped[np.ndarray, "..."]:
    """A whole matrix, for labels.

    Raises:
        DataError: as `read_header`, or larger than `max_bytes`.
    """
    header = read_header(path)
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > max_bytes:
        raise DataError(f"{path} holds {size:,} bytes", expected=f"at most {max_bytes:,}")
    with open_matrix(path, header.offset) as stream:
        return np.frombuffer(read_exactly(stream, size, str(path)), header.dtype).reshape(header.shape)


def read_labels(root: Path, part: str, quantity: str) -> Int64[np.ndarray, " n"]:
    """Labels of all pairs, by "elevation" (0 to 8) or "azimuth" (0 to 17, half of what is stored).

    Raises:
        DataError: a file is missing or damaged, they do not fit together, or a label cannot be.
    """
    files = part_files(root, part)
    info, images = read_matrix(files["info"]), read_header(files["dat"]).shape
    if info.ndim != 2 or info.shape[1] != 4 or info.shape[0] != images[0]:
        raise DataError(
            f"{files['info']} has the shape {info.shape}, for images of shape {images}",
            expected="a row of four numbers for each pair of images",
            remedy="download them again",
        )
    column, rule, _ = COLUMNS[quantity]
    try:
        return np.array([rule(value) for value in info[:, column].tolist()], np.int64)
    except DataError as error:
        raise DataError(f"{files['info']} holds {error}", remedy="download it again") from error


def stream_images(root: Path, part: str, wanted: Int64[np.ndarray, " wanted"]) -> StreamedImages:
    """The first images of the wanted pairs, read when they are asked for.

    Raises:
        DataError: the file of images is missing or damaged, or holds something else.
    """
    path = part_files(root, part)["dat"]
    header = read_header(path)
    if header.dtype != np.dtype("u1") or len(header.shape) != 4:
        raise DataError(f"{path} holds {header.dtype} of shape {header.shape}", expected="uint8 (pairs, 2, 96, 96)")
    rows, *row_shape = header.shape
    return StreamedImages(str(path), partial(open_matrix, path, header.offset), rows, tuple(row_shape), wanted)
