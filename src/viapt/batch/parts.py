"""A Parquet file that grows in parts: whatever kills the process, the same command goes on, and the file appears whole.

    FILE.parquet.parts/job.json         all that the rows depend on
    FILE.parquet.parts/00000000.parquet rows of the first images, and so on; each written under another name first

When all parts are there they are copied one by one, each a row group, into a file that gets its name when it is
complete; then the folder is removed. A part that is found again is used only if it names the same images.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from filelock import FileLock, Timeout
from pyarrow import parquet

from viapt.batch.rows import METADATA, Job
from viapt.checkpoint import replace_file, sync
from viapt.data.streams import Reference
from viapt.errors import ArtifactError, ConfigError, DataError

JOB, LOCK = "job.json", ".lock"
PART = re.compile(r"([0-9]{8})\.parquet")


@dataclass(frozen=True)
class Parts:
    """The parts of a file.

    Attributes:
        out: the file that they become.
        job: what their rows are.
    """

    out: Path
    job: Job

    @property
    def folder(self) -> Path:
        """Where they are."""
        return self.out.with_name(f"{self.out.name}.parts")

    def path(self, number: int) -> Path:
        """A part's file, whether it is there or not."""
        return self.folder / f"{number:08d}.parquet"

    @contextmanager
    def locked(self, overwrite: bool = False) -> Iterator[None]:
        """Alone with the parts, which are of this job; with `overwrite`, parts of any job are removed first.

        Raises:
            ConfigError: another process is at work on them; they are of another job; there cannot be such a folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The folder {self.folder} cannot be made ({error})", expected="a place to write to"
            ) from error
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                for number in self.numbers() if overwrite else ():
                    self.path(number).unlink()
                self.claim()
                yield
        except Timeout:
            raise ConfigError(
                f"Another process is writing {self.out}", remedy="wait for it, or choose another file"
            ) from None

    def numbers(self) -> list[int]:
        """Of the parts that are there."""
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := PART.fullmatch(path.name)))

    def claim(self) -> None:
        """Note the job, or see that it is the one that the parts are of.

        Raises:
            ConfigError: it is another one.
        """
        note = self.folder / JOB
        if not self.numbers():
            replace_file(note, json.dumps(self.job.key, ensure_ascii=False).encode())
            return
        try:
            begun = json.loads(note.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{note} cannot be read ({error})", remedy="--overwrite, to begin again") from error
        if begun != self.job.key:
            raise ConfigError(
                f"{self.folder} was begun by another command: {differences(begun, self.job.key)}",
                expected="the same command, to go on",
                remedy="another --out, or --overwrite",
            )

    def has(self, number: int, images: Sequence[Reference]) -> bool:
        """Whether this part was done before.

        Raises:
            DataError: it is of other images.
        """
        if not self.path(number).is_file():
            return False
        try:
            names = table_of(self.path(number), ["path"])["path"].to_pylist()
        except (pyarrow.ArrowException, OSError):
            return False  # damaged by somebody: it is done again
        if names != [image.name for image in images]:
            raise self.changed(number)
        return True

    def changed(self, number: int) -> DataError:
        """The error of images that are not those of an earlier call."""
        return DataError(
            f"The images are no longer those that part {number} of {self.folder} was made from",
            expected="the same images in the same order, to go on",
            remedy="another --out, or --overwrite",
        )

    def write(self, number: int, rows: bytes) -> None:
        """Keep a part.

        Raises:
            ArtifactError: the disk refuses.
        """
        with writing(self.path(number)):
            replace_file(self.path(number), rows)
            sync(self.folder)

    def join(self, count: int) -> None:
        """Make the file of the first `count` parts, which are all, and remove them.

        Raises:
            DataError: there are more.
            ArtifactError: the disk refuses.
        """
        if extra := self.numbers()[count:]:
            raise self.changed(extra[-1])
        partial = self.folder / "all"
        with writing(self.out):
            with parquet.ParquetWriter(partial, self.job.schema, compression="zstd") as writer:
                for number in range(count):
                    writer.write_table(table_of(self.path(number)).cast(self.job.schema))
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.out)
            sync(self.out.parent)
        shutil.rmtree(self.folder, ignore_errors=True)


def finished(out: Path, job: Job) -> bool:
    """Whether the file is there, of this job.

    Raises:
        ConfigError: it is there, and of another.
    """
    if not out.exists():
        return False
    try:
        metadata = parquet.read_schema(out).metadata or {}
        found = json.loads(metadata.get(METADATA, b"null"))
    except (pyarrow.ArrowException, OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("job") != job.key:
        raise ConfigError(
            f"{out} exists, and is not what this command writes",
            expected="a new file",
            remedy="--overwrite replaces it",
        )
    return True


def table_of(path: Path, columns: list[str] | None = None) -> pyarrow.Table:
    """A file's rows, whatever its folders are called: to some readers "a=1" in a path is a column."""
    with parquet.ParquetFile(path) as file:
        return file.read(columns=columns)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an ArtifactError when the disk refuses."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be written ({error})", remedy="make room there; the same command then goes on"
        ) from error


def differences(begun: Any, wanted: dict[str, Any]) -> str:
    """What two jobs do not have in common, in words."""
    if not isinstance(begun, dict):
        return "its description is damaged"
    names = [name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {begun.get(name)!r} there, {wanted.get(name)!r} here" for name in names)
