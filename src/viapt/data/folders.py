"""Image folders: one folder per class, or train/val/test folders of such folders.

Below a class folder every image counts, however deep. Hidden entries and files that are no images are ignored and
counted. Links are followed as long as they stay inside the folder; those that leave it are counted, never followed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from viapt.data.images import looks_like_image
from viapt.data.listing import PART_NAMES, Listing, Record, composed, sort_classes
from viapt.errors import DataError


class _Entry(NamedTuple):
    name: str
    real: Path  # with links resolved, so that nobody can point it elsewhere later


def read_folder(folder: Path) -> Listing:
    """List an image folder.

    It is split when it holds a train folder beside a val (or valid, validation) or test folder, or nothing but folders
    of these names, each with folders inside: a class may be called "train".

    Raises:
        DataError: no class folders, a name that is not valid Unicode, two folders for one part or one class.
    """
    root = folder.resolve()
    listing = Listing()
    folders = _class_folders(root, root, listing.ignored)
    if not folders:
        raise DataError(f"{folder} holds no class folders", expected="one folder per class, with its images inside")
    parts = {entry: PART_NAMES[entry.name.lower()] for entry in folders if entry.name.lower() in PART_NAMES}
    parts = {entry: part for entry, part in parts.items() if _class_folders(entry.real, root, Counter())}
    split = len(parts) == len(folders) or ("train" in parts.values() and len(parts) > 1)
    if not split:
        _add_classes(listing, folders, root, "", "")
        if len(folders) == 1 and len(_class_folders(folders[0].real, root, Counter())) > 1:
            listing.hint = f"did you mean {folder / folders[0].name}?"
        return listing
    if len(set(parts.values())) < len(parts):
        names = ", ".join(entry.name for entry in parts)
        raise DataError(f"{folder} holds several folders for one part: {names}", expected="train, val and test at most")
    listing.ignored["folders beside train, val and test"] += len(folders) - len(parts)
    for entry, part in parts.items():
        _add_classes(listing, _class_folders(entry.real, root, listing.ignored), root, f"{entry.name}/", part)
    listing.ignored = +listing.ignored
    return listing


def _class_folders(folder: Path, root: Path, ignored: Counter[str]) -> list[_Entry]:
    entries = list(_visible(folder, root, ignored))
    ignored["files beside the class folders"] += sum(not entry.real.is_dir() for entry in entries)
    return [entry for entry in entries if entry.real.is_dir()]


def _add_classes(listing: Listing, folders: list[_Entry], root: Path, prefix: str, part: str) -> None:
    names = [composed(entry.name, f"a folder in {root / prefix}") for entry in folders]
    if len(set(names)) < len(names):
        raise DataError(
            f"{root / prefix} holds two folders whose names differ only in how accents are encoded: {names}"
        )
    for name, entry in zip(names, folders, strict=True):
        for key, real in _images(entry.real, root, f"{prefix}{name}/", listing.ignored, (entry.real,)):
            listing.records.append(Record(key, name, part, real))
    if part in ("", "train"):
        listing.classes = sort_classes(names)
    listing.ignored = +listing.ignored


def _images(
    folder: Path, root: Path, prefix: str, ignored: Counter[str], above: tuple[Path, ...]
) -> Iterator[tuple[str, Path]]:
    """Keys and real paths of the images under `folder`, in order of name; `above` are the folders on the way there."""
    for name, real in _visible(folder, root, ignored):
        key = prefix + composed(name, f"a file in {folder}")
        if real.is_dir():
            if real in above:
                ignored["links back to a folder above them"] += 1
            else:
                yield from _images(real, root, f"{key}/", ignored, (*above, real))
        elif not real.is_file():
            ignored["pipes and devices"] += 1
        elif looks_like_image(folder / name):
            yield key, real
        else:
            ignored[f"not images ({Path(name).suffix.lower() or 'no suffix'})"] += 1


def _visible(folder: Path, root: Path, ignored: Counter[str]) -> Iterator[_Entry]:
    """What lies in a (resolved) folder, in order of name, without what is hidden or outside the root."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: normalize("NFC", entry.name))
    except PermissionError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            ignored["hidden"] += 1
        elif not entry.is_symlink():
            yield _Entry(entry.name, path)
        elif not path.exists():
            ignored["broken links"] += 1
        elif not path.resolve().is_relative_to(root):
            ignored["links that leave the folder"] += 1
        else:
            yield _Entry(entry.name, path.resolve())
