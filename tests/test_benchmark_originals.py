"""Original releases of benchmark tasks, read through the public path from miniatures in their own formats."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from miniatures import fine_grained, originals
from miniatures.pictures import number, text
from viapt.data.benchmarks.dsprites import stream_images
from viapt.data.benchmarks.kitti import split_by_video
from viapt.data.benchmarks.layouts import Parts, layout_named
from viapt.data.benchmarks.listed import below
from viapt.data.benchmarks.matlab import read_matlab
from viapt.data.benchmarks.norb import read_matrix
from viapt.data.benchmarks.record_order import record_order
from viapt.data.benchmarks.registry import find_task
from viapt.data.benchmarks.tfrecord import crc32c, masked_crc32c, parse_example, read_records
from viapt.data.sources import ImageSource
from viapt.errors import DataError

PARTS = ("train", "val", "test")


def read(root: Path, layout: str, task: str) -> Parts:
    found = layout_named(layout).look(root, find_task(task))
    assert found.complete, found
    parts = layout_named(layout).read(root, find_task(task))
    assert tuple(sorted(parts)) == tuple(sorted(PARTS))
    for part, source in parts.items():
        assert {item.part for item in source.items} == {part}
    return parts


def rows(source: ImageSource) -> list[tuple[str, int]]:
    return [(item.key, item.label) for item in source.items]


def everything(parts: Parts) -> list[tuple[str, str]]:
    """Key and class name of all images, sorted: each must be there once."""
    listed = sorted((item.key, source.classes[item.label]) for source in parts.values() for item in source.items)
    assert len(set(listed)) == len(listed)
    return listed


def shown(source: ImageSource) -> list[int]:
    """The number that each picture shows."""
    return [number(source.read(index)) for index in range(len(source))]


def published_order(keys: list[str], part: str) -> list[str]:
    """TensorFlow Datasets' order, written down once more."""
    return sorted(keys, key=lambda key: int(hashlib.md5(part.encode() + key.encode()).hexdigest(), 16))


# Where releases are found


@pytest.mark.parametrize(
    ("write", "layout", "task", "folder"),
    [
        (fine_grained.nabirds, "nabirds", "fgvc/nabirds", "nabirds"),
        (fine_grained.cars, "cars", "fgvc/stanford-cars", "stanford_cars"),
        (originals.dmlab, "dmlab", "vtab-1k/dmlab", "dmlab"),
        (originals.resisc45, "resisc45", "vtab-1k/resisc45", "resisc45"),
    ],
)
def test_an_archive_unpacked_into_a_folder_of_its_name(
    tmp_path: Path, write, layout: str, task: str, folder: str
) -> None:
    write(tmp_path / folder)
    assert read(tmp_path, layout, task)["test"].items


# Birds, dogs, cars


@pytest.mark.parametrize(
    ("write", "layout", "task"),
    [
        (fine_grained.cub, "cub", "fgvc/cub200"),
        (fine_grained.nabirds, "nabirds", "hta/nabirds"),
        (fine_grained.dogs, "dogs", "fgvc/dogs"),
        (fine_grained.cars, "cars", "fgvc/stanford-cars"),
        (fine_grained.cars_in_one, "cars", "fgvc/stanford-cars"),
    ],
)
def test_fine_grained_releases(tmp_path: Path, write, layout: str, task: str) -> None:
    expected = write(tmp_path, 12)
    parts = read(tmp_path, layout, task)
    position = {key: which for which, (key, _, _) in enumerate(expected)}
    assert everything(parts) == sorted((key, name) for key, name, _ in expected)
    assert [item.key for item in parts["test"].items] == [key for key, _, part in expected if part == "test"]
    training = sum(part == "train" for _, _, part in expected)
    assert len(parts["val"]) == -(-training // 10)
    for source in parts.values():
        assert shown(source) == [position[item.key] for item in source.items]
        assert source.name(0) == str(source.items[0].image)
        assert source.description.endswith("split here with seed 0")


def test_dogs_lists_may_lie_beside_the_images(tmp_path: Path) -> None:
    expected = fine_grained.dogs(tmp_path, 5, lists=".")
    assert everything(read(tmp_path, "dogs", "hta/dogs")) == sorted((key, name) for key, name, _ in expected)


@pytest.mark.parametrize(
    ("write", "folder", "images", "task"),
    [
        (fine_grained.cub, "CUB_200_2011", "images", "fgvc/cub200"),
        (fine_grained.nabirds, "nabirds", "images", "fgvc/nabirds"),
        (fine_grained.dogs, "stanford_dogs", "Images", "fgvc/dogs"),
        (fine_grained.cars_in_one, "stanford_cars", ".", "fgvc/stanford-cars"),
    ],
)
def test_published_json_splits(tmp_path: Path, write, folder: str, images: str, task: str) -> None:
    expected = write(tmp_path, 6)
    names = sorted({name for _, name, _ in expected})
    ids = {name: 10 + 7 * k for k, name in enumerate(names)}
    splits = fine_grained.json_splits(tmp_path / folder, expected, ids)
    parts = read(tmp_path, "fgvc-json", task)
    for part, split in splits.items():
        assert rows(parts[part]) == [(key, (number - 10) // 7) for key, number in split.items()]
        assert parts[part].items[0].image == tmp_path / folder / images / parts[part].items[0].key
        assert parts[part].description.endswith("published JSON split")
    assert parts["train"].classes == tuple(str(10 + 7 * k) for k in range(len(names)))


def test_json_splits_that_are_incomplete_overlap_or_are_damaged(tmp_path: Path) -> None:
    expected = fine_grained.cub(tmp_path)
    folder, task, layout = tmp_path / "CUB_200_2011", find_task("fgvc/cub200"), layout_named("fgvc-json")
    assert layout.look(tmp_path, task).where is None
    fine_grained.json_splits(folder, expected, {name: k for k, name in enumerate(fine_grained.CUB_CLASSES)})
    train = (folder / "train.json").read_text()
    (folder / "train.json").unlink()
    assert layout.look(tmp_path, task).missing == ("train.json",)
    (folder / "train.json").write_text(train[:-10])
    with pytest.raises(DataError, match=r"train\.json is damaged or truncated"):
        layout.read(tmp_path, task)
    (folder / "train.json").write_text((folder / "test.json").read_text())
    with pytest.raises(DataError, match=r"is in train\.json and test\.json"):
        layout.read(tmp_path, task)
    (folder / "train.json").write_text('{"../../secret.jpg": 1}')
    with pytest.raises(DataError, match=r"names the image '\.\./\.\./secret\.jpg'"):
        layout.read(tmp_path, task)


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("images.txt", "13 ../../../etc/passwd", "names the image"),
        ("images.txt", "13", "line 13 .* has no value"),
        ("images.txt", "1 again.jpg", "has the id '1' of another"),
        ("images.txt", "99 extra.jpg", "do not list the same images: '99'"),
        ("image_class_labels.txt", "99 4", "the class '4' .* is not in classes.txt"),
        ("train_test_split.txt", "99 1", "do not list the same images: '99'"),
        ("classes.txt", "x Y", "ids that are no numbers"),
    ],
)
def test_damaged_tables_of_birds(tmp_path: Path, table: str, line: str, message: str) -> None:
    fine_grained.cub(tmp_path)
    for name, more in (("image_class_labels.txt", "13 1"), ("train_test_split.txt", "13 1")):
        if "passwd" in line:
            with (tmp_path / "CUB_200_2011" / name).open("a") as file:
                file.write(more + "\n")
    with (tmp_path / "CUB_200_2011" / table).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        layout_named("cub").read(tmp_path, find_task("fgvc/cub200"))


def test_tables_that_are_missing_or_no_utf8_are_named(tmp_path: Path) -> None:
    fine_grained.nabirds(tmp_path)
    layout, task = layout_named("nabirds"), find_task("fgvc/nabirds")
    with (tmp_path / "nabirds/classes.txt").open("ab") as file:
        file.write("7 Pfeifschwan \xe4\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt is not UTF-8: line 6 contains the byte 0xe4"):
        layout.read(tmp_path, task)
    (tmp_path / "nabirds/classes.txt").unlink()
    shutil.rmtree(tmp_path / "nabirds/images")
    assert layout.look(tmp_path, task).missing == ("classes.txt", "images")
    with pytest.raises(DataError, match=r"classes\.txt, images missing"):
        layout.read(tmp_path, task)


def test_swapped_labels_of_dogs_are_noticed(tmp_path: Path) -> None:
    fine_grained.dogs(tmp_path)
    path = tmp_path / "stanford_dogs/lists/test_list.mat"
    content = read_matlab(path, ("file_list", "labels"))
    savemat(path, {"file_list": content["file_list"].reshape(-1, 1), "labels": content["labels"][::-1].reshape(-1, 1)})
    with pytest.raises(DataError, match=r"gives n02085620-Chihuahua/n02085620_1000\.jpg the label"):
        layout_named("dogs").read(tmp_path, find_task("fgvc/dogs"))


def test_cars_without_the_labels_of_the_test_images(tmp_path: Path) -> None:
    fine_grained.cars(tmp_path)
    layout, task = layout_named("cars"), find_task("fgvc/stanford-cars")
    path = tmp_path / "stanford_cars/cars_test_annos_withlabels.mat"
    path.rename(tmp_path / "stanford_cars/devkit/cars_test_annos_withlabels.mat")
    read(tmp_path, "cars", "fgvc/stanford-cars")
    (tmp_path / "stanford_cars/devkit/cars_test_annos_withlabels.mat").unlink()
    assert layout.look(tmp_path, task).missing == ("cars_test_annos_withlabels.mat",)


# MATLAB files


def test_matlab_files_are_bounded_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    savemat(path, {"a": np.zeros(10**6), "b": np.ones(3)}, do_compression=True)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="unpacks to more than 1,000,000 bytes"):
        read_matlab(path, ("b",), max_bytes=10**6)
    assert read_matlab(path, ("b",))["b"].tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="no variable 'c'"):
        read_matlab(path, ("a", "c"))
    content = path.read_bytes()
    for damaged in (content[:-30], content[:500], content[:100], b"", b"<html>not found</html>" * 20):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
            read_matlab(path, ("a", "b"))
    with pytest.raises(DataError, match="No such file"):
        read_matlab(tmp_path / "absent.mat", ("a",))


# Resisc45


def test_resisc45_from_a_folder_and_from_an_archive(tmp_path: Path) -> None:
    expected = dict(originals.resisc45(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    originals.resisc45_zip(tmp_path / "b")
    order = published_order([key.replace("/", "_") for key in expected], "train")
    keys = {key.replace("/", "_"): key for key in expected}
    number = {key: which for which, key in enumerate(expected)}
    for root in (tmp_path / "a", tmp_path / "b"):
        parts = read(root, "resisc45", "vtab-1k/resisc45")
        for part, names in (("train", order[:18]), ("val", order[18:24]), ("test", order[24:])):
            assert rows(parts[part]) == [(keys[name], expected[keys[name]]) for name in names]
            assert shown(parts[part]) == [number[keys[name]] for name in names]
            assert "split here" not in parts[part].description
        assert parts["test"].classes == originals.RESISC
    copied = pickle.loads(pickle.dumps(parts["test"]))
    assert copied.read(0).tobytes() == parts["test"].read(0).tobytes()


def test_resisc45_as_rar_or_without_classes(tmp_path: Path) -> None:
    layout, task = layout_named("resisc45"), find_task("vtab-1k/resisc45")
    (tmp_path / "NWPU-RESISC45.rar").write_bytes(b"Rar!")
    assert "NWPU-RESISC45.rar" in layout.look(tmp_path, task).missing[0]
    (tmp_path / "NWPU-RESISC45").mkdir()
    assert layout.look(tmp_path, task).missing == ("folders of classes",)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_no_utf8_are_named(tmp_path: Path) -> None:
    originals.resisc45(tmp_path)
    bad = os.fsencode(tmp_path) + b"/NWPU-RESISC45/airplane/airplane_\xff.jpg"
    os.link(tmp_path / "NWPU-RESISC45/airplane/airplane_001.jpg", bad)
    with pytest.raises(DataError, match="no UTF-8"):
        layout_named("resisc45").read(tmp_path, find_task("vtab-1k/resisc45"))


# smallNORB


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("quantity", ["azimuth", "elevation"])
def test_smallnorb(tmp_path: Path, packed: bool, quantity: str) -> None:
    content = originals.smallnorb(tmp_path, packed=packed)
    parts = read(tmp_path, "smallnorb", f"vtab-1k/smallnorb-{quantity}")
    of_test = published_order(list(map(str, range(36))), "test")
    numbers = {
        "train": published_order(list(map(str, range(36))), "train"),
        "val": of_test[:18],
        "test": of_test[18:],
    }
    column, step = (2, 2) if quantity == "azimuth" else (1, 1)
    for part, order in numbers.items():
        info = content["train" if part == "train" else "test"]["info"]
        assert [item.label for item in parts[part].items] == [info[int(k), column] // step for k in order]
        images = [np.asarray(parts[part].read(index)) for index in range(len(order))]
        assert [image.shape for image in images] == [(96, 96, 3)] * len(order)
        assert [(image.min(), image.max()) for image in images] == [(int(k), int(k)) for k in order]
    assert len(parts["test"].classes) == {"azimuth": 18, "elevation": 9}[quantity]


def test_damaged_matrices(tmp_path: Path) -> None:
    originals.smallnorb(tmp_path)
    task, layout = find_task("vtab-1k/smallnorb-azimuth"), layout_named("smallnorb")
    stem = tmp_path / "smallnorb" / originals.NORB["train"]
    info, dat = stem.with_name(stem.name + "-info.mat"), stem.with_name(stem.name + "-dat.mat")
    whole = info.read_bytes()
    info.write_bytes(b"\x1f\x8b\x08\x00" + whole[4:])
    with pytest.raises(DataError, match="magic number 0x00088b1f"):
        layout.read(tmp_path, task)
    info.write_bytes(whole[:-5])
    with pytest.raises(DataError, match=r"info\.mat is damaged or truncated \(5 bytes are missing\)"):
        layout.read(tmp_path, task)
    info.write_bytes(originals.matrix(np.full((36, 4), 7, np.int32)))
    with pytest.raises(DataError, match="the azimuth 7"):
        layout.read(tmp_path, task)
    info.write_bytes(originals.matrix(np.zeros((35, 4), np.int32)))
    with pytest.raises(DataError, match=r"shape \(35, 4\), for images of shape \(36, 2, 96, 96\)"):
        layout.read(tmp_path, task)
    info.write_bytes(whole)
    dat.write_bytes(dat.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"dat\.mat is damaged or truncated \(100 bytes are missing\)"):
        layout.read(tmp_path, task)["train"].read(0)
    dat.unlink()
    assert layout.look(tmp_path, task).missing == (dat.name,)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5), st.sampled_from(["uint8", "int32"]), st.integers(0, 2**31 - 1)
)
def test_matrices_of_any_shape(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], kind: str, seed: int
) -> None:
    array = np.random.default_rng(seed).integers(0, 200, sizes).astype(kind)
    path = tmp_path_factory.mktemp("norb") / "x.mat"
    path.write_bytes(originals.matrix(array))
    assert np.array_equal(read_matrix(path), array)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_matrix_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("norb") / "x.mat"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_matrix(path)


# dSprites


@pytest.mark.parametrize(
    ("quantity", "column", "values"), [("location", 4, 32), ("orientation", 3, 40)], ids=["location", "orientation"]
)
def test_dsprites_never_touches_the_pickled_member(tmp_path: Path, quantity: str, column: int, values: int) -> None:
    classes = originals.dsprites(tmp_path)
    parts = read(tmp_path, "dsprites", f"vtab-1k/dsprites-{quantity}")
    order = list(map(int, published_order(list(map(str, range(80))), "train")))
    for part, numbers in (("train", order[:64]), ("val", order[64:72]), ("test", order[72:])):
        assert [item.label for item in parts[part].items] == [classes[k, column] * 16 // values for k in numbers]
        for index, k in enumerate(numbers):
            pixels = np.asarray(parts[part].read(index))
            assert set(np.unique(pixels)) <= {0, 255}
            assert int((pixels[0, :16, 0] // 255) @ (1 << np.arange(16))) == k
            assert not pixels[1:].any()


def test_dsprites_keeps_single_bits_of_wanted_images(tmp_path: Path) -> None:
    originals.dsprites(tmp_path, 3000)
    path = next((tmp_path / "dsprites").glob("*.npz"))
    images = stream_images(path, np.arange(5, 3000, 100))
    shown = [int((images[k][0][0, :16] // 255) @ (1 << np.arange(16))) for k in range(len(images))]
    assert shown == list(range(5, 3000, 100))
    kept = pickle.dumps(images)
    assert len(kept) < 30 * 64 * 64 // 8 + 2000
    assert np.array_equal(pickle.loads(kept)[3][0], images[3][0])


def test_damaged_dsprites(tmp_path: Path) -> None:
    originals.dsprites(tmp_path)
    path = next((tmp_path / "dsprites").glob("*.npz"))
    whole, layout, task = path.read_bytes(), layout_named("dsprites"), find_task("vtab-1k/dsprites-location")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged, truncated or no dSprites archive"):
        layout.read(tmp_path, task)
    np.savez(path, imgs=np.full((4, 64, 64), 2, np.uint8), latents_classes=np.zeros((4, 6), np.int64))
    with pytest.raises(DataError, match="the pixel 2"):
        stream_images(path, np.arange(4))[0]
    np.savez(path, imgs=np.zeros((4, 64, 64), np.uint8), latents_classes=np.full((4, 6), 32))
    with pytest.raises(DataError, match="values from 32 to 32"):
        layout.read(tmp_path, task)
    np.savez(path, imgs=np.zeros((4, 64, 64), np.uint8), latents_classes=np.array([originals.Explosive()], object))
    with pytest.raises(DataError, match="object"):
        layout.read(tmp_path, task)
    path.unlink()
    assert layout.look(tmp_path, task).where is None


# KITTI, CLEVR


def test_kitti(tmp_path: Path) -> None:
    cases: list[tuple[list[tuple[str, float]], int]] = [
        ([("Car", 8.0)], 0),
        ([("Car", 8.01), ("Pedestrian", 1.0)], 1),
        ([("Van", 20.0), ("Truck", 30.0)], 1),
        ([("Truck", 20.01)], 2),
        ([("Car", 50.0), ("Van", -2.0)], 0),
        ([("DontCare", -1000.0), ("Tram", 3.0)], 3),
        ([], 3),
    ]
    objects = [cases[k % len(cases)][0] for k in range(60)]
    videos = [f"2011_09_26_drive_{k // 3:04d}_sync" for k in range(60)]
    originals.kitti(tmp_path, objects, videos)
    parts = read(tmp_path, "kitti", "vtab-1k/kitti-distance")
    assert len(everything(parts)) == 60
    state = np.random.RandomState(123)
    names = sorted(set(videos))
    test = [names[k] for k in state.permutation(20)[:2]]
    rest = [name for name in names if name not in test]
    val = [rest[k] for k in state.permutation(18)[:2]]
    for part, source in parts.items():
        own = [
            f"{k:06d}.png"
            for k in range(60)
            if {"test": videos[k] in test, "val": videos[k] in val, "train": videos[k] not in test + val}[part]
        ]
        published = own if part == "test" else published_order(own, {"val": "validation"}.get(part, part))
        assert [item.key for item in source.items] == published
        assert [item.label for item in source.items] == [cases[int(key[:6]) % len(cases)][1] for key in published]
        assert shown(source) == [int(key[:6]) for key in published]


def test_kitti_without_its_development_kit_or_with_damaged_labels(tmp_path: Path) -> None:
    originals.kitti(tmp_path, [[("Car", 9.0)]] * 12, [f"v{k}" for k in range(12)])
    layout, task = layout_named("kitti"), find_task("vtab-1k/kitti-distance")
    (tmp_path / "kitti/mapping").rename(tmp_path / "kitti/elsewhere")
    assert layout.look(tmp_path, task).missing == ("mapping/train_rand.txt", "mapping/train_mapping.txt")
    (tmp_path / "kitti/devkit").mkdir()
    (tmp_path / "kitti/elsewhere").rename(tmp_path / "kitti/devkit/mapping")
    read(tmp_path, "kitti", "vtab-1k/kitti-distance")
    text(tmp_path / "kitti/training/label_2/000003.txt", "Car 0.00 0")
    with pytest.raises(DataError, match=r"line 1 of .*000003\.txt has 3 fields"):
        layout.read(tmp_path, task)
    text(tmp_path / "kitti/devkit/mapping/train_rand.txt", "1,2,99")
    with pytest.raises(DataError, match="mapping is damaged"):
        layout.read(tmp_path, task)


@given(st.lists(st.integers(0, 40).map(lambda k: f"drive_{k:04d}"), min_size=20, max_size=80))
def test_videos_are_not_torn_apart(videos: list[str]) -> None:
    if len(set(videos)) < 3:
        return
    parts = split_by_video(videos)
    assert parts == split_by_video(list(videos))
    by_video = {video: {part for other, part in zip(videos, parts, strict=True) if other == video} for video in videos}
    assert all(len(own) == 1 for own in by_video.values())
    assert set(parts) == set(PARTS)


def test_clevr(tmp_path: Path) -> None:
    depths = [[8.0, 9.5, 12.0], [8.01] * 10, [9.0, 8.51, 9.9, 11.0], [12.0, 9.01, 11], [9.51, 9.6, 9.7], [10.01] * 5]
    distances, counts = [0, 1, 2, 3, 4, 5], [0, 7, 1, 0, 0, 2]
    originals.clevr(tmp_path, {"train": depths * 4, "val": depths[::-1]})
    for task, labels in (("clevr-count", counts), ("clevr-distance", distances)):
        parts = read(tmp_path, "clevr", f"vtab-1k/{task}")
        order = published_order([f"CLEVR_train_{k:06d}.png" for k in range(24)], "train")
        for part, names in (("train", order[:21]), ("val", order[21:])):
            assert rows(parts[part]) == [(f"train/{name}", labels[int(name[12:18]) % 6]) for name in names]
            assert shown(parts[part]) == [int(name[12:18]) for name in names]
        assert rows(parts["test"]) == [(f"val/CLEVR_val_{k:06d}.png", labels[5 - k]) for k in range(6)]


def test_damaged_clevr(tmp_path: Path) -> None:
    originals.clevr(tmp_path, {"train": [[9.0] * 3] * 12, "val": [[9.0] * 3] * 3})
    layout, task = layout_named("clevr"), find_task("vtab-1k/clevr-count")
    path = tmp_path / "CLEVR_v1.0/scenes/CLEVR_train_scenes.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole)[:-40])
    with pytest.raises(DataError, match="damaged or truncated"):
        layout.read(tmp_path, task)
    path.write_text(json.dumps({"scenes": [*whole["scenes"], whole["scenes"][0]]}))
    with pytest.raises(DataError, match="two scenes of one image"):
        layout.read(tmp_path, task)
    whole["scenes"][0]["objects"] = whole["scenes"][0]["objects"][:2]
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match="a scene of 2 objects"):
        layout.read(tmp_path, task)
    path.unlink()
    assert layout.look(tmp_path, task).missing == ("scenes/CLEVR_train_scenes.json",)


# DMLab, Retinopathy


def test_dmlab(tmp_path: Path) -> None:
    originals.dmlab(tmp_path)
    parts = read(tmp_path, "dmlab", "vtab-1k/dmlab")
    for part, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        keys = [f"{name}-{k:03d}.jpg" for k in range(12)]
        keys = keys if part == "test" else published_order(keys, name)
        assert rows(parts[part]) == [(f"{part}/{key}", int(key[-7:-4]) % 6) for key in keys]
        assert shown(parts[part]) == [int(key[-7:-4]) for key in keys]


def test_damaged_dmlab(tmp_path: Path) -> None:
    originals.dmlab(tmp_path)
    layout, task = layout_named("dmlab"), find_task("vtab-1k/dmlab")
    path = tmp_path / "dmlab/dmlab-test.tfrecord"
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-7], "the record ends early"),
        (whole + whole[:5], "no record begins there"),
        (whole[:1] + b"\xff" + whole[2:], "at byte 0: no record begins there"),
        (originals.record(b"\xff"), "is none of DMLab's"),
        (originals.record(originals.example(image=[b""], filename=[b"x"], label=[6])), "the label 6"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            layout.read(tmp_path, task)
    path.unlink()
    (tmp_path / "dmlab/dmlab-train.tfrecord-00001-of-00002").unlink()
    assert layout.look(tmp_path, task).missing == ("dmlab-train.tfrecord-00001-of-00002", "dmlab-test.tfrecord")


def test_check_sums_are_castagnolis() -> None:
    for data, value in ((b"123456789", 0xE3069283), (b"\0" * 32, 0x8A9136AA), (b"", 0)):  # RFC 3720, B.4
        assert crc32c(data) == originals.crc32c(data) == value
    assert masked_crc32c(b"\0" * 32) == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) % 2**32


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.lists(st.binary(max_size=40), max_size=4)
        | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4)
        | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4),
        max_size=4,
    )
)
def test_examples_as_the_protobuf_library_writes_them(features: dict[str, list]) -> None:
    assert parse_example(originals.example(**features)) == features


@given(st.binary(max_size=80))
def test_bytes_that_are_no_example(content: bytes) -> None:
    try:
        parsed = parse_example(content)
    except ValueError:
        return
    assert all(isinstance(values, list) for values in parsed.values())


@given(st.lists(st.binary(max_size=30), max_size=5), st.data())
def test_records_are_read_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("records") / "x.tfrecord"
    whole = b"".join(map(originals.record, contents))
    path.write_bytes(whole)
    assert [content for _, content in read_records(path)] == contents
    end = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:end])
    borders = {len(b"".join(map(originals.record, contents[:k]))) for k in range(len(contents) + 1)}
    if end in borders:
        assert len(list(read_records(path))) <= len(contents)
    else:
        with pytest.raises(DataError, match="damaged or truncated"):
            list(read_records(path))


def test_retinopathy(tmp_path: Path) -> None:
    originals.retinopathy(tmp_path)
    parts = read(tmp_path, "retinopathy", "vtab-1k/retinopathy")
    train = published_order([f"{k // 2}_{'left' if k % 2 == 0 else 'right'}" for k in range(12)], "train")
    grade = {f"{k // 2}_{'left' if k % 2 == 0 else 'right'}": k % 5 for k in range(12)}
    assert rows(parts["train"]) == [(f"train/{name}.jpeg", grade[name]) for name in train]
    val = published_order([f"{100 + k}_left" for k in range(0, 12, 3)], "validation")
    assert rows(parts["val"]) == [(f"test/{name}.jpeg", (int(name[:3]) - 100) % 5) for name in val]
    assert rows(parts["test"]) == [(f"test/{100 + k}_left.jpeg", k % 5) for k in range(12) if k % 3]
    assert parts["test"].description.endswith("original photos")


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ("trainLabels.csv", "7_left,5", "the level 5"),
        ("trainLabels.csv", "7_left,bad", "invalid literal"),
        ("trainLabels.csv", "7_left", "damaged"),
        ("trainLabels.csv", "../../x,1", "names the image"),
        ("retinopathy_solution.csv", "7_left,1,Secret", "the usage 'Secret'"),
    ],
)
def test_damaged_tables_of_retinopathy(tmp_path: Path, table: str, line: str, message: str) -> None:
    originals.retinopathy(tmp_path)
    with (tmp_path / "diabetic_retinopathy" / table).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        layout_named("retinopathy").read(tmp_path, find_task("vtab-1k/retinopathy"))


# The order of records


def test_the_order_of_records_is_the_documented_one() -> None:
    """CIFAR-10's first training records in TensorFlow Datasets, from its own documentation."""
    order = record_order("cifar10", "train", [""] * 50_000)
    assert order is not None
    assert order[:5].tolist() == [16399, 1680, 47917, 17307, 27051]
    assert sorted(order.tolist()) == list(range(50_000))


def test_the_order_of_records_is_unknown_where_files_do_not_tell() -> None:
    assert record_order("caltech101", "train", ["a/b.jpg"]) is None
    assert record_order("sun397", "train", ["a/b.jpg"]) is None


# Paths in lists


@given(st.text(max_size=20))
def test_listed_paths_stay_below(name: str) -> None:
    folder = Path("/data/images")
    try:
        key, path = below(folder, name, Path("list.txt"))
    except DataError:
        return
    assert os.path.normpath(path).startswith("/data/images/")
    assert key
