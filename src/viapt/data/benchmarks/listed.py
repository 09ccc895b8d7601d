"""Small text files of data sets: tables of ids, lists of paths. They are bounded, UTF-8, and stay in their folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from viapt.data.listing import composed
from viapt.data.sources import ImageSource, Item
from viapt.errors import DataError

MAX_TEXT_BYTES = 2**28


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A whole text file.

    Raises:
        DataError: missing, unreadable, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", remedy="is the archive fully extracted?") from error
    if len(content) > max_bytes:
        raise DataError(f"{path} is too large", expected=f"at most {max_bytes:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not UTF-8: line {line} contains the byte 0x{content[error.start]:02x}",
            expected="the publisher's file, unchanged",
            remedy="extract it again",
        ) from error


def read_table(path: Path) -> dict[str, str]:
    """The lines "id value" of a file, in order; a value may contain spaces.

    Raises:
        DataError: as `read_text`; a line without value, an id twice.
    """
    table: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not value.strip() or key in table:
            reason = "has no value" if not value.strip() else f"has the id {key!r} of another"
            raise DataError(
                f"line {number} of {path} {reason}: {line[:80]!r}",
                expected="lines `id value`, each id once",
                remedy="extract the file again",
            )
        table[key] = value.strip()
    return table


def below(folder: Path, relative: str, source: Path) -> tuple[str, Path]:
    """Key and path of a file that a list names.

    Args:
        folder: where it must be.
        relative: what the list calls it, with "/".
        source: the list, for errors.

    Raises:
        DataError: it would leave the folder, or is no name.
    """
    pure = PurePosixPath(relative)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\0" in relative:
        raise DataError(
            f"{source} names the image {relative!r}",
            expected=f"a path below {folder}",
            remedy="extract the file again, from the publisher's archive",
        )
    return composed(str(pure), f"an image in {source}"), folder / pure


def by_part(
    items: Iterable[Item], classes: tuple[str, ...], root: Path | None, description: str
) -> dict[str, ImageSource]:
    """Sources of the items of each official part; those of a release without parts are "all"."""
    parts: dict[str, list[Item]] = {}
    for item in items:
        parts.setdefault(item.part or "all", []).append(item)
    return {part: ImageSource(tuple(own), classes, root, description) for part, own in parts.items()}


def missing_in(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Those of some relative paths that a folder does not hold."""
    return tuple(name for name in names if not (folder / name).exists())
