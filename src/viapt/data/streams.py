"""Images without labels, as many as there are, one after the other: files, folders, patterns, lists and tar shards.

Nothing is decoded here, and nothing is unpacked: an image in a tar file is a range of its bytes, so that any process
that sees the file can read it, in any order.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from PIL import Image

from viapt.data.braces import expanded
from viapt.data.images import SUFFIXES, looks_like_image, read_image
from viapt.errors import DataError

LISTS, SHARDS = (".txt", ".lst"), (".tar",)
MAX_BYTES = 2**28  # of an encoded image in a shard
MAX_LINE = 2**16  # characters of a line of a list
MAX_HEADER = 2**20  # bytes of a header in a shard
BLOCK = 512  # bytes of which a tar file is made
FEW = 5  # missing shards that are named
EXPECTED = "image files, folders of them, patterns like '*.jpg', lists (*.txt) or WebDataset shards (*.tar)"

Found = TypeVar("Found")


class Reference(NamedTuple):
    """Where an image is.

    Attributes:
        name: a path, or "shard.tar::member".
        path: the file.
        start, size: its bytes in a shard; (0, -1): the whole file.
    """

    name: str
    path: str
    start: int = 0
    size: int = -1

    def read(self) -> Image.Image:
        """Decode it.

        Raises:
            DataError: as `read_image`; or it is a member of more than `MAX_BYTES`, or its shard is cut short.
        """
        if self.size < 0:
            return read_image(Path(self.path), name=self.name)
        if self.size > MAX_BYTES:
            raise DataError(f"{self.name}: has {self.size:,} bytes", expected=f"at most {MAX_BYTES:,}")
        try:
            with Path(self.path).open("rb") as shard:
                shard.seek(self.start)
                content = shard.read(self.size)
        except OSError as error:
            raise DataError(f"{self.name}: {error.strerror or error}") from error
        if len(content) < self.size:
            raise DataError(f"{self.name}: its shard ends after {len(content):,} of {self.size:,} bytes")
        return read_image(content, name=self.name)


def references(arguments: Iterable[str]) -> Iterator[Reference]:
    """Images in the order of the arguments, found as they are asked for.

    Folders and patterns are sorted by name, lists and shards keep their order. What two arguments name is named twice.
    Shards that are named, by themselves, with braces or in a list, have to be there before the first image is given.

    Raises:
        DataError: an argument without images; shards that are not there; a list or shard that cannot be read.
    """
    arguments = list(arguments)
    for argument in arguments:
        check_shards(argument)
    for argument in arguments:
        yield from some(images_of(argument), argument)


def images_of(argument: str) -> Iterator[Reference]:
    """Images of one argument; each name that its braces make has files of its own."""
    for name in expanded(argument):
        for path in some(files_of(name, image_or_shard), name):
            yield from inside(path)


def some(found: Iterable[Found], argument: str) -> Iterator[Found]:
    """What was found.

    Raises:
        DataError: at the end, if it was nothing.
    """
    nothing = True
    for one in found:
        nothing = False
        yield one
    if nothing:
        raise DataError(f"no images in {argument}", expected=EXPECTED)


def check_shards(argument: str) -> None:
    """Refuse an argument that names shards which are not there: it is found out now, not after hours of work.

    Raises:
        DataError: it names the first of them.
    """
    named = (path for path in map(Path, expanded(argument)) if not path.is_dir() and not is_pattern(path))
    files = (file for path in named for file in (lines(path) if path.suffix.lower() in LISTS else [path]))
    shards = [file for file in files if file.suffix.lower() in SHARDS]
    if missing := [text(shard) for shard in shards if not shard.exists()]:
        more = ", and so on" if len(missing) > FEW else ""
        raise DataError(
            f"{argument}: {len(missing):,} of {len(shards):,} shards are not there: {', '.join(missing[:FEW])}{more}",
            expected="all shards that are named",
        )


def fingerprint(images: Sequence[Reference]) -> bytes:
    """SHA-256 of what can be known of images without reading them: names, places, sizes and times of change."""
    stamps = {path: stamp(path) for path in {image.path for image in images}}
    known = [[image.name, image.start, image.size, *stamps[image.path]] for image in images]
    return hashlib.sha256(json.dumps(known).encode()).digest()


def stamp(path: str) -> list[int]:
    """Size of a file and time of its last change; nothing if it is not there."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []
    return [found.st_size, found.st_mtime_ns]


def files_of(argument: str, wanted: Callable[[Path], bool] = looks_like_image) -> Iterator[Path]:
    """The files that an argument means: it is a file, a folder, or a pattern, which knows `**`.

    A file that is named counts whatever it is. Of a folder all that is `wanted` below it counts, hidden files and links
    that leave the folder left out.
    """
    path = Path(argument)
    if path.is_dir():
        yield from below(path, wanted)
    elif is_pattern(path):
        matched = map(Path, sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207 - absolute
        yield from (match for match in matched if match.is_file() and wanted(match))
    else:
        yield path


def is_pattern(path: Path) -> bool:
    """Whether a name stands for what it matches; a file that is there stands for itself."""
    return glob.has_magic(str(path)) and not path.exists()


def below(folder: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """Files under a folder, in order of name."""
    root = folder.resolve()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            inside = not path.is_symlink() or path.resolve().is_relative_to(root)
            if not name.startswith(".") and inside and path.is_file() and wanted(path):
                yield path


def image_or_shard(path: Path) -> bool:
    """What counts in a folder or pattern; a list has to be named, for many text files are none."""
    return path.suffix.lower() in SHARDS or looks_like_image(path)


def inside(path: Path) -> Iterator[Reference]:
    """The image that a file is, or those in a shard, or in a list of images and shards."""
    if path.suffix.lower() in LISTS:
        for line in lines(path):
            yield from members(line) if line.suffix.lower() in SHARDS else [Reference(text(line), str(line))]
    elif path.suffix.lower() in SHARDS:
        yield from members(path)
    else:
        yield Reference(text(path), str(path))


def lines(path: Path) -> Iterator[Path]:
    """One path a line, relative ones relative to the list; empty lines do not count.

    Raises:
        DataError: it cannot be read, is not UTF-8, or has a line of more than `MAX_LINE` characters.
    """
    try:
        with path.open(encoding="utf-8") as file:
            while line := file.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise DataError(
                        f"{path} has a line of more than {MAX_LINE:,} characters", expected="one path a line"
                    )
                if name := line.rstrip("\r\n"):
                    yield path.parent / name
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})", expected="a list of paths, in UTF-8") from error


def members(path: Path) -> Iterator[Reference]:
    """Images in a tar file, known by their suffixes, in its order; other members, links and devices do not count.

    Raises:
        DataError: it is no tar file, is compressed, or is damaged.
    """
    try:
        with Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # else all of them stay in memory
                regular = member.isreg() and not member.issparse()
                if regular and PurePosixPath(member.name).suffix.lower() in SUFFIXES:
                    yield Reference(text(f"{path}::{member.name}"), str(path), member.offset_data, member.size)
            file.seek(archive.offset)
            rest = file.read(BLOCK)
            if rest.strip(b"\0") or len(rest) not in (0, BLOCK):  # where tarfile stops without a word
                raise tarfile.ReadError(f"damaged at byte {archive.offset:,}")
    except (tarfile.TarError, OSError, ValueError) as error:
        raise DataError(
            f"{path} is no tar file that can be read ({error})",
            expected="a tar file, whole and not compressed, as WebDataset writes them",
        ) from error


class Headers(io.FileIO):
    """A file of which nothing large is read: the headers of a tar file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes, more than {MAX_HEADER}")
        return super().read(size)


def text(name: str | Path) -> str:
    """A name as UTF-8 can hold it: bytes that are none are escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()
