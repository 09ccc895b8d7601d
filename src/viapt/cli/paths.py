"""Which files the arguments of a command mean: files, folders, patterns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from viapt.data.streams import files_of
from viapt.errors import DataError


def image_files(arguments: Iterable[str]) -> list[Path]:
    """Files in the order of the arguments, each once; see `files_of`.

    Raises:
        DataError: a folder or pattern without images.
    """
    files: dict[Path, None] = {}
    for argument in arguments:
        found = list(files_of(argument))
        if not found:
            raise DataError(
                f"no images in {argument}", expected="image files, folders of them, or patterns like '*.jpg'"
            )
        files |= dict.fromkeys(found)
    return list(files)
