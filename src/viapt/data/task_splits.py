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

    First `reserved` pictures are set aside for tests, whatever the sizes: so with one seed no size lets a picture that
    tests elsewhere train or validate. The test part is the beginning of an order of the reserve, or all of it where
    that is less than `test`; the official test part, where there is one, continues it. The validation part does not
    depend on `train`.

    Raises:
        ConfigError: a size is negative, or fewer than train + val pictures are there besides the reserve.
    """
    if min(train, val, test) < 0:
        raise ConfigError(f"split sizes {train}, {val}, {test}", expected="numbers of pictures, 0 or more")
    besides = to_learn_from(task)
    if train + val > besides:
        raise ConfigError(
            f"{train} + {val} pictures to train and validate on, of {besides} in task {task.name!r} besides those "
            f"that are reserved for tests",
            expected=f"at most {besides} together",
        )
    rng, own = (np.random.Generator(np.random.PCG64(entropy)) for entropy in (seed, [seed, 1]))
    everything, official = np.arange(len(task.labels)), task.official_test
    reserve, rest = _draw(task.labels, everything if official is None else everything[official], reserved(task), rng)
    pool = rest if official is None else everything[~official]
    order = _in_order(task.labels, reserve, own)
    if official is not None and test > len(order):
        order = np.concatenate([order, _in_order(task.labels, rest, own)])
    validation, pool = _draw(task.labels, pool, val, rng)
    training, _ = _draw(task.labels, pool, train, rng)
    return {"train": training, "val": validation, "test": np.sort(order[:test])}


def reserved(task: PackagedTask) -> int:
    """How many pictures are set aside for tests: 2,000, or as many of the official test part where there is one.

    A smaller task leaves 1,000 pictures to train and validate on, but reserves a third of its pictures at least.
    """
    if task.official_test is not None:
        return min(TEST, int(task.official_test.sum()))
    count = len(task.labels)
    return min(TEST, max(count - TRAIN - VAL, count // 3))


def to_learn_from(task: PackagedTask) -> int:
    """How many pictures there are to train and validate on."""
    if task.official_test is not None:
        return int((~task.official_test).sum())
    return len(task.labels) - reserved(task)


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


def _in_order(
    labels: Int64[np.ndarray, " n"], pool: Int64[np.ndarray, " pool"], rng: np.random.Generator
) -> Int64[np.ndarray, " pool"]:
    """`pool` in such an order that every beginning of it holds each class by its share, rounded up or down.

    The next class is that of the most pictures for each place that it would then have, among those whose share is not
    full yet: the quota method of Balinski and Young (1975).
    """
    members = [rng.permutation(pool[labels[pool] == label]) for label in range(labels.max(initial=-1) + 1)]
    counts = np.array([len(group) for group in members], np.int64)
    taken = np.zeros_like(counts)
    order = np.empty_like(pool)
    for place in range(len(pool)):
        short = taken * len(pool) < (place + 1) * counts
        label = int(np.argmax(np.where(short, counts / (taken + 1), 0)))
        order[place] = members[label][taken[label]]
        taken[label] += 1
    return order
