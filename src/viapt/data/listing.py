"""What a folder, a table or a data set says it holds, before anything is decoded."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from viapt.errors import DataError

PARTS = ("train", "val", "test")
PART_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class Record(NamedTuple):
    """One labelled image.

    Attributes:
        key: what it is called wherever the data lie: the path below the folder, with "/" and composed accents (NFC).
        label: the name of its class.
        part: "train", "val" or "test" where the data say so, otherwise "".
        image: anything that `read_image` takes, or a `LazyImage`.
    """

    key: str
    label: str
    part: str
    image: Any


@dataclass
class Listing:
    """All records of some data.

    Attributes:
        classes: names that the data declare, in order, with or without images; None when only the records tell.
        ignored: how many files were left out, by reason.
        hint: what to do if this turns out to be a single class.
    """

    records: list[Record] = field(default_factory=list)
    classes: list[str] | None = None
    ignored: Counter[str] = field(default_factory=Counter)
    hint: str = ""


def sort_classes(names: Iterable[str]) -> list[str]:
    """Distinct names in an order that every machine agrees on: by number if all are numbers, else by code point."""
    distinct = set(names)
    if all(name.isascii() and name.isdigit() for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def composed(name: str, what: str) -> str:
    """`name` in Unicode's composed form, so that a folder copied from another system keeps its names.

    Raises:
        DataError: it is not valid Unicode, or contains control characters.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise DataError(
            f"the name {name!a} of {what} contains bytes that are no UTF-8, or control characters",
            remedy="rename it",
        )
    return unicodedata.normalize("NFC", name)


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy for a misspelt name, or nothing."""
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""
