"""PatchCamelyon's files: HDF5 with images `x`, (n, 96, 96, 3) of uint8, and labels `y`, (n, 1, 1, 1)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from viapt.data.sources import ImageSource, Item, LazyImage
from viapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_IMAGES = 10**6


@dataclass
class Hdf5Images:
    """A map-style data set of (uint8 image (height, width, 3), 0), read one at a time; it can be pickled for workers.

    Attributes:
        images: the file of images, opened when the first is asked for.
        labels: the file of labels.
    """

    images: Path
    labels: Path
    _open: Any = field(default=None, repr=False, compare=False)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "height width 3"], int]:
        if self._open is None:
            self._open = h5py().File(self.images, "r")
        return self._open["x"][index], 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def source(self, part: str, classes: tuple[str, ...], name: str) -> ImageSource:
        """All images, in order, called by part and number.

        Raises:
            DataError: a file is missing, damaged, or of another kind; they do not fit together.
        """
        with opened(self.images, "x") as images, opened(self.labels, "y") as labels:
            shape, values = images.shape, labels
            if len(shape) != 4 or shape[3] != 3 or images.dtype != np.uint8 or not 0 < shape[0] <= MAX_IMAGES:
                raise DataError(f"{self.images} holds {images.dtype} {shape}", expected="(n, 96, 96, 3) of uint8")
            if values.size != shape[0]:
                raise DataError(
                    f"{self.images} holds {shape[0]} images, {self.labels} {values.size} labels",
                    remedy="decompress both again",
                )
            numbers = np.asarray(values).reshape(-1).tolist()
        if not set(numbers) <= set(range(len(classes))):
            raise DataError(f"{self.labels} has the label {max(numbers)}", expected=f"0 to {len(classes) - 1}")
        items = (Item(f"{part}/{i:06d}", int(label), part, LazyImage(self, i)) for i, label in enumerate(numbers))
        return ImageSource(tuple(items), classes, None, f"{name} ({part})")


@contextmanager
def opened(path: Path, name: str) -> Iterator[Any]:
    """The array of this name in a file.

    Raises:
        DataError: the file is missing or damaged, or has no such array.
    """
    library = h5py()
    try:
        file = library.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read as HDF5 ({error})", remedy="decompress the .gz file again") from error
    with file:
        if not isinstance(file.get(name), library.Dataset):
            raise DataError(f"{path} has no array {name!r}", remedy="decompress the .gz file again")
        yield file[name]


def h5py() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import h5py as library
    except ImportError as error:
        raise ConfigError(
            "PatchCamelyon's files need h5py, which is not installed", remedy="pip install 'viapt[hdf5]'"
        ) from error
    return library
