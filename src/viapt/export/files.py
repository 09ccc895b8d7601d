"""Files of an export: all in place or none.

They are written into a folder beside the place where they will lie, and renamed when they are whole and checked. The
file that is opened comes last, so that without it nothing can be opened; where it replaces one, that one goes first,
so that it is never found with the other's companions. Two processes must not export to one name at the same time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from viapt.checkpoint import sync
from viapt.errors import ArtifactError
from viapt.exported import sha256


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A folder to write `path.name` and its companions into; they move to their places if all goes well.

    Raises:
        ArtifactError: the disk refuses.
    """
    folder = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        yield folder
        put(folder, path)
    except OSError as error:
        raise ArtifactError(
            f"The export cannot be written to {path} ({error})", remedy="make room there, or choose another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(folder: Path, path: Path) -> None:
    """Rename everything in a folder to beside `path`, the file of that name last."""
    companions = companions_of(folder, folder / path.name)
    if companions:
        path.unlink(missing_ok=True)
    for companion in companions:
        companion.replace(path.with_name(companion.name))
    (folder / path.name).replace(path)
    sync(path.parent)


def companions_of(folder: Path, file: Path) -> list[Path]:
    """What was written beside a file."""
    return sorted(found for found in folder.iterdir() if found != file)


def sums(folder: Path, file: Path) -> dict[str, str]:
    """SHA-256 of each companion of a file, by name."""
    return {companion.name: sha256(companion) for companion in companions_of(folder, file)}
