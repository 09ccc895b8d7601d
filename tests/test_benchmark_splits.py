"""Split and label rules against expectations written down by hand, and properties that hold for all sizes."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viapt.data.benchmarks import SUITES, TASKS, find_task, find_tasks
from viapt.data.benchmarks import labels as rules
from viapt.data.benchmarks.splits import SPLITS, Pool, cut, is_exact, split_rule
from viapt.errors import ConfigError, DataError

# The registry

CLASSES = {  # of Zhai et al. and of the suites' publications
    "vtab-1k": [102, 100, 47, 102, 37, 397, 10, 10, 2, 45, 5, 8, 6, 6, 16, 16, 4, 18, 9],
    "fgvc": [200, 120, 102, 555, 196],
    "hta": [10, 100, 200, 120, 47, 102, 101, 43, 555, 10],
}
OFFICIAL_SIZES = {  # of whole official parts
    "hta/cifar10": {"train": 50_000, "test": 10_000},
    "hta/cifar100": {"train": 50_000, "test": 10_000},
    "hta/svhn": {"train": 73_257, "test": 26_032},
    "hta/food101": {"train": 75_750, "test": 25_250},
    "hta/dtd": {"train": 1880, "val": 1880, "test": 1880},
    "hta/dogs": {"train": 12_000, "test": 8580},
    "hta/nabirds": {"train": 23_929, "test": 24_633},
    "hta/cub200": {"train": 5994, "test": 5794},
    "fgvc/stanford-cars": {"train": 8144, "test": 8041},
    "fgvc/flowers102": {"train": 1020, "val": 1020, "test": 6149},
    "vtab-1k/cifar100": {"train": 50_000, "test": 10_000},
    "vtab-1k/pets": {"train": 3680, "test": 3669},
    "vtab-1k/svhn": {"train": 73_257, "test": 26_032},
    "vtab-1k/sun397": {"all": 108_753},
    "vtab-1k/eurosat": {"all": 27_000},
    "vtab-1k/resisc45": {"all": 31_500},
    "vtab-1k/dsprites-location": {"all": 737_280},
    "vtab-1k/smallnorb-azimuth": {"train": 24_300, "test": 24_300},
    "vtab-1k/clevr-count": {"train": 70_000, "val": 15_000},
    "vtab-1k/patch-camelyon": {"train": 262_144, "val": 32_768, "test": 32_768},
    "vtab-1k/kitti-distance": {"train": 6347, "val": 423, "test": 711},
    "vtab-1k/dmlab": {"train": 65_550, "val": 22_628, "test": 22_735},
}


def test_thirty_four_tasks():
    assert len(TASKS) == 34
    for suite, counts in CLASSES.items():
        assert [TASKS[name].classes for name in SUITES[suite]] == counts
    groups = [TASKS[name].group for name in SUITES["vtab-1k"]]
    assert [groups.count(group) for group in ("natural", "specialized", "structured")] == [7, 4, 8]
    for task in TASKS.values():
        assert task.licence and task.citation and task.source and task.title and task.layouts
        assert split_rule(task.split).official
        assert task.suite == "vtab-1k" or task.group is None


def test_names():
    assert find_task("caltech101") is TASKS["vtab-1k/caltech101"] and find_task("hta/dtd").suite == "hta"
    assert [task.name for task in find_tasks("fgvc")] == list(SUITES["fgvc"])
    with pytest.raises(ConfigError, match="vtab-1k/cifar100, hta/cifar100"):
        find_task("cifar100")
    with pytest.raises(ConfigError, match="did you mean 'vtab-1k/caltech101'"):
        find_task("vtab-1k/caltech10")
    with pytest.raises(ConfigError, match="did you mean 'dmlab'"):
        find_task("dmlabb")


@pytest.mark.parametrize("name", OFFICIAL_SIZES)
def test_sizes_are_the_published_ones(name):
    task = TASKS[name]
    pools = {part: Pool(np.zeros(size, np.int64)) for part, size in OFFICIAL_SIZES[name].items()}
    assert {part: len(indices) for part, (_, indices) in cut(task.split, pools).items()} == task.counts


def test_sizes_of_caltech_and_gtsrb():
    labels = np.repeat(np.arange(102), [31] * 101 + [9144 - 31 * 101])
    sizes = {part: len(own) for part, (_, own) in cut("vtab-caltech", {"all": Pool(labels)}).items()}
    assert sizes == TASKS["vtab-1k/caltech101"].counts
    tracks = [f"{number // 30}" for number in range(26_640)]
    pools = {"train": Pool(np.zeros(26_640, np.int64), tracks), "test": Pool(np.zeros(12_630, np.int64))}
    assert {part: len(own) for part, (_, own) in cut("drawn-80", pools).items()} == TASKS["hta/gtsrb"].counts


# Splits

FIFTEEN = {"train": Pool(np.zeros(15, np.int64)), "test": Pool(np.zeros(3, np.int64))}


def test_first_80_per_cent():
    parts = cut("first-80", FIFTEEN)
    assert parts["train"][1].tolist() == list(range(12)) and parts["val"][1].tolist() == [12, 13, 14]
    assert parts["test"][0] == "test" and parts["test"][1].tolist() == [0, 1, 2]


def test_slices_of_a_known_order():
    order = np.arange(2000)[::-1].copy()
    pools = {part: Pool(np.zeros(2000, np.int64), None, order) for part in ("train", "val", "test", "all")}
    at = {name: {part: own.tolist() for part, (_, own) in cut(name, pools).items()} for name in SPLITS}
    assert at["vtab-90"]["train"] == list(range(1999, 1199, -1)) and at["vtab-90"]["val"] == list(range(199, -1, -1))
    assert at["vtab-80"]["val"] == list(range(399, 199, -1))
    assert at["vtab-val"]["train"] == list(range(1999, 1199, -1))
    assert at["vtab-val"]["val"] == list(range(1999, 1799, -1)) and len(at["vtab-val"]["test"]) == 2000
    assert at["vtab-60-20-20"]["train"] == list(range(1999, 1199, -1))
    assert at["vtab-60-20-20"]["val"] == list(range(799, 599, -1))
    assert at["vtab-60-20-20"]["test"] == list(range(399, -1, -1))
    assert at["vtab-80-10-10"]["val"] == list(range(399, 199, -1))
    assert at["vtab-80-10-10"]["test"] == list(range(199, -1, -1))
    assert at["vtab-norb"]["val"] == list(range(1999, 1799, -1)) and at["vtab-norb"]["test"] == list(range(999, -1, -1))
    assert at["vtab-clevr"]["val"] == at["vtab-90"]["val"] and at["vtab-clevr"]["test"] == list(range(2000))
    assert is_exact("vtab-90", pools) and not is_exact("vtab-sun", pools) and not is_exact("drawn-80", pools)
    assert not is_exact("vtab-90", FIFTEEN) and is_exact("first-80", FIFTEEN)


def pools_of(sizes, classes, tracks):
    rng = np.random.default_rng(sum(sizes))
    return {
        part: Pool(rng.integers(0, classes, size), [f"t{number // 3}" for number in range(size)] if tracks else None)
        for part, size in zip(("train", "val", "test", "all"), sizes, strict=True)
    }


@given(
    st.sampled_from(sorted(SPLITS)),
    st.tuples(*[st.integers(100, 3000)] * 4),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 3),
)
def test_parts_are_disjoint_within_bounds_and_stable(name, sizes, classes, tracks, seed):
    pools = pools_of(sizes, classes, tracks)
    try:
        parts = cut(name, pools, seed)
    except DataError:
        assert name == "vtab-caltech"  # no class has more than 30 images
        return
    seen = set()
    for origin, indices in parts.values():
        assert len(indices) and indices.min() >= 0 and indices.max() < len(pools[origin].labels)
        own = {(origin, index) for index in indices.tolist()}
        assert len(own) == len(indices) and not own & seen
        seen |= own
    again = cut(name, pools, seed)
    assert all(again[part][1].tolist() == parts[part][1].tolist() for part in parts)
    if name.startswith("vtab"):
        assert len(parts["train"][1]) <= 800 and len(parts["val"][1]) <= 200
    if name in ("official", "first-80", "drawn-80", "drawn-90"):
        assert seen == {(part, i) for part in split_rule(name).official for i in range(len(pools[part].labels))}


@given(st.integers(10, 500), st.integers(1, 9), st.integers(0, 5), st.sampled_from([("drawn-80", 5), ("drawn-90", 10)]))
def test_tracks_never_straddle(images, frames, seed, rule):
    name, share = rule
    tracks = [f"{number // frames:03d}" for number in range(images)]
    count = len(set(tracks))
    if count < 2:
        return
    pools = {"train": Pool(np.zeros(images, np.int64), tracks), "test": FIFTEEN["test"]}
    parts = cut(name, pools, seed)
    train, val = ({tracks[i] for i in parts[part][1]} for part in ("train", "val"))
    assert not train & val and len(val) == math.ceil(Fraction(count, share))


def test_another_seed_draws_another_split():
    pools = {part: Pool(np.zeros(5000, np.int64)) for part in ("train", "test")}
    first, second = (cut("drawn-90", pools, seed)["val"][1].tolist() for seed in (0, 1))
    assert first != second and first[:6] == sorted(first)[:6]


def test_what_cannot_be_cut():
    with pytest.raises(DataError, match="needs the official parts test"):
        cut("first-80", {"train": FIFTEEN["train"]})
    with pytest.raises(DataError, match="leaves train, val without images: there are train 0, test 3"):
        cut("vtab-90", {"train": Pool(np.zeros(0, np.int64)), "test": FIFTEEN["test"]})
    with pytest.raises(ConfigError, match="did you mean 'first-80'"):
        cut("first-8", FIFTEEN)


# Labels


@pytest.mark.parametrize(
    ("depth", "label"),
    [
        *((0.001, 0), (7.999, 0), (8.0, 0), (8.001, 1), (8.5, 1), (8.51, 2), (9.0, 2), (9.4, 3), (9.5, 3), (9.99, 4)),
        *((10.0, 4), (10.001, 5), (14.2, 5), (8.0000000001, 0)),
    ],
)
def test_clevr_distance(depth, label):
    assert rules.clevr_distance([40.0, depth, 50.0]) == label


def test_clevr_count():
    assert [rules.clevr_count(count) for count in range(3, 11)] == list(range(8))
    for count in (2, 11):
        with pytest.raises(DataError, match=f"{count} objects"):
            rules.clevr_count(count)
    for depths in ([], [0.0]):
        with pytest.raises(DataError, match="above 0"):
            rules.clevr_distance(depths)


@pytest.mark.parametrize(
    ("objects", "label"),
    [
        ([("Car", 7.9)], 0),
        ([("Car", 8.0)], 0),
        ([("Van", 8.01), ("Car", 30.0)], 1),
        ([("Truck", 20.0)], 1),
        ([("Truck", 20.01)], 2),
        ([("Car", 120.0)], 2),
        ([("Pedestrian", 2.0), ("Tram", 3.0), ("Cyclist", 1.0)], 3),
        ([], 3),
        ([("Car", -3.0), ("Pedestrian", 2.0)], 0),
    ],
)
def test_kitti_distance(objects, label):
    assert rules.kitti_distance(objects) == label


def test_dsprites():
    assert [rules.dsprites_label(value, 32) for value in range(32)] == [value // 2 for value in range(32)]
    expected = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]  # 2.5 values to a group
    assert [rules.dsprites_label(value, 40) for value in range(10)] == expected
    assert rules.dsprites_label(39, 40) == 15
    with pytest.raises(DataError, match="0 to 39"):
        rules.dsprites_label(40, 40)


def test_norb():
    assert [rules.norb_azimuth(value) for value in range(0, 36, 2)] == list(range(18))
    assert [rules.norb_elevation(value) for value in range(9)] == list(range(9))
    for rule, value in ((rules.norb_azimuth, 3), (rules.norb_azimuth, 36), (rules.norb_elevation, 9)):
        with pytest.raises(DataError):
            rule(value)
