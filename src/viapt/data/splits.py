"""Which images train, which validate and which test: drawn by hash, class by class, and kept with the run.

Within a class, images are put in the order of SHA-256(seed, key); the first ones test, the next ones validate, the rest
train. So the split depends on names alone, not on the order of files, the machine or a library's generator; what
happens in one class never moves an image of another; and a new file moves at most a few of its own class.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from viapt.data.listing import PARTS
from viapt.errors import ConfigError, DataError


@dataclass(frozen=True)
class Split:
    """The keys of each part, and how they were drawn.

    Attributes:
        train, val, test: keys, in the order of the data.
        drawn: the parts that were drawn, with their size as it was asked for; empty when the data came split.
        seed: of the drawing; None when nothing was drawn.
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    drawn: tuple[tuple[str, float | int], ...] = ()
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with a hash of each part; `from_dict` reads it back and checks the hashes."""
        parts = {part: {"hash": hash_keys(getattr(self, part)), "keys": list(getattr(self, part))} for part in PARTS}
        return {"seed": self.seed, "drawn": dict(self.drawn), "parts": parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Split:
        """Inverse of `to_dict`.

        Raises:
            DataError: a field is missing or of the wrong type, a hash does not fit its keys, or two parts share one.
        """
        try:
            stored = {part: (tuple(values["parts"][part]["keys"]), values["parts"][part]["hash"]) for part in PARTS}
            split = cls(
                **{part: keys for part, (keys, _) in stored.items()},
                drawn=tuple(dict(values["drawn"]).items()),
                seed=values["seed"],
            )
            changed = [part for part, (keys, digest) in stored.items() if hash_keys(keys) != digest]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"a stored split is damaged ({type(error).__name__}: {error})") from error
        if changed:
            raise DataError(f"a stored split is damaged: the keys of {', '.join(changed)} do not fit their hash")
        split.positions(split.train + split.val + split.test)
        return split

    def positions(self, keys: Sequence[str]) -> dict[str, list[int]]:
        """Indices into `keys` by part, in the order of `keys`; keys that the split does not know are left out.

        Raises:
            DataError: a key of the split is not among `keys`, or a key is in two parts.
        """
        part_of = {key: part for part in PARTS for key in getattr(self, part)}
        found: dict[str, list[int]] = {part: [] for part in PARTS}
        for index, key in enumerate(keys):
            if key in part_of:
                found[part_of[key]].append(index)
        for part, indices in found.items():
            missing = set(getattr(self, part)) - {keys[index] for index in indices}
            if missing or len(indices) != len(getattr(self, part)):
                raise DataError(
                    f"the stored split does not fit the data: {len(missing)} images of its part {part!r} are missing"
                    + (f", such as {min(missing)}" if missing else "; some are there twice"),
                    remedy="give the data that the split was made of, or draw a new one",
                )
        return found


def hash_keys(keys: Sequence[str]) -> str:
    """A set of keys, whatever their order, as "sha256:<hex>"."""
    digest = hashlib.sha256()
    for key in sorted(keys):
        digest.update(hashlib.sha256(key.encode()).digest())
    return f"sha256:{digest.hexdigest()}"


def split_items(
    keys: Sequence[str],
    labels: Sequence[Hashable],
    *,
    val: float | int = 0.15,
    test: float | int = 0.15,
    seed: int = 0,
) -> Split:
    """Draw a stratified split.

    A fraction in [0, 1) is a share of each class, rounded to the nearest image, but at least one where the class has
    enough for every part that is wanted; a class of one or two images serves training first, then validation. An
    integer is a number of images of each class.

    Args:
        keys: distinct names of the items, such as paths below the data's folder.
        labels: the class of each.
        val: how much of each class validates.
        test: how much of each class tests; the rest trains.
        seed: another seed gives another split.

    Raises:
        ConfigError: a size is negative, or fractions leave nothing to train on.
        DataError: keys repeat, or a class has too few images for the counts that were asked for.
    """
    _check(keys, labels, val, test)
    classes: dict[Hashable, list[str]] = {}
    for key, label in zip(keys, labels, strict=True):
        classes.setdefault(label, []).append(key)
    part_of: dict[str, str] = {}
    for label, members in classes.items():
        val_count, test_count = _sizes(len(members), val, test, label)
        members = sorted(members, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
        part_of |= dict.fromkeys(members, "train")
        part_of |= dict.fromkeys(members[:test_count], "test")
        part_of |= dict.fromkeys(members[test_count : test_count + val_count], "val")
    parts = {part: tuple(key for key in keys if part_of[key] == part) for part in PARTS}
    return Split(**parts, drawn=tuple((part, size) for part, size in (("val", val), ("test", test)) if size), seed=seed)


def _check(keys: Sequence[str], labels: Sequence[Hashable], val: float | int, test: float | int) -> None:
    if len(keys) != len(labels):
        raise DataError(f"{len(keys)} keys and {len(labels)} labels")
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise DataError(f"{repeated[0]} is listed {Counter(keys)[repeated[0]]} times", expected="each image once")
    fractions = [size for size in (val, test) if isinstance(size, float)]
    if min(val, test) < 0 or not all(math.isfinite(size) for size in fractions) or sum(fractions) >= 1:
        raise ConfigError(
            f"split sizes val {val}, test {test}",
            expected="fractions that add up to less than 1, or numbers of images per class",
        )


def _sizes(count: int, val: float | int, test: float | int, label: Hashable) -> tuple[int, int]:
    """How many of a class's `count` images validate and test; at least one is left to train."""
    wanted = {"val": val, "test": test}
    fixed = {part: size for part, size in wanted.items() if isinstance(size, int)}
    spare = count - 1 - sum(fixed.values())
    if spare < 0:
        raise DataError(
            f"class {label!r} has {count} images",
            expected=f"at least {1 + sum(fixed.values())}: one to train, and {fixed}",
        )
    sizes = {"val": 0, "test": 0} | fixed
    for part, size in wanted.items():
        if isinstance(size, float) and size > 0:
            sizes[part] = min(spare, max(1, math.floor(count * size + 0.5)))
            spare -= sizes[part]
    return sizes["val"], sizes["test"]
