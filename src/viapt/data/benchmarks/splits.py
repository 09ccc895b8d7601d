"""Which images of an original release train, validate and test: pure functions of sizes, labels, tracks and a seed.

A rule names, for each part of a task, the official part that it is cut from and the indices there. VTAB slices the
record order of TensorFlow Datasets: a pool may bring it along (`record_order`), and the images are then VTAB's own.
Where files do not tell it, the same slices are taken of an order drawn here with `SEED`: sizes are VTAB's, images are
not. `is_exact` says which is which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from viapt.errors import ConfigError, DataError, did_you_mean

SEED = 0
TRAIN, VAL = 800, 200
PARTS = "train", "val", "test"

Indices = Int64[np.ndarray, " indices"]


class Pool(NamedTuple):
    """An official part.

    Attributes:
        labels: of each image, in the release's order.
        tracks: what must stay together (the frames of a track), by name, or None.
        order: a permutation, the images' order in TensorFlow Datasets, or None where it is not known.
    """

    labels: Int64[np.ndarray, " n"]
    tracks: Sequence[str] | None = None
    order: Indices | None = None


Pools = Mapping[str, Pool]
Cut = dict[str, tuple[str, Indices]]
"""By part: the official part that it comes from, and indices there."""


@dataclass(frozen=True)
class SplitRule:
    """A rule.

    Attributes:
        official: the official parts that it cuts.
        exact: whether image by image it is the split of the publications; otherwise it is only where pools bring their
            order along, and else ours, of the same sizes.
        words: the rule, for people.
        cut: from official parts and a generator to parts.
    """

    official: tuple[str, ...]
    exact: bool
    words: str
    cut: Callable[[Pools, np.random.Generator], Cut]


def cut(name: str, pools: Pools, seed: int = SEED) -> Cut:
    """The parts of a task, by the rule of this name.

    Args:
        name: of `SPLITS`.
        pools: at least the official parts that the rule cuts.
        seed: of what is drawn; rules that draw nothing ignore it.

    Raises:
        ConfigError: no rule of this name.
        DataError: an official part is missing, or too small.
    """
    rule = split_rule(name)
    missing = [part for part in rule.official if part not in pools]
    if missing:
        raise DataError(f"the split {name!r} needs the official parts {', '.join(missing)}")
    parts = rule.cut(pools, np.random.Generator(np.random.PCG64(seed)))
    empty = [part for part in PARTS if len(parts[part][1]) == 0]
    if empty:
        sizes = ", ".join(f"{part} {len(pools[part].labels)}" for part in rule.official)
        raise DataError(f"the split {name!r} leaves {', '.join(empty)} without images: there are {sizes}")
    return parts


def is_exact(name: str, pools: Pools, *, own_order: bool = True) -> bool:
    """Whether the rule of this name gives these pools the images of the publications.

    Args:
        own_order: whether images come in the release's own order, of which "first-80" takes the first.
    """
    rule = split_rule(name)
    ordered = all(pools[part].order is not None for part in rule.official)
    return (rule.exact and (own_order or name == "official")) or (
        name.startswith("vtab-") and name not in OWN_PARTS and ordered
    )


def split_rule(name: str) -> SplitRule:
    """A rule by name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SPLITS:
        remedy = did_you_mean(name, SPLITS)
        raise ConfigError(f"There is no split rule {name!r}", expected=f"one of {', '.join(SPLITS)}", remedy=remedy)
    return SPLITS[name]


def _order(pool: Pool, rng: np.random.Generator) -> Indices:
    return rng.permutation(len(pool.labels)) if pool.order is None else pool.order


def _whole(pool: Pool) -> Indices:
    return np.arange(len(pool.labels))


def _official(pools: Pools, _: np.random.Generator) -> Cut:
    return {part: (part, _whole(pools[part])) for part in PARTS}


def _first_80(pools: Pools, _: np.random.Generator) -> Cut:
    everything = _whole(pools["train"])
    end = math.floor(0.8 * len(everything) + 1e-9)
    return {"train": ("train", everything[:end]), "val": ("train", everything[end:]), "test": _test(pools)}


def _drawn(share: int) -> Callable[[Pools, np.random.Generator], Cut]:
    """One `share`-th of the training images validates, rounded up; drawn by whole tracks where there are tracks."""

    def rule(pools: Pools, rng: np.random.Generator) -> Cut:
        pool = pools["train"]
        names = range(len(pool.labels)) if pool.tracks is None else pool.tracks
        units, unit_of = np.unique(np.asarray(names), return_inverse=True)
        held_out = rng.permutation(len(units))[: math.ceil(len(units) / share)]
        validates = np.isin(unit_of, held_out)
        return {
            "train": ("train", np.flatnonzero(~validates)),
            "val": ("train", np.flatnonzero(validates)),
            "test": _test(pools),
        }

    return rule


def _test(pools: Pools) -> tuple[str, Indices]:
    return "test", _whole(pools["test"])


def _within(tenths: int) -> Callable[[Pools, np.random.Generator], Cut]:
    """VTAB's train[:800] and train[x:x+200] at x = tenths/10 of the training images; the official test part."""

    def rule(pools: Pools, rng: np.random.Generator) -> Cut:
        order = _order(pools["train"], rng)
        start = tenths * len(order) // 10
        return {
            "train": ("train", order[:start][:TRAIN]),
            "val": ("train", order[start : start + VAL]),
            "test": _test(pools),
        }

    return rule


def _beside(pools: Pools, rng: np.random.Generator) -> Cut:
    """VTAB's train[:800] and validation[:200], where a validation part ships."""
    train, val = (_order(pools[part], rng) for part in ("train", "val"))
    return {"train": ("train", train[:TRAIN]), "val": ("val", val[:VAL]), "test": _test(pools)}


def _slices(train_end: int, val_end: int) -> Callable[[Pools, np.random.Generator], Cut]:
    """VTAB's splits in per cent of releases without any: 800 of the first, 200 of the second, all of the third."""

    def rule(pools: Pools, rng: np.random.Generator) -> Cut:
        order = _order(pools["all"], rng)
        first = -(-train_end * len(order) // 100)  # rounded up, as the sizes of SUN397 show
        second = first + (val_end - train_end) * len(order) // 100
        return {
            "train": ("all", order[:first][:TRAIN]),
            "val": ("all", order[first:second][:VAL]),
            "test": ("all", order[second:]),
        }

    return rule


def _norb(pools: Pools, rng: np.random.Generator) -> Cut:
    """SmallNORB: the official test part is halved; its first half validates."""
    train, test = (_order(pools[part], rng) for part in ("train", "test"))
    half = len(test) // 2
    return {"train": ("train", train[:TRAIN]), "val": ("test", test[:half][:VAL]), "test": ("test", test[half:])}


def _clevr(pools: Pools, rng: np.random.Generator) -> Cut:
    """CLEVR: as in `_within(9)`, tested on the official validation part, since test scenes are not published."""
    parts = _within(9)({"train": pools["train"], "test": pools["val"]}, rng)
    return parts | {"test": ("val", parts["test"][1])}


def _caltech(pools: Pools, rng: np.random.Generator) -> Cut:
    """Caltech-101: 30 of each class train, as in TensorFlow Datasets, of which VTAB's slices; the others test."""
    labels = pools["all"].labels
    order = rng.permutation(len(labels))
    groups = [order[labels[order] == label] for label in np.unique(labels)]
    train = rng.permutation(np.concatenate([group[:30] for group in groups]))
    start = 9 * len(train) // 10
    return {
        "train": ("all", train[:start][:TRAIN]),
        "val": ("all", train[start : start + VAL]),
        "test": ("all", np.sort(np.concatenate([group[30:] for group in groups]))),
    }


SPLITS = {
    "official": SplitRule(("train", "val", "test"), True, "the official parts", _official),
    "first-80": SplitRule(("train", "test"), True, "the first 80 % of the official training part train", _first_80),
    "drawn-80": SplitRule(
        ("train", "test"), False, f"a fifth of the training part, or of its tracks, drawn with seed {SEED}", _drawn(5)
    ),
    "drawn-90": SplitRule(
        ("train", "test"), False, f"a tenth of the training part, drawn with seed {SEED}", _drawn(10)
    ),
    "vtab-90": SplitRule(("train", "test"), False, "train[:800] and train[90%:][:200]", _within(9)),
    "vtab-80": SplitRule(("train", "test"), False, "train[:800] and train[80%:][:200]", _within(8)),
    "vtab-val": SplitRule(("train", "val", "test"), False, "train[:800] and val[:200]", _beside),
    "vtab-sun": SplitRule(("all",), False, "800 of 70 %, 200 of 10 %, and 20 %", _slices(70, 80)),
    "vtab-60-20-20": SplitRule(("all",), False, "800 of 60 %, 200 of 20 %, and 20 %", _slices(60, 80)),
    "vtab-80-10-10": SplitRule(("all",), False, "800 of 80 %, 200 of 10 %, and 10 %", _slices(80, 90)),
    "vtab-norb": SplitRule(("train", "test"), False, "train[:800], test[:50%][:200] and test[50%:]", _norb),
    "vtab-kitti": SplitRule(("train", "val", "test"), False, "train[:800] and val[:200] of parts by video", _beside),
    "vtab-clevr": SplitRule(("train", "val"), False, "train[:800], train[90%:][:200] and val", _clevr),
    "vtab-caltech": SplitRule(("all",), False, "of 30 a class 800 and 200, and all others", _caltech),
}

OWN_PARTS = ("vtab-caltech", "vtab-sun")
"""Rules of which TensorFlow Datasets draws or lists even the test part by itself."""
