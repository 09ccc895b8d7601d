"""The order in which TensorFlow Datasets keeps the records of a data set, found from the original files.

VTAB takes its 800 + 200 training images as slices of that order. It is no order of storage but a shuffle by name: each
record has a key (its number, or what its file is called), and records are sorted by the MD5 of the part's name
followed by the key. Knowing the keys, an original release therefore yields the very images of VTAB-1k. That is so for
the releases in `KEYS`; the parts of Caltech-101 and SUN397 are drawn or listed there in ways that files do not tell.

Source: tensorflow_datasets 4.9.10, core/{hashing,shuffle,split_builder}.py, and the keys in the builders of each data
set. In CIFAR-10's documentation the first records of "train" are numbers 16399, 1680, 47917, 17307 and 27051.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Int64

PART_NAMES = {"train": "train", "val": "validation", "test": "test", "all": "train"}
"""What TensorFlow Datasets calls our official parts; a release without parts is all "train" there."""

PCAM_NAMES = {"train": "train", "val": "valid", "test": "test"}


def _number(part: str, number: int, key: str) -> str:
    return str(number)


def _file(part: str, number: int, key: str) -> str:
    return PurePosixPath(key).name


def _stem(part: str, number: int, key: str) -> str:
    return PurePosixPath(key).stem


def _class_and_file(part: str, number: int, key: str) -> str:
    return "/".join(PurePosixPath(key).parts[-2:])


def _class_joined_to_file(part: str, number: int, key: str) -> str:
    return "_".join(PurePosixPath(key).parts[-2:])


def _below_part(part: str, number: int, key: str) -> str:
    return key.partition("/")[2]


def _pcam(part: str, number: int, key: str) -> str:
    return f"{PCAM_NAMES[part]}_{number}"


KEYS: dict[str, Callable[[str, int, str], str]] = {
    "cifar10": _number,
    "cifar100": _number,
    "clevr": _file,
    "dmlab": _below_part,
    "dsprites": _number,
    "dtd": _class_and_file,
    "eurosat": _class_joined_to_file,
    "flowers102": _file,
    "kitti": _file,
    "patch-camelyon": _pcam,
    "pets": _file,
    "resisc45": _class_joined_to_file,
    "retinopathy": _stem,
    "smallnorb": _number,
    "svhn": _number,
}
"""By release: from official part, number in the release's own order, and our key, to the record's key."""


def record_order(release: str, part: str, keys: Sequence[str]) -> Int64[np.ndarray, " n"] | None:
    """Which image of an official part comes first, second, ... in TensorFlow Datasets; None where files do not tell.

    Args:
        release: a key of `RELEASES`.
        part: "train", "val", "test", or "all" of a release without parts.
        keys: of the images, in the release's own order: paths that end in CLASS/FILE, where there are files.
    """
    if release not in KEYS:
        return None
    name = KEYS[release]
    salted = hashlib.md5(PART_NAMES[part].encode(), usedforsecurity=False)

    def digest(number: int) -> bytes:
        copy = salted.copy()
        copy.update(name(part, number, keys[number]).encode())
        return copy.digest()

    return np.array(sorted(range(len(keys)), key=digest), np.int64)
