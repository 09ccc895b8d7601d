"""Tasks in the community's folders and in torchvision's, read through the public path, good and damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from miniatures.community import write_community
from miniatures.noise import pixels
from miniatures.torchvision_forms import BACKGROUND, WRITERS, caltech101, cifar_binary, cifar_python, python2_pickle
from viapt.data.benchmarks import TASKS, find_task
from viapt.data.benchmarks.cifar import read_cifar
from viapt.data.benchmarks.layouts import LAYOUTS, layout_named
from viapt.data.benchmarks.loading import listing_hash, load_benchmark
from viapt.data.benchmarks.pickled import read_pickled
from viapt.errors import DataError

VTAB = [name for name in TASKS if name.startswith("vtab-1k/")]
RELEASED = [name for name, task in TASKS.items() if "torchvision" in task.layouts]


def content(source, index):
    return np.asarray(source.read(index))


@pytest.mark.parametrize("name", VTAB)
def test_community_folders(tmp_path, name):
    task = find_task(name)
    write_community(tmp_path, task)
    data = load_benchmark(task, tmp_path)
    assert data.layout == "community" and not data.own_split
    assert {part: len(source) for part, source in data.parts.items()} == {
        "train": 2 * task.classes,
        "val": task.classes,
        "test": task.classes,
    }
    for source in data.parts.values():
        assert [item.label for item in source.items] == [i % task.classes for i in range(len(source))]
    assert data.parts["val"].items[0].key == "images/val200/00000.png"
    np.testing.assert_array_equal(content(data.parts["val"], 0), pixels(2 * task.classes))  # PNG loses nothing


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Every release once, under one root."""
    root = tmp_path_factory.mktemp("releases")
    for write in WRITERS.values():
        write(root)
    return root


@pytest.mark.parametrize("name", RELEASED)
def test_releases_as_torchvision_has_them(releases, name):
    task = find_task(name)
    data = load_benchmark(task, releases)
    assert data.layout == "torchvision"
    keys = {part: {item.key for item in source.items} for part, source in data.parts.items()}
    assert not keys["train"] & keys["val"]
    for part, source in data.parts.items():
        assert {item.label for item in source.items} <= set(range(task.classes)) and len(source.classes) == task.classes
        assert content(source, len(source) - 1).shape[2] == 3
        if task.suite == "hta":
            labels = {item.label for item in source.items}
            assert labels == set(range(task.classes)) or part == "val"
    assert len(listing_hash(data)) == 64 and listing_hash(data) == listing_hash(load_benchmark(task, releases))


def test_labels_come_from_where_the_publisher_put_them(releases):
    flowers = load_benchmark(find_task("hta/flowers102"), releases).parts
    assert [(item.key, item.label) for item in flowers["val"].items[:2]] == [
        ("jpg/image_00103.jpg", 1),
        ("jpg/image_00104.jpg", 2),
    ]
    digits = load_benchmark(find_task("hta/svhn"), releases).parts
    assert [len(digits[part]) for part in ("train", "val", "test")] == [40, 10, 20]
    assert [item.label for item in digits["val"].items] == list(range(10))  # numbers 40 to 49; label 10 is digit 0
    np.testing.assert_array_equal(content(digits["val"], 3), pixels(43, 32))
    pets = load_benchmark(find_task("vtab-1k/pets"), releases).parts
    assert all(int(item.key.split("_")[1]) == item.label for source in pets.values() for item in source.items)
    textures = load_benchmark(find_task("hta/dtd"), releases).parts
    assert all(int(item.key[14:16]) == item.label for source in textures.values() for item in source.items)
    scenes = load_benchmark(find_task("vtab-1k/sun397"), releases).parts
    assert len(scenes["test"]) == 397 * 3 - 834 - 119
    assert not any("bhenjvsvrtumjuri" in item.key for source in scenes.values() for item in source.items)
    assert all(
        scenes["test"].classes[item.label] == item.key.split("/", 1)[1].rpartition("/")[0]
        for item in scenes["test"].items
    )
    tumours = load_benchmark(find_task("vtab-1k/patch-camelyon"), releases).parts
    assert all(int(item.key[-6:]) % 2 == item.label for source in tumours.values() for item in source.items)


def test_frames_of_a_sign_stay_together(releases):
    parts = load_benchmark(find_task("hta/gtsrb"), releases).parts
    tracks = {
        part: {(item.key.split("/")[2], item.key.split("/")[3][:5]) for item in parts[part].items}
        for part in ("train", "val")
    }
    assert not tracks["train"] & tracks["val"]
    assert len(tracks["train"] | tracks["val"]) == 3 * 43 and len(tracks["val"]) == 26  # a fifth of 129, rounded up
    assert len(parts["train"]) == 4 * len(tracks["train"]) and len(parts["val"]) == 4 * len(tracks["val"])


def test_caltech_has_its_background(tmp_path):
    caltech101(tmp_path, {"Faces": 40})
    parts = load_benchmark(find_task("vtab-1k/caltech101"), tmp_path).parts
    assert len(parts["test"]) == 101 * 2 + 10
    names = parts["test"].classes
    assert names.index(BACKGROUND) == 99 and names[-2:] == ("Faces", "Faces_easy")


@pytest.mark.parametrize("fine", [False, True])
def test_both_versions_of_cifar_are_the_same(tmp_path, fine):
    binary = read_cifar(cifar_binary(tmp_path, fine))
    pickled = read_cifar(cifar_python(tmp_path, fine))
    for part in ("train", "test"):
        assert binary[part].items and len(binary[part]) == len(pickled[part]) == (20 if part == "test" else 100)
        for index in (0, 7, len(binary[part]) - 1):
            number = index + (100 if part == "test" else 0)
            for source in (binary[part], pickled[part]):
                assert source.items[index].label == number % (100 if fine else 10)
                np.testing.assert_array_equal(content(source, index), pixels(number, 32))


def test_images_that_no_part_uses_are_let_go_of(tmp_path):
    cifar_binary(tmp_path, fine=True, per_batch=300)  # 1,500 training images, of which VTAB takes 950
    parts = load_benchmark(find_task("vtab-1k/cifar100"), tmp_path).parts
    assert {part: len(source) for part, source in parts.items()} == {"train": 800, "val": 150, "test": 300}
    for part, kept in (("train", 1500), ("val", 150), ("test", 300)):
        (dataset,) = {id(item.image.dataset): item.image.dataset for item in parts[part].items}.values()
        assert len(dataset) == kept
    for part, first in (("val", 0), ("test", 1500)):
        for index in (0, 17, 149):
            item = parts[part].items[index]
            np.testing.assert_array_equal(content(parts[part], index), pixels(first + int(item.key[-6:]), 32))


class Attack:
    def __reduce__(self):
        return os.system, ("touch /tmp/unpickled",)


def test_pickles_are_not_executed(tmp_path):
    import pickle

    folder = cifar_python(tmp_path, fine=True)
    good = (folder / "train").read_bytes()
    attack = pickle.dumps({"data": Attack(), "fine_labels": [1]}, protocol=2)
    extension = pickle.dumps({"data": {1, 2}}, protocol=4)
    (folder / "train").write_bytes(attack)
    with pytest.raises(DataError, match="a call of posix system"):
        read_cifar(folder)
    for bad in (attack, extension, good[:-10], good[:50], b"", b"no pickle", python2_pickle({"data": b"1234"})):
        (folder / "train").write_bytes(bad)
        with pytest.raises(DataError, match=r"cifar-100-python.train (is damaged|holds)"):
            read_cifar(folder)


@given(st.lists(st.tuples(st.integers(0, 3600), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 3600))
def test_flipped_bytes_of_a_pickle_give_a_dictionary_or_an_error(flips, end):
    good = python2_pickle({"labels": [1, 2], "names": ["a", "b"], "data": bytes(3072)})
    bad = bytearray(good)
    for place, value in flips:
        bad[place % len(bad)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch"
        path.write_bytes(good)
        assert read_pickled(path, 10_000)["labels"] == [1, 2]
        for content in (bytes(bad), good[:end]):
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                assert isinstance(read_pickled(path, 10_000), dict)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "val200.txt").unlink(), "val200.txt missing"),
        (lambda f: (f / "val200.txt").write_text("images/val200/00000.png 10\n"), "line 1"),
        (lambda f: (f / "val200.txt").write_text("images/val200/00000.png\n"), "line 1"),
        (lambda f: (f / "val200.txt").write_text("../../etc/passwd 1\n"), "path below"),
        (lambda f: (f / "val200.txt").write_text("images/val200/00000.png 1\n" * 2), "twice"),
        (lambda f: (f / "val200.txt").write_text(""), "is empty"),
        (lambda f: (f / "val200.txt").write_bytes(b"images/\xff.png 1\n"), "not UTF-8"),
        (lambda f: (f / "images/test/00003.png").unlink(), "images/test/00003.png missing"),
        (lambda f: shutil.rmtree(f / "images"), "40 missing|and 35 more missing"),
    ],
)
def test_damaged_community_folders(tmp_path, damage, words):
    task = find_task("vtab-1k/svhn")
    damage(write_community(tmp_path, task))
    with pytest.raises(DataError, match=words):
        load_benchmark(task, tmp_path)


def shorten(path, count=7):
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize(
    ("release", "damage", "words"),
    [
        ("cifar10", lambda f: shorten(f / "data_batch_3.bin"), "damaged or truncated"),
        ("cifar10", lambda f: (f / "test_batch.bin").unlink(), "test_batch.bin missing"),
        ("cifar10", lambda f: (f / "batches.meta.txt").write_text("one\ntwo\n"), "labels from 0 to 9"),
        ("dtd", lambda f: (f / "labels/val1.txt").unlink(), "labels/val1.txt missing"),
        ("dtd", lambda f: (f / "labels/val1.txt").write_text("a/b.jpg\n"), "different classes"),
        ("flowers102", lambda f: shorten(f / "setid.mat"), "Flowers"),
        ("flowers102", lambda f: (f / "jpg/image_00007.jpg").unlink(), "not there: .*image_00007.jpg"),
        ("food101", lambda f: shorten(f / "meta/train.json"), "JSONDecodeError"),
        ("gtsrb", lambda f: (f / "GT-final_test.csv").unlink(), "GT-final_test.csv missing"),
        ("svhn", lambda f: shorten(f / "test_32x32.mat"), "House Numbers"),
    ],
)
def test_damaged_releases(tmp_path, release, damage, words):
    damage(WRITERS[release](tmp_path))
    with pytest.raises(DataError, match=words):
        load_benchmark(find_task(f"hta/{release}"), tmp_path)


def test_damaged_hdf5(tmp_path):
    folder = WRITERS["patch-camelyon"](tmp_path)
    shorten(folder / "camelyonpatch_level_2_split_valid_y.h5", 1000)
    with pytest.raises(DataError, match="HDF5"):
        load_benchmark(find_task("vtab-1k/patch-camelyon"), tmp_path)


def test_roots_that_are_none(tmp_path):
    task = find_task("hta/svhn")
    with pytest.raises(DataError, match="does not exist"):
        load_benchmark(task, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        load_benchmark(task, tmp_path / "file")
    with pytest.raises(DataError, match=r"hta/svhn .* is not in .* Expected: one of the folders svhn.*viapt data show"):
        load_benchmark(task, tmp_path)


def test_a_closed_root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may read everything
    with pytest.raises(DataError, match="permission denied"):
        load_benchmark(find_task("hta/svhn"), tmp_path)


def test_the_first_layout_that_is_complete_is_taken(tmp_path):
    task = find_task("vtab-1k/svhn")
    WRITERS["svhn"](tmp_path / "svhn_original")
    folder = write_community(tmp_path, task)
    (folder / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt missing"):
        load_benchmark(task, tmp_path)
    shutil.move(tmp_path / "svhn_original" / "svhn", tmp_path / "SVHN")
    assert load_benchmark(task, tmp_path).layout == "torchvision"


def test_layouts_have_their_names():
    for name in LAYOUTS:
        assert layout_named(name).name == name
    assert {name for task in TASKS.values() for name in task.layouts} <= set(LAYOUTS)


def test_hashes_tell_copies_apart(tmp_path):
    task = find_task("vtab-1k/svhn")
    folder = write_community(tmp_path, task)
    before = listing_hash(load_benchmark(task, tmp_path))
    Image.fromarray(pixels(0, side=13)).save(folder / "images/test/00000.png")
    assert listing_hash(load_benchmark(task, tmp_path)) != before
