"""Zip and tar archives of data sets: extracted whole or not at all, or read where they lie. Nothing in them is trusted.

Every name, type and size is checked before the first byte is written: nothing may leave the folder, be a link or a
device, or unpack to more than the limits and the disk allow.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from viapt.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
CHUNK = 2**20
SPARE = 2**30  # bytes that extraction leaves free on the disk
BOMB_BYTES = 2**28  # an archive that unpacks to no more than this is no bomb, however well it was packed
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, OSError, NotImplementedError)


class Member(NamedTuple):
    """A regular file of an archive: its name with "/", its bytes when unpacked, and the archive's own entry."""

    name: str
    size: int
    entry: Any


@dataclass(frozen=True)
class Limits:
    """What an archive may hold.

    Attributes:
        members: files and folders.
        bytes: of all files together.
        ratio: of what it holds to what it takes on the disk, beyond `BOMB_BYTES`.
    """

    members: int = 1_000_000
    bytes: int = 2**37
    ratio: int = 200


def list_members(archive: Path, limits: Limits = Limits()) -> list[Member]:
    """The regular files of a zip or (compressed) tar archive, in its order; all of it is looked through.

    Raises:
        DataError: no archive, truncated, beyond the limits, or with a member that is no file or folder, whose name
            leaves the folder, is no Unicode, or is there twice.
    """
    with _open(archive) as opened:
        return list(_checked(archive, opened, limits))


def extract(archive: Path, folder: Path, limits: Limits = Limits()) -> int:
    """Unpack an archive into a new folder, and return how many files it held.

    Everything is written to a temporary folder beside it, which gets its name when it is complete.

    Raises:
        DataError: as `list_members`; the folder exists; the disk has no room, or refuses.
    """
    check_absent(folder)
    members = list_members(archive, limits)
    with whole_folder(folder, sum(member.size for member in members)) as inside, _damage_named(archive):
        _write_members(archive, inside, limits)
    return len(members)


def check_absent(folder: Path) -> None:
    """Raise a `DataError` if something has this name."""
    if os.path.lexists(folder):
        raise DataError(f"{folder} exists already", expected="a new folder", remedy="remove it, or choose another")


@contextmanager
def whole_folder(folder: Path, needed: int) -> Iterator[Path]:
    """A temporary folder to fill, which gets its name when that is done; if it fails, nothing is left.

    Args:
        folder: its name afterwards, which must be free.
        needed: bytes that will be written, for which there must be room.

    Raises:
        DataError: the name is taken; the disk has no room, or refuses.
    """
    check_absent(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if needed > free - SPARE:
            raise DataError(
                f"{folder} would take {needed:,} bytes, and {folder.parent} has {free:,} bytes free",
                expected=f"{SPARE:,} bytes free afterwards",
                remedy="make room there, or choose a folder on a larger disk with --to; nothing was written",
            )
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=folder.parent) as temporary:
            inside = Path(temporary) / "content"
            inside.mkdir()
            yield inside
            inside.rename(folder)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}",
            expected="a folder that can be written to, with room enough",
            remedy="choose another with --to; nothing was left behind",
        ) from error


@contextmanager
def reading(archive: Path, limits: Limits = Limits()) -> Iterator[tuple[zipfile.ZipFile, list[Member]]]:
    """A zip archive, opened, and its checked members.

    Raises:
        DataError: as `list_members`; it is not a zip archive.
    """
    with _open(archive) as opened:
        if not isinstance(opened, zipfile.ZipFile):
            raise DataError(f"{archive} is a tar archive", expected="a zip archive", remedy="extract it")
        yield opened, list(_checked(archive, opened, limits))


class ZipImages:
    """Images in a zip archive, as a map-style data set of (bytes of the file, 0). It can be pickled for workers.

    Args:
        archive: the zip file.
        members: from `reading`, by index.
        max_bytes: that one image may unpack to.
    """

    def __init__(self, archive: Path, members: list[Member], max_bytes: int = 2**28) -> None:
        self.archive = archive
        self.names = [member.name for member in members]
        for member in members:
            if member.size > max_bytes:
                raise DataError(
                    f"{member.name} of {archive} unpacks to {member.size:,} bytes", expected=f"at most {max_bytes:,}"
                )
        self._zip: tuple[int, zipfile.ZipFile] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        # A process of its own opens the file again: a forked one would share the position in it.
        if self._zip is None or self._zip[0] != os.getpid():
            self._zip = (os.getpid(), zipfile.ZipFile(self.archive))
        return self._zip[1].read(self.names[index]), 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_zip": None}


@contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the archive's
        raise DataError(
            f"{archive} is damaged or truncated ({type(error).__name__}: {error})",
            expected="a whole zip or tar archive",
            remedy="compare its size with the publisher's and download it again",
        ) from error


@contextmanager
def _open(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        with archive.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise DataError(f"{archive} cannot be read: {error.strerror}") from error
    # The beginning decides: zipfile would find its directory at the end of a file that begins as something else.
    with _damage_named(archive), zipfile.ZipFile(archive) if head[:2] == b"PK" else tarfile.open(archive) as opened:
        yield opened


def _checked(archive: Path, opened: zipfile.ZipFile | tarfile.TarFile, limits: Limits) -> Iterator[Member]:
    """The regular files, each looked at before the next is read."""
    packed, total, seen = archive.stat().st_size, 0, set[str]()
    entries = opened.infolist() if isinstance(opened, zipfile.ZipFile) else opened
    for count, entry in enumerate(entries, start=1):
        name, size, is_folder = _described(archive, entry)
        total += size
        if count > limits.members:
            raise DataError(f"{archive} has more than {limits.members:,} members", remedy="do not use it")
        if total > limits.bytes or (total > BOMB_BYTES and total > packed * limits.ratio):
            raise DataError(
                f"{archive}, of {packed:,} bytes, unpacks to {total:,} bytes or more",
                expected=f"at most {limits.bytes:,} bytes, and {limits.ratio} times its size",
                remedy="do not use it",
            )
        if is_folder:
            continue
        if name in seen:
            raise DataError(f"{archive} holds {name!r} twice", remedy="do not use it")
        seen.add(name)
        yield Member(name, size, entry)


def _described(archive: Path, entry: zipfile.ZipInfo | tarfile.TarInfo) -> tuple[str, int, bool]:
    """Name, size when unpacked, whether it is a folder."""
    if isinstance(entry, zipfile.ZipInfo):
        name, size, is_folder = entry.orig_filename, entry.file_size, entry.is_dir()
        kind = entry.external_attr >> 28 if entry.create_system == 3 else 0  # Unix: the type is in the file's mode
        regular = kind in (0, 4, 8)
        if entry.flag_bits & 1:
            raise DataError(f"{name!a} of {archive} is encrypted", remedy="extract it with its password")
    else:
        name, size, is_folder = entry.name, entry.size, entry.isdir()
        regular = is_folder or entry.isreg()
    pure = PurePosixPath(name)
    bad = any(unicodedata.category(character) in ("Cc", "Cs") for character in name) or "\\" in name
    if bad or pure.is_absolute() or ".." in pure.parts or ":" in (pure.parts or ("",))[0]:
        raise DataError(
            f"{archive} has a member named {name!a}",
            expected="names in UTF-8 that stay in the folder",
            remedy="do not use it, or pack it again",
        )
    if not regular:
        raise DataError(
            f"{name!r} of {archive} is a link or a device", expected="files and folders", remedy="pack copies"
        )
    return str(pure), size, is_folder


def _write_members(archive: Path, folder: Path, limits: Limits) -> None:
    # Checked again on the way: the file may have changed since its members were listed.
    with _open(archive) as opened:
        for name, size, entry in _checked(archive, opened, limits):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = opened.open(entry) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(entry)
            assert source is not None, "a regular file"
            with source, target.open("xb") as file:
                if _copy(source, file, size) != size:
                    raise EOFError(f"{name} ends early")


def _copy(source: Any, target: BufferedIOBase, size: int) -> int:
    """At most `size` bytes and one chunk."""
    written = 0
    while written <= size and (data := source.read(CHUNK)):
        target.write(data)
        written += len(data)
    return written
