"""CIFAR-10 and CIFAR-100: the binary version, and the Python version, whose pickles are read without unpickling.

The binary version is records of one label byte (two in CIFAR-100: coarse, fine) and 3 x 32 x 32 bytes of red, green and
blue. The Python version holds the same as dictionaries with `data` and `labels` (`fine_labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from viapt.data.benchmarks.listed import read_text
from viapt.data.benchmarks.pickled import PickledArray, read_pickled
from viapt.data.benchmarks.stored import StoredImages
from viapt.data.sources import ImageSource
from viapt.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE
MAX_BYTES = 2**28
RECORDS = 10**5


@dataclass(frozen=True)
class Version:
    """How a release is laid out.

    Attributes:
        files: by official part.
        names: the file of class names.
        key: of the labels in a pickled dictionary, and of the class names; None where nothing is pickled.
        label_bytes: before each record of the binary version; the last one counts.
    """

    files: dict[str, tuple[str, ...]]
    names: str
    keys: tuple[str, str] | None = None
    label_bytes: int = 1


_FIVE = [f"data_batch_{number}" for number in range(1, 6)]
VERSIONS = {
    "cifar-10-batches-bin": Version(
        {"train": tuple(f"{name}.bin" for name in _FIVE), "test": ("test_batch.bin",)}, "batches.meta.txt"
    ),
    "cifar-10-batches-py": Version(
        {"train": tuple(_FIVE), "test": ("test_batch",)}, "batches.meta", ("labels", "label_names")
    ),
    "cifar-100-binary": Version(
        {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", label_bytes=2
    ),
    "cifar-100-python": Version({"train": ("train",), "test": ("test",)}, "meta", ("fine_labels", "fine_label_names")),
}
"""By the name of the folder."""


def files_of(folder: Path) -> list[str]:
    """What the folder of a version holds."""
    version = VERSIONS[folder.name]
    return [name for files in version.files.values() for name in files] + [version.names]


def read_cifar(folder: Path) -> dict[str, ImageSource]:
    """The official parts "train" and "test", in the release's order.

    Args:
        folder: called as in `VERSIONS`.

    Raises:
        DataError: a file is missing, truncated, of another kind, or has a label that is no class.
    """
    version = VERSIONS[folder.name]
    classes = _class_names(folder / version.names, version)
    parts = {}
    for part, files in version.files.items():
        pieces = [_read(folder / name, version) for name in files]
        stored = StoredImages(*(_joined(arrays) for arrays in zip(*pieces, strict=True)))
        if stored.labels.size and not 0 <= stored.labels.min() <= stored.labels.max() < len(classes):
            raise DataError(
                f"{folder} has labels from {stored.labels.min()} to {stored.labels.max()} in {part}",
                expected=f"0 to {len(classes) - 1}",
                remedy="unpack the archive again",
            )
        parts[part] = stored.source(part, classes, folder.name)
    return parts


def _joined(arrays: Sequence[Shaped[np.ndarray, "..."]]) -> Shaped[np.ndarray, "..."]:
    """A single one as it is: a copy of CIFAR-100 takes 150 MB."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _read(path: Path, version: Version) -> tuple[UInt8[np.ndarray, "n channels height width"], Int64[np.ndarray, " n"]]:
    if version.keys is None:
        return _read_records(path, version.label_bytes)
    content = read_pickled(path, MAX_BYTES)
    data, labels = content.get("data"), content.get(version.keys[0])
    expected = f"a dictionary with `data`, (n, {PIXELS}) of uint8, and n `{version.keys[0]}`"
    if not isinstance(data, PickledArray) or data.dtype != "u1" or data.shape[1:] != (PIXELS,):
        raise _other(path, expected)
    if not isinstance(labels, list) or len(labels) != data.shape[0]:
        raise _other(path, expected)
    if not all(isinstance(label, int) for label in labels):
        raise _other(path, "whole numbers as labels")
    return data.array().reshape(-1, 3, SIDE, SIDE), np.array(labels, np.int64)


def _read_records(
    path: Path, label_bytes: int
) -> tuple[UInt8[np.ndarray, "n channels height width"], Int64[np.ndarray, " n"]]:
    size = label_bytes + PIXELS
    try:
        bytes_there = path.stat().st_size
        if bytes_there == 0 or bytes_there % size or bytes_there > RECORDS * size:
            raise DataError(
                f"{path} is damaged or truncated: it has {bytes_there:,} bytes",
                expected=f"records of {size:,} bytes",
                remedy="unpack the archive again",
            )
        records = np.fromfile(path, np.uint8).reshape(-1, size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", remedy="unpack the archive again") from error
    return records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE), records[:, label_bytes - 1].astype(np.int64)


def _class_names(path: Path, version: Version) -> tuple[str, ...]:
    if version.keys is None:
        return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    names = read_pickled(path, MAX_BYTES).get(version.keys[1])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _other(path, f"a dictionary with `{version.keys[1]}`")
    return tuple(names)


def _other(path: Path, expected: str) -> DataError:
    return DataError(f"{path} holds something else", expected=expected, remedy="unpack the archive again")
