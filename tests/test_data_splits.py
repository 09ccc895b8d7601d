"""Splits: disjoint, stratified, reproducible, and untouched by what happens in other classes."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viapt.data.listing import PARTS
from viapt.data.splits import Split, hash_keys, split_items
from viapt.errors import ConfigError, DataError

classes = st.dictionaries(
    st.text("abcé /.", min_size=1, max_size=3),
    st.sets(st.text("0123456789xyz.ü", min_size=1, max_size=6), min_size=1, max_size=40),
    min_size=1,
    max_size=4,
)
fractions = st.floats(0, 0.45)
seeds = st.integers(0, 2**32)


def flat(files: dict[str, set[str]]) -> tuple[list[str], list[str]]:
    pairs = [(f"{label}|{name}", label) for label, names in files.items() for name in sorted(names)]
    return [key for key, _ in pairs], [label for _, label in pairs]


def parts_of(split: Split) -> dict[str, str]:
    return {key: part for part in PARTS for key in getattr(split, part)}


@given(classes, fractions, fractions, seeds)
def test_each_key_is_in_one_part_and_each_class_in_its_share(
    files: dict[str, set[str]], val: float, test: float, seed: int
) -> None:
    keys, labels = flat(files)
    split = split_items(keys, labels, val=val, test=test, seed=seed)
    assert sorted(split.train + split.val + split.test) == sorted(keys)
    for part in PARTS:
        assert list(getattr(split, part)) == [key for key in keys if parts_of(split)[key] == part]
    wanted = 1 + (val > 0) + (test > 0)
    for label, names in files.items():
        counts = Counter(part for key, part in parts_of(split).items() if key.startswith(f"{label}|"))
        assert counts["train"] >= 1
        if len(names) >= wanted:
            assert all(counts[part] >= 1 for part, size in (("val", val), ("test", test)) if size > 0)
        for part, size in (("val", val), ("test", test)):
            near = abs(counts[part] - size * len(names)) <= 0.5
            assert near or (counts[part] == 1 > size * len(names)) or counts["train"] == 1
            assert counts[part] == 0 or size > 0


@given(classes, classes, fractions, fractions, seeds, st.randoms())
def test_other_classes_and_the_order_of_files_do_not_matter(
    files: dict[str, set[str]],
    others: dict[str, set[str]],
    val: float,
    test: float,
    seed: int,
    shuffle: random.Random,
) -> None:
    before = parts_of(split_items(*flat(files), val=val, test=test, seed=seed))
    more = {f"other {label}": names for label, names in others.items()} | files
    pairs = list(zip(*flat(more), strict=True))
    shuffle.shuffle(pairs)
    after = parts_of(split_items(*map(list, zip(*pairs, strict=True)), val=val, test=test, seed=seed))
    assert {key: after[key] for key in before} == before


@given(st.integers(3, 60), fractions, fractions, seeds)
def test_a_new_file_moves_at_most_three_of_its_own_class(count: int, val: float, test: float, seed: int) -> None:
    keys = [f"k{i}" for i in range(count)]
    before = parts_of(split_items(keys, ["c"] * count, val=val, test=test, seed=seed))
    after = parts_of(split_items([*keys, "new"], ["c"] * (count + 1), val=val, test=test, seed=seed))
    assert sum(before[key] != after[key] for key in keys) <= 3


def test_seeds_give_different_splits_and_shares_are_even() -> None:
    keys = [f"img_{i}.png" for i in range(200)]
    splits = [split_items(keys, ["c"] * 200, val=0.25, test=0.25, seed=seed) for seed in range(40)]
    assert len({split.test for split in splits}) == 40
    tested = Counter(key for split in splits for key in split.test)
    # Each key tests in 10 of 40 splits on average: Binomial(40, 1/4) leaves [0, 24] with a probability of 1e-6.
    assert max(tested.values()) <= 24
    assert sum(tested.values()) == 40 * 50


def test_a_split_is_what_it_always_was() -> None:
    """The assignment is part of the format: runs that stored only their seed must find it again."""
    keys = [f"cat/{i}.png" for i in range(10)]
    split = split_items(keys, ["cat"] * 10, val=0.2, test=0.2, seed=3)
    # printf '3\0cat/%s.png' N | sha256sum, sorted, begins with N = 3, 4, 6, 5, 8
    assert (split.val, split.test) == (("cat/5.png", "cat/6.png"), ("cat/3.png", "cat/4.png"))


def test_small_classes_train_first_then_validate() -> None:
    for count, expected in ((1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (10, (6, 2, 2))):
        split = split_items([str(i) for i in range(count)], [0] * count)
        assert (len(split.train), len(split.val), len(split.test)) == expected


def test_counts_of_each_class() -> None:
    keys, labels = [f"{label}{i}" for label in "abc" for i in range(9)], [label for label in "abc" for _ in range(9)]
    split = split_items(keys, labels, val=2, test=3)
    assert Counter(key[0] for key in split.val) == {"a": 2, "b": 2, "c": 2}
    assert Counter(key[0] for key in split.test) == {"a": 3, "b": 3, "c": 3}
    mixed = split_items(keys, labels, val=0.5, test=8)
    assert (len(mixed.train), len(mixed.val), len(mixed.test)) == (3, 0, 24)
    with pytest.raises(DataError, match="class 'a' has 9 images"):
        split_items(keys, labels, val=4, test=5)


@pytest.mark.parametrize(
    "sizes", [(-0.1, 0.1), (0.5, 0.5), (1.0, 0), (float("nan"), 0.1), (-1, 0), (0.1, float("inf"))]
)
def test_sizes_that_are_none(sizes: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="split sizes"):
        split_items(["a", "b"], [0, 0], val=sizes[0], test=sizes[1])


def test_repeated_keys_and_missing_labels_are_refused() -> None:
    with pytest.raises(DataError, match="a is listed 2 times"):
        split_items(["a", "b", "a"], [0, 0, 1])
    with pytest.raises(DataError, match="2 keys and 1 labels"):
        split_items(["a", "b"], [0])


@given(classes, seeds)
def test_a_split_survives_json(files: dict[str, set[str]], seed: int) -> None:
    keys, labels = flat(files)
    split = split_items(keys, labels, val=0.2, test=3 if min(map(len, files.values())) > 3 else 0.1, seed=seed)
    assert Split.from_dict(json.loads(json.dumps(split.to_dict()))) == split
    positions = split.positions(keys)
    assert {part: tuple(keys[i] for i in indices) for part, indices in positions.items()} == {
        part: getattr(split, part) for part in PARTS
    }


def stored() -> dict:
    return json.loads(json.dumps(split_items([f"k{i}" for i in range(20)], [0] * 20, seed=1).to_dict()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("parts"),
        lambda d: d.pop("seed"),
        lambda d: d["parts"].pop("val"),
        lambda d: d["parts"]["val"].pop("hash"),
        lambda d: d["parts"]["val"]["keys"].pop(),
        lambda d: d["parts"]["val"]["keys"].append("k99"),
        lambda d: d["parts"]["val"].update(keys=7),
        lambda d: d["parts"]["val"]["keys"].append(7),
        lambda d: d["parts"]["val"].update(hash="sha256:00"),
        lambda d: d.update(parts=[]),
        lambda d: d.update(drawn=3),
        lambda d: d["parts"].update(val=d["parts"]["train"]),
    ],
)
def test_damaged_splits_are_refused(damage: object) -> None:
    values = stored()
    damage(values)
    with pytest.raises(DataError, match="stored split"):
        Split.from_dict(values)


def test_stored_splits_find_their_keys_again() -> None:
    split = Split.from_dict(stored())
    keys = [f"k{i}" for i in range(20)]
    more = split.positions(["new", *reversed(keys)])
    assert sorted(index for indices in more.values() for index in indices) == list(range(1, 21))
    assert all(a < b for indices in more.values() for a, b in pairwise(indices))
    with pytest.raises(DataError, match=r"1 images of its part '\w+' are missing, such as k4"):
        split.positions([key for key in keys if key != "k4"])
    with pytest.raises(DataError, match="twice"):
        split.positions([*keys, "k3"])


@given(st.lists(st.text(max_size=4), unique=True, max_size=6), st.lists(st.text(max_size=4), unique=True, max_size=6))
def test_hashes_tell_sets_apart(one: list[str], other: list[str]) -> None:
    assert (hash_keys(one) == hash_keys(other)) == (set(one) == set(other))
    assert hash_keys(one) == hash_keys(one[::-1])
