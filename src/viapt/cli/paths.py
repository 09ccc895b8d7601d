"""Which files the arguments of a command mean: files, folders, patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from viapt.data.images import looks_like_image
from viapt.errors import DataError


def image_files(arguments: Iterable[str]) -> list[Path]:
    """Files in the order of the arguments, each once; folders and patterns are sorted.

    A file that is named counts whatever it is. Of a folder all images below it count, hidden ones and links that leave
    the folder left out. Patterns know `**`.

    Raises:
        DataError: a folder or pattern without images.
    """
    files: dict[Path, None] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = list(below(path))
        elif glob.has_magic(argument) and not path.exists():
            matched = map(Path, sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207 - absolute
            found = [match for match in matched if match.is_file() and looks_like_image(match)]
        else:
            found = [path]
        if not found:
            raise DataError(
                f"no images in {argument}", expected="image files, folders of them, or patterns like '*.jpg'"
            )
        files |= dict.fromkeys(found)
    return list(files)


def below(folder: Path) -> Iterator[Path]:
    """Images under a folder, in order of name."""
    root = folder.resolve()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            inside = not path.is_symlink() or path.resolve().is_relative_to(root)
            if not name.startswith(".") and inside and path.is_file() and looks_like_image(path):
                yield path
