"""A cache on disk: tensors with the same number of rows, found again by what they were made from.

An entry is a folder: `header.json` and one raw file for each tensor, which is mapped into memory, not read. The header
holds everything that the rows depend on, and the SHA-256 of itself and of the files. An entry is written under another
name and renamed when it is whole. It is used only if all of this fits; else it is made again, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from viapt.checkpoint import digest, sync, write_synced
from viapt.errors import ConfigError

FORMAT = 1
HEADER, HEADER_LIMIT = "header.json", 2**20  # bytes
CHUNK = 2**24  # bytes hashed at once
SPARE = 2**30  # bytes that a cache leaves free on the disk


@dataclass(frozen=True)
class Column:
    """A tensor of an entry: its rows' shape and type."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """What one row takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}


@dataclass(frozen=True)
class Entry:
    """Where some rows are, or will be, and what they are.

    Attributes:
        root: the folder of all entries.
        key: what the rows depend on, in plain JSON types.
        columns: by name.
        rows: how many there are.
    """

    root: Path
    key: dict[str, Any]
    columns: dict[str, Column]
    rows: int

    @property
    def folder(self) -> Path:
        """The entry's own."""
        return self.root / digest(self.description())[:32]

    def description(self) -> dict[str, Any]:
        """What the header says, check sums left out."""
        columns = {name: column.to_dict() for name, column in self.columns.items()}
        return {"format": FORMAT, "key": self.key, "columns": columns, "rows": self.rows}

    @contextmanager
    def locked(self, heed: Callable[[], None]) -> Iterator[None]:
        """Alone with this entry; somebody else who is writing it is waited for. `heed` is called meanwhile.

        Raises:
            ConfigError: the folder cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"The folder {self.root} cannot be made ({error})", remedy="set VIAPT_CACHE") from error
        lock = FileLock(f"{self.folder}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                heed()
        try:
            yield
        finally:
            lock.release()

    def read(self) -> dict[str, Tensor] | None:
        """The tensors by name, mapped into memory; None if there is no entry, or, with a warning, a damaged one."""
        if not self.folder.exists():
            return None
        try:
            self.check()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            warnings.warn(f"The cache {self.folder} is damaged ({error}): it is made again", stacklevel=2)
            return None
        return {name: self.mapped(name, column) for name, column in self.columns.items()}

    def check(self) -> None:
        """Compare everything with what it should be.

        Raises:
            ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError: it is not.
        """
        if (self.folder / HEADER).stat().st_size > HEADER_LIMIT:
            raise ValueError("its header is too long")
        header = json.loads((self.folder / HEADER).read_bytes())
        stated, sums = header.pop("header_sha256"), header["sha256"]
        if stated != digest(header) or header != self.description() | {"sha256": sums}:
            raise ValueError("its header was altered")
        for name, column in self.columns.items():
            path = self.path(name)
            if path.is_symlink() or path.stat().st_size != self.rows * column.row_bytes:
                raise ValueError(f"{path.name} has another size than it should have")
            if file_sha256(path) != sums[name]:
                raise ValueError(f"{path.name} was altered: its SHA-256 is another")

    def mapped(self, name: str, column: Column) -> Tensor:
        """One tensor. Writing to it would change neither the file nor what others see."""
        data = torch.from_numpy(np.memmap(self.path(name), np.uint8, mode="c"))
        return data.view(column.dtype).view(self.rows, *column.shape)

    def write(self, chunks: Iterator[dict[str, Tensor]]) -> None:
        """Make the entry from pieces of its tensors, in order; whoever had its name is replaced.

        Raises:
            ConfigError: the disk has no room, or refuses.
        """
        needed = sum(column.row_bytes for column in self.columns.values()) * self.rows
        free = shutil.disk_usage(self.root).free
        if needed > free - SPARE:
            raise ConfigError(
                f"The cache takes {in_words(needed)}, and {self.root} has {in_words(free)} free",
                expected=f"{in_words(SPARE)} free afterwards",
                remedy="make room there, set VIAPT_CACHE to a folder on a larger disk, or train without a cache",
            )
        partial = self.folder.with_name(f"{self.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self.fill(partial, chunks)
            shutil.rmtree(self.folder, ignore_errors=True)
            partial.rename(self.folder)
            sync(self.root)
        except OSError as error:
            raise ConfigError(
                f"The cache cannot be written to {self.root} ({error})", remedy="make room there, or set VIAPT_CACHE"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def fill(self, folder: Path, chunks: Iterator[dict[str, Tensor]]) -> None:
        """All files of the entry, brought to the disk."""
        folder.mkdir()
        hashes = {name: hashlib.sha256() for name in self.columns}
        with ExitStack() as stack:
            files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in self.columns}
            for chunk in chunks:
                for name, column in self.columns.items():
                    data = as_bytes(chunk[name].to(column.dtype))
                    hashes[name].update(data)
                    files[name].write(data)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        header = self.description() | {"sha256": {name: sha.hexdigest() for name, sha in hashes.items()}}
        write_synced(folder / HEADER, json.dumps(header | {"header_sha256": digest(header)}, indent=1).encode())
        sync(folder)

    def path(self, name: str) -> Path:
        """The file of a tensor."""
        return self.folder / f"{name}.bin"


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, whatever its type."""
    numbers: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(numbers)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file of any size."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            sha.update(data)
    return sha.hexdigest()


def in_words(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
