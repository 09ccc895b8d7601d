"""A Parquet file that grows in parts: whatever kills the process, the same command goes on, and the file appears whole.

    FILE.parquet.parts/job.json       all that the rows depend on
    FILE.parquet.parts/00000000.part  rows of the first images, and so on; each written under another name first

A part is the SHA-256 of what follows, the fingerprint of its images, and their rows as a Parquet file. One that is
found again counts only if all of its bytes and all of its images are as they were. When all parts are there they are
copied one by one, each a row group, into a file that gets its name when it is complete; then the folder is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
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
PART = re.compile(r"([0-9]{8})\.part")
DIGEST = hashlib.sha256().digest_size
IMAGES = b"viapt_images"  # the name under which a finished file has the SHA-256 of all fingerprints


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
        return self.folder / f"{number:08d}.part"

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
                remedy="another --out, or --overwrite; images that were moved need a link at their old place",
            )

    def read(self, number: int) -> tuple[bytes, pyarrow.Buffer] | None:
        """The fingerprint of a part's images, and its rows; None: it is not there, or is damaged."""
        try:
            content = pyarrow.py_buffer(self.path(number).read_bytes())
        except OSError:
            return None
        digest, kept = content[:DIGEST].to_pybytes(), content[DIGEST:]
        if hashlib.sha256(kept).digest() != digest:
            return None
        return kept[:DIGEST].to_pybytes(), kept[DIGEST:]

    def has(self, number: int, images: Sequence[Reference], fingerprint: bytes) -> bool:
        """Whether this part was done before, is whole, and its images have not been written to since.

        Raises:
            DataError: it is of images with other names.
        """
        if (found := self.read(number)) is None:
            return False
        if table_of(found[1], ["path"])["path"].to_pylist() != [image.name for image in images]:
            raise self.changed(number)
        return found[0] == fingerprint

    def changed(self, number: int) -> DataError:
        """The error of images that are not those of an earlier call."""
        return DataError(
            f"The images are no longer those that part {number} of {self.folder} was made from",
            expected="the same images in the same order, to go on",
            remedy="another --out, or --overwrite",
        )

    def write(self, number: int, fingerprint: bytes, rows: bytes) -> None:
        """Keep a part.

        Raises:
            ArtifactError: the disk refuses.
        """
        kept = fingerprint + rows
        with writing(self.path(number)):
            replace_file(self.path(number), hashlib.sha256(kept).digest() + kept)
            sync(self.folder)

    def join(self, count: int) -> None:
        """Make the file of the first `count` parts, which are all, and remove them.

        Raises:
            DataError: there are more.
            ArtifactError: the disk refuses; a part has been damaged.
        """
        if extra := self.numbers()[count:]:
            raise self.changed(extra[-1])
        partial, fingerprints = self.folder / "all", []
        with writing(self.out):
            with parquet.ParquetWriter(partial, self.job.schema, compression="zstd") as writer:
                for number in range(count):
                    if (found := self.read(number)) is None:
                        raise ArtifactError(
                            f"{self.path(number)} is damaged", remedy="run the same command: it makes this part again"
                        )
                    fingerprints.append(found[0])
                    writer.write_table(table_of(found[1]).cast(self.job.schema))
                writer.add_key_value_metadata({IMAGES: in_one(fingerprints)})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.out)
            sync(self.out.parent)
        shutil.rmtree(self.folder, ignore_errors=True)


def finished(out: Path, job: Job, fingerprints: Iterable[bytes]) -> bool:
    """Whether the file is there, of this job and of images in parts with these fingerprints.

    Raises:
        ConfigError: it is there, and of another job, or of images that have changed since.
    """
    if not out.exists():
        return False
    try:
        metadata = parquet.read_metadata(out).metadata or {}
        found = json.loads(metadata.get(METADATA, b"null"))
    except (pyarrow.ArrowException, OSError, ValueError):
        metadata, found = {}, None
    if not isinstance(found, dict) or found.get("job") != job.key:
        other = f": {differences(found['job'], job.key)}" if isinstance(found, dict) and "job" in found else ""
        raise ConfigError(
            f"{out} exists, and is not what this command writes{other}",
            expected="a new file",
            remedy="--overwrite replaces it",
        )
    if metadata.get(IMAGES) != in_one(fingerprints):
        raise ConfigError(
            f"{out} was made from images that have changed since: they are more or fewer, or one has another name,"
            " size or time of its last change",
            expected="the same images, or a new file",
            remedy="--overwrite replaces it",
        )
    return True


def in_one(fingerprints: Iterable[bytes]) -> bytes:
    """Of all images, in hexadecimal."""
    whole = hashlib.sha256()
    for fingerprint in fingerprints:
        whole.update(fingerprint)
    return whole.hexdigest().encode()


def table_of(rows: pyarrow.Buffer, columns: list[str] | None = None) -> pyarrow.Table:
    """The rows of a part."""
    return parquet.ParquetFile(pyarrow.BufferReader(rows)).read(columns=columns)


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
