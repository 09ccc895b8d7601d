"""Which pictures of a packaged task train, validate and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int64

from viapt.data.task import PackagedTask
from viapt.errors import ConfigError

TRAIN, VAL, TEST = 800, 200, 2000
FOLDS = 5
FEW = 2000
"""Pictures below which a task is cross-validated."""

Parts = dict[str, Int64[np.ndarray, " indices"]]


def standard_split(task: PackagedTask, seed: int = 0) -> Parts:
    """The suite's protocol: 800 pictures train, 200 validate and up to 2,000 test, drawn by `split` with `seed`.

    A task of fewer than 2,000 pictures is cross-validated instead: fold `seed % 5` of one partition, so that seeds 0
    to 4 test each picture once.
    """
    if len(task.labels) < FEW:
        return folds(task)[seed % FOLDS]
    return split(task, TRAIN, VAL, TEST, seed)


def folds(task: PackagedTask, n: int = FOLDS, seed: int = 0) -> list[Parts]:
    """A stratified partition in `n` pieces; fold k tests on piece k, validates on the next and trains on the others.

    Pieces differ by at most one picture in each class, and by at most one in all.

    Raises:
        ConfigError: fewer than 3 pieces, or a class with fewer pictures than pieces.
    """
    counts = np.bincount(task.labels, minlength=len(task.classes))
    if n < 3 or counts.min() < n:
        raise ConfigError(
            f"{n} folds of task {task.name!r}, whose smallest class has {counts.min()} pictures",
            expected="at least 3 folds, and a picture of each class in each",
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    dealt = np.concatenate([rng.permutation(np.flatnonzero(task.labels == label)) for label in range(len(counts))])
    pieces = [np.sort(dealt[start::n]) for start in range(n)]
    return [
        {
            "train": np.sort(np.concatenate([pieces[(k + ahead) % n] for ahead in range(2, n)])),
            "val": pieces[(k + 1) % n],
            "test": pieces[k],
        }
        for k in range(n)
    ]


def split_hash(task: PackagedTask, parts: Mapping[str, Int64[np.ndarray, " indices"]]) -> str:
    """SHA-256, as "sha256:<hex>", of the pictures and class names of each part, whatever their order and index."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        pictures = [
            hashlib.sha256(np.ascontiguousarray(task.images[i]).data).digest()
            + hashlib.sha256(task.classes[task.labels[i]].encode()).digest()
            for i in parts[name]
        ]
        for field in (name.encode(), b"".join(sorted(pictures))):
            digest.update(len(field).to_bytes(8, "big") + field)
    return f"sha256:{digest.hexdigest()}"


def split(task: PackagedTask, train: int = TRAIN, val: int = VAL, test: int = TEST, seed: int = 0) -> Parts:
    """Disjoint, stratified, sorted indices "train", "val" and "test", drawn with `seed`.

    The official test part is respected where there is one. The test split takes what is left where that is less than
    `test`; it and the validation split do not depend on `train` otherwise.

    Raises:
        ConfigError: a size is negative, or fewer than train + val pictures are there.
    """
    if min(train, val, test) < 0:
        raise ConfigError(f"split sizes {train}, {val}, {test}", expected="numbers of pictures, 0 or more")
    everything = np.arange(len(task.labels))
    official = task.official_test
    pool = everything if official is None else everything[~official]
    if train + val > len(pool):
        raise ConfigError(
            f"{train} + {val} pictures to train and validate on, of {len(pool)} in task {task.name!r}",
            expected=f"at most {len(pool)} together",
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    if official is None:
        chosen, pool = _draw(task.labels, pool, min(test, len(pool) - train - val), rng)
    else:
        held_out = everything[official]
        chosen, _ = _draw(task.labels, held_out, min(test, len(held_out)), rng)
    validation, pool = _draw(task.labels, pool, val, rng)
    training, _ = _draw(task.labels, pool, train, rng)
    return {"train": training, "val": validation, "test": chosen}


def _draw(
    labels: Int64[np.ndarray, " n"], pool: Int64[np.ndarray, " pool"], size: int, rng: np.random.Generator
) -> tuple[Int64[np.ndarray, " size"], Int64[np.ndarray, " rest"]]:
    """`size` indices out of `pool`, each class by its share (largest remainders), and the indices that are left."""
    members = [rng.permutation(pool[labels[pool] == label]) for label in range(labels.max(initial=-1) + 1)]
    shares = [divmod(size * len(group), max(len(pool), 1)) for group in members]
    quotas = [quota for quota, _ in shares]
    by_remainder = sorted(range(len(shares)), key=lambda label: -shares[label][1])
    for label in by_remainder[: size - sum(quotas)]:
        quotas[label] += 1
    empty = np.empty(0, np.int64)
    chosen = np.concatenate([empty, *(group[:quota] for group, quota in zip(members, quotas, strict=True))])
    return np.sort(chosen), np.setdiff1d(pool, chosen)
