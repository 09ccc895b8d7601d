"""A task of the packaged suite in memory, and written out as a folder of pictures."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from PIL import Image

from viapt.errors import DataError


@dataclass(frozen=True)
class PackagedTask:
    """A classification task in memory.

    Attributes:
        name: as given to `load_task`.
        images: (n, height, width, 3) uint8 RGB, read-only; grey pictures are a view that repeats one channel.
        labels: (n,) class indices.
        classes: names by index.
        licence: of the pictures.
        source: where they come from: package and version, or the drawing rule and its seed.
        content_hash: sha256 hex digest of pictures and labels.
        official_test: (n,) true for the pictures of an official test part, or None where there is none.
    """

    name: str
    images: UInt8[np.ndarray, "n height width 3"]
    labels: Int64[np.ndarray, " n"]
    classes: list[str]
    licence: str
    source: str
    content_hash: str
    official_test: Bool[np.ndarray, " n"] | None = None


class Content(NamedTuple):
    """What is kept of a task: pictures (grey ones without a channel axis), labels, an official test part."""

    images: UInt8[np.ndarray, "n height width *channels"]
    labels: Int64[np.ndarray, " n"]
    official_test: Bool[np.ndarray, " n"] | None = None


def content_hash(content: Content) -> str:
    """SHA-256 of everything, hex."""
    digest = hashlib.sha256()
    for array in content:
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def export_folder(task: PackagedTask, directory: Path, splits: Mapping[str, Int64[np.ndarray, " indices"]]) -> Path:
    """Write a task as an image folder `directory/<split>/<class>/<index>.png`; it appears whole or not at all.

    Args:
        task: what to write.
        directory: must not exist yet; folders above it are made.
        splits: indices by split, as from `split`.

    Raises:
        DataError: `directory` exists.
    """
    if directory.exists():
        raise DataError(f"{directory} exists", remedy="use it as it is, delete it, or export to another folder")
    directory.parent.mkdir(parents=True, exist_ok=True)
    grey = task.images.strides[-1] == 0
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for part, indices in splits.items():
            for name in task.classes:
                (temporary / part / name).mkdir(parents=True)
            for index in indices:
                picture = task.images[index, ..., 0] if grey else task.images[index]
                place = temporary / part / task.classes[task.labels[index]] / f"{index:05d}.png"
                Image.fromarray(picture).save(place, compress_level=1)
        temporary.chmod(0o755)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return directory
