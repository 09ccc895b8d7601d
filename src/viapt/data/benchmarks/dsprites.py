"""dSprites: the publisher's `.npz` archive, in which 737,280 images of 64 x 64 unpack to 3 GB.

Its member `metadata` is a pickled object and is never touched: the members that are needed are opened by name, and
their headers read by numpy without pickle.
"""

from __future__ import annotations

import zipfile
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64
from numpy.lib import format as npy

from viapt.data.benchmarks.labels import DSPRITES_CLASSES, DSPRITES_ORIENTATIONS, DSPRITES_POSITIONS, dsprites_label
from viapt.data.benchmarks.layouts import Finding, Layout, Parts, candidates, cut_rows
from viapt.data.benchmarks.rows import StreamedImages, read_exactly
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
IMAGES, LATENTS = "imgs.npy", "latents_classes.npy"
COLUMNS = {"orientation": (3, DSPRITES_ORIENTATIONS), "location": (4, DSPRITES_POSITIONS)}
"""For each task: its column of the latent classes, and how many values that has."""
MAX_ROWS = 10**6


class Dsprites(Layout):
    """A folder with the archive."""

    name = "dsprites"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        folders = [path for path in candidates(root, task, self.name) if path.is_dir()]
        with_file = next((folder for folder in folders if (folder / FILE).is_file()), None)
        return Finding(self.name, with_file)

    def read_at(self, where: Path, task: BenchmarkTask) -> Parts:
        path = where / FILE
        quantity = task.name.rpartition("-")[2]
        groups = np.array([dsprites_label(value, COLUMNS[quantity][1]) for value in range(COLUMNS[quantity][1])])
        return cut_rows(
            task,
            {"all": groups[read_latents(path, quantity)]},
            tuple(map(str, range(DSPRITES_CLASSES))),
            lambda _, wanted: stream_images(path, wanted),
        )


def open_rows(path: Path, member: str) -> BufferedIOBase:
    """The array of a member, where its first element begins."""
    stream: Any = zipfile.ZipFile(path).open(member)  # noqa: SIM115 - the caller closes it
    _read_header(stream)
    return stream


def read_latents(path: Path, task: str) -> Int64[np.ndarray, " n"]:
    """The value of "orientation" (0 to 39) or "location" (horizontal, 0 to 31) of each image.

    Raises:
        DataError: missing, truncated, or no dSprites archive.
    """
    column, values = COLUMNS[task]
    shape, dtype = array_header(path, LATENTS)
    if len(shape) != 2 or shape[1] != 6 or shape[0] > MAX_ROWS or dtype != np.dtype("<i8"):
        raise _wrong(path, LATENTS, f"{dtype} of shape {shape}", "int64 (images, 6)")
    with open_rows(path, LATENTS) as stream:
        data = read_exactly(stream, shape[0] * 6 * 8, f"{LATENTS} of {path}")
    latents = np.frombuffer(data, dtype).reshape(shape)[:, column]
    if latents.min() < 0 or latents.max() >= values:
        raise _wrong(path, LATENTS, f"values from {latents.min()} to {latents.max()}", f"0 to {values - 1}")
    return latents.astype(np.int64)


def stream_images(path: Path, wanted: Int64[np.ndarray, " wanted"]) -> StreamedImages:
    """The wanted images, read when they are asked for.

    Raises:
        DataError: as `read_latents`.
    """
    shape, dtype = array_header(path, IMAGES)
    if len(shape) != 3 or not 1 <= shape[0] <= MAX_ROWS or max(shape[1:]) > 1024 or dtype != np.dtype("u1"):
        raise _wrong(path, IMAGES, f"{dtype} of shape {shape}", "uint8 (images, 64, 64)")
    name, opener = f"{IMAGES} of {path}", partial(open_rows, path, IMAGES)
    return StreamedImages(name, opener, shape[0], shape[1:], wanted, binary=True)


def array_header(path: Path, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in the archive, of which nothing else is read.

    Raises:
        DataError: no such archive, no such member, or one in Fortran's order, which this format does not use.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            shape, fortran, dtype = _read_header(stream)
    except Exception as error:  # of zipfile and numpy
        raise DataError(
            f"{path} is damaged, truncated or no dSprites archive ({type(error).__name__}: {error})",
            expected=f"an .npz file with {IMAGES} and {LATENTS}",
            remedy="compare its size with the publisher's and download it again",
        ) from error
    if fortran or dtype.hasobject:
        raise _wrong(path, member, "an array of objects or in Fortran's order", "numbers in C's order")
    return shape, dtype


def _read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy format {version}")
    return (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)


def _wrong(path: Path, member: str, found: str, expected: str) -> DataError:
    return DataError(f"{member} of {path} is {found}", expected=expected, remedy="download it again")
