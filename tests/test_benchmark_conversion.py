"""Caches of TensorFlow Datasets, exported; data sets of Hugging Face, read. Neither needs TensorFlow or a network."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from miniatures.originals import example, tfds_cache
from miniatures.pictures import encoded, number
from miniatures.saved import saved
from viapt.cli import main
from viapt.data import read_source
from viapt.data.benchmarks.huggingface import HuggingFaceImages
from viapt.data.benchmarks.layouts import Parts, layout_named
from viapt.data.benchmarks.record_order import record_order
from viapt.data.benchmarks.registry import find_task
from viapt.data.benchmarks.tfds import BUILDERS, convert
from viapt.errors import ConfigError, DataError

FORMATS = ["tfrecord", "array_record"]


def shards(contents: list[bytes], count: int) -> list[list[bytes]]:
    cut = np.linspace(0, len(contents), count + 1).astype(int)
    return [contents[start:end] for start, end in pairwise(cut)]


def labelled(count: int, classes: int, kind: str = "JPEG", first: int = 0) -> list[bytes]:
    return [example(image=[encoded(first + k, kind)], label=[k % classes], file_name=[b"x.jpg"]) for k in range(count)]


def exported(folder: Path, task: str) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Through the community's layout: which pictures each part shows, and their labels."""
    parts: Parts = layout_named("community").read(folder, find_task(task))
    shown = {part: [number(source.read(k)) for k in range(len(source))] for part, source in parts.items()}
    return shown, {part: [item.label for item in source.items] for part, source in parts.items()}


@pytest.mark.parametrize("file_format", FORMATS)
def test_slices_of_one_training_part(tmp_path: Path, file_format: str) -> None:
    splits = {"train": shards(labelled(40, 100), 3), "test": shards(labelled(7, 100), 2)}
    tfds_cache(tmp_path / "cache", "cifar100", "3.0.2", splits, file_format=file_format)
    folder = convert("cifar100" if file_format == FORMATS[0] else "vtab-1k/cifar100", tmp_path / "cache", tmp_path)
    assert folder == tmp_path / "cifar"
    shown, labels = exported(tmp_path, "vtab-1k/cifar100")
    assert shown == {"train": list(range(36)), "val": list(range(36, 40)), "test": list(range(7))}
    assert labels == shown
    assert (folder / "images/train800/000005.jpg").read_bytes() == encoded(5)
    both = (folder / "train800.txt").read_text() + (folder / "val200.txt").read_text()
    assert (folder / "train800val200.txt").read_text() == both
    assert both.splitlines()[-1] == "images/val200/000039.jpg 39"


def test_a_cache_that_tensorflow_datasets_wrote(tmp_path: Path) -> None:
    """By its version 4.9.10, see recorded/make.py: also its order is the one that original files lead to."""
    folder = convert("vtab-1k/svhn", Path(__file__).parent / "recorded", tmp_path)
    parts = layout_named("community").read(tmp_path, find_task("vtab-1k/svhn"))
    grey = {
        part: [source.read(index).getpixel((0, 0)) for index in range(len(source))] for part, source in parts.items()
    }
    order = record_order("svhn", "train", [""] * 40)
    assert order is not None
    assert grey["train"] + grey["val"] == [(k, k, k) for k in order.tolist()]
    for part, source in parts.items():
        assert [item.label for item in source.items] == [pixel[0] % 10 for pixel in grey[part]]
    assert sorted(grey["test"]) == [(k, k, k) for k in range(6)]
    assert len((folder / "val200.txt").read_text().splitlines()) == 4


def test_slices_beyond_800(tmp_path: Path) -> None:
    records = [example(image=[encoded(k % 512, "PNG")], label=[k % 10]) for k in range(1200)]
    tfds_cache(tmp_path, "svhn_cropped", "3.1.0", {"train": shards(records, 4), "test": [records[:3]]})
    shown, _ = exported(convert("vtab-1k/svhn", tmp_path, tmp_path / "out").parent, "vtab-1k/svhn")
    assert shown["train"] == [k % 512 for k in range(800)]
    assert shown["val"] == [k % 512 for k in range(1080, 1200)]


@pytest.mark.parametrize(
    ("task", "path", "version", "sizes", "expected"),
    [
        # (split, start, end) of each part, as task_adaptation's data classes slice them
        ("caltech101", "caltech101", "3.0.2", {"train": 30, "test": 8}, ("train 0 27", "train 27 30", "test 0 8")),
        ("pets", "oxford_iiit_pet", "3.2.0", {"train": 30, "test": 8}, ("train 0 24", "train 24 30", "test 0 8")),
        ("sun397", "sun397/tfds", "4.0.0", {"train": 9, "validation": 5, "test": 8},
         ("train 0 9", "validation 0 5", "test 0 8")),
        ("retinopathy", "diabetic_retinopathy_detection/btgraham-300", "3.0.0",
         {"train": 9, "validation": 5, "test": 8}, ("train 0 9", "validation 0 5", "test 0 8")),
        ("eurosat", "eurosat/rgb", "2.0.0", {"train": 30}, ("train 0 18", "train 18 24", "train 24 30")),
    ],
)  # fmt: skip
def test_slices_of_each_rule(tmp_path: Path, task: str, path: str, version: str, sizes: dict, expected: tuple) -> None:
    offset = {"train": 0, "validation": 100, "test": 200}
    splits = {split: [labelled(count, 5, "PNG", offset[split])] for split, count in sizes.items()}
    tfds_cache(tmp_path, path, version, splits)
    convert(f"vtab-1k/{task}", tmp_path, tmp_path / "out")
    shown, labels = exported(tmp_path / "out", f"vtab-1k/{task}")
    for part, words in zip(("train", "val", "test"), expected, strict=True):
        split, start, end = words.split()
        assert shown[part] == [offset[split] + k for k in range(int(start), int(end))]
        assert labels[part] == [k % 5 for k in range(int(start), int(end))]


def test_labels_of_scenes(tmp_path: Path) -> None:
    depths = [[8.0, 9.5, 12.0], [8.0625] * 10, [9.0, 8.5625, 9.875, 11.0], [12.0, 9.0625, 11], [10.5] * 5]

    def scene(k: int) -> bytes:
        flat = [float(value) for depth in depths[k % 5] for value in (1.0, 2.0, depth)]
        return example(image=[encoded(k, "PNG")], objects__pixel_coords=flat, objects__size=[0] * len(depths[k % 5]))

    records = [scene(k) for k in range(20)]
    tfds_cache(tmp_path, "clevr", "3.1.0", {"train": shards(records, 2), "validation": [records[:5]], "test": [[]]})
    for task, labels in (("clevr-count", [0, 7, 1, 0, 2]), ("clevr-distance", [0, 1, 2, 3, 5])):
        convert(task, tmp_path, tmp_path / "out")
        assert exported(tmp_path / "out", f"vtab-1k/{task}")[1] == {
            "train": (labels * 4)[:18], "val": labels[3:], "test": labels
        }  # fmt: skip


def test_labels_of_streets(tmp_path: Path) -> None:
    streets = [([0], [7.5]), ([3, 1], [1.0, 8.5]), ([2], [21.0]), ([4], [5.0]), ([], [])]

    def street(k: int) -> bytes:
        kinds, distances = streets[k % 5]
        flat = [float(value) for z in distances for value in (0.5, 1.5, z)]
        return example(image=[encoded(k, "PNG")], objects__type=kinds, objects__location=flat)

    records = [street(k) for k in range(10)]
    tfds_cache(tmp_path, "kitti", "3.2.0", {"train": [records], "validation": [records[5:]], "test": [records[:5]]})
    convert("kitti-distance", tmp_path, tmp_path / "out")
    assert exported(tmp_path / "out", "vtab-1k/kitti-distance")[1] == {
        "train": [0, 1, 2, 3, 3] * 2, "val": [0, 1, 2, 3, 3], "test": [0, 1, 2, 3, 3]
    }  # fmt: skip


def test_labels_of_norb(tmp_path: Path) -> None:
    records = [example(image=[encoded(k, "PNG")], label_azimuth=[k % 18], label_elevation=[k % 9]) for k in range(24)]
    tfds_cache(tmp_path, "smallnorb", "2.0.0", {"train": [records], "test": [records]})
    for quantity, classes in (("azimuth", 18), ("elevation", 9)):
        convert(f"smallnorb-{quantity}", tmp_path, tmp_path / "out")
        shown, labels = exported(tmp_path / "out", f"vtab-1k/smallnorb-{quantity}")
        assert shown == {"train": list(range(24)), "val": list(range(12)), "test": list(range(12, 24))}
        assert labels == {part: [k % classes for k in own] for part, own in shown.items()}


def test_sprites_become_visible(tmp_path: Path) -> None:
    def sprite(k: int) -> bytes:
        pixels = np.zeros((64, 64), np.uint8)
        pixels[k] = 1
        path = tmp_path / "sprite.png"
        Image.fromarray(pixels).save(path)
        return example(image=[path.read_bytes()], label_x_position=[31 - k], label_orientation=[39 - k])

    tfds_cache(tmp_path, "dsprites", "2.0.0", {"train": [[sprite(k) for k in range(30)]]})
    for quantity, factor in (("location", 2), ("orientation", 2.5)):
        convert(f"dsprites-{quantity}", tmp_path, tmp_path / "out")
        parts = layout_named("community").read(tmp_path / "out", find_task(f"vtab-1k/dsprites-{quantity}"))
        last = 31 if quantity == "location" else 39
        for part, numbers in (("train", range(24)), ("val", range(24, 27)), ("test", range(27, 30))):
            assert [item.label for item in parts[part].items] == [int((last - k) / factor) for k in numbers]
            for index, k in enumerate(numbers):
                pixels = np.asarray(parts[part].read(index))
                assert pixels.max() == 255
                assert np.flatnonzero(pixels[:, 0, 0]).tolist() == [k]


def test_every_task_of_vtab_has_a_builder() -> None:
    from viapt.data.benchmarks.registry import SUITES

    assert {find_task(name).release for name in SUITES["vtab-1k"]} == set(BUILDERS)


def test_the_newest_fitting_version_is_taken(tmp_path: Path) -> None:
    for version, first in (("3.0.1", 0), ("3.0.10", 100), ("4.0.0", 200), ("1.0.0", 300)):
        splits = {split: [labelled(4, 47, first=first)] for split in ("train", "validation", "test")}
        tfds_cache(tmp_path, "dtd", version, splits)
    (tmp_path / "dtd/3.incomplete").mkdir()
    convert("vtab-1k/dtd", tmp_path, tmp_path / "out")
    assert exported(tmp_path / "out", "vtab-1k/dtd")[0]["train"] == [100, 101, 102, 103]


def refused(tmp_path: Path, match: str, task: str = "vtab-1k/svhn") -> None:
    with pytest.raises((DataError, ConfigError), match=match):
        convert(task, tmp_path / "cache", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_caches_leave_nothing_behind(tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, r"does not hold svhn_cropped.*svhn_cropped/3\.\*\.\*")
    refused(tmp_path, "is no task of VTAB-1k", "fgvc/cub200")
    refused(tmp_path, "did you mean", "vtab-1k/svnh")
    splits = {"train": shards(labelled(40, 10), 2), "test": [labelled(6, 10)]}
    folder = tfds_cache(tmp_path / "cache", "svhn_cropped", "3.1.0", splits, file_format=file_format)
    description, shard = folder / "dataset_info.json", folder / f"svhn_cropped-test.{file_format}-00000-of-00001"
    info, content = json.loads(description.read_text()), shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    refused(tmp_path, "damaged or truncated")
    shard.unlink()
    refused(tmp_path, "00000-of-00001 is missing")
    shard.write_bytes(content)
    info["splits"][1]["shardLengths"] = ["7"]
    description.write_text(json.dumps(info))
    refused(tmp_path, "holds 6 records")
    info["splits"][1]["name"] = "other"
    description.write_text(json.dumps(info))
    refused(tmp_path, "has the splits train, other")
    description.write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    refused(tmp_path, "holds riegeli files")
    description.write_text(json.dumps(info | {"name": "../../secret"}))
    refused(tmp_path, "a name with a slash")
    description.write_text("{")
    refused(tmp_path, "dataset_info.json is damaged")
    shutil.rmtree(folder)
    bad = [labelled(40, 10), labelled(6, 11)]
    bad[1][5] = example(image=[b"x"], label=[10])
    folder = tfds_cache(
        tmp_path / "cache", "svhn_cropped", "3.1.0", {"train": [bad[0]], "test": [bad[1]]}, file_format=file_format
    )
    refused(tmp_path, "the label 10")
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(tmp_path, "has 1,000 bytes free")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"train": [labelled(40, 10)], "test": [labelled(6, 10)]}
    tfds_cache(tmp_path / "cache", "svhn_cropped", "3.1.0", splits)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "cache"))
    for code, out in ((0, f"{tmp_path / 'svhn'}\n"), (2, "")):
        with pytest.raises(SystemExit) as end:
            main(["data", "convert", "tfds", "vtab-1k/svhn", "--to", str(tmp_path)])
        assert end.value.code == code
        assert capsys.readouterr().out == out


# Hugging Face


def test_a_saved_data_set_is_a_release(tmp_path: Path) -> None:
    names = [f"class {k:02d}" for k in range(10)]
    saved(tmp_path / "huggingface/svhn", {"train": 30, "test": 8, "extra": 2}, names)
    parts = layout_named("huggingface").read(tmp_path, find_task("hta/svhn"))
    shown = {part: [number(source.read(k)) for k in range(len(source))] for part, source in parts.items()}
    assert shown == {"train": list(range(24)), "val": list(range(24, 30)), "test": list(range(30, 38))}
    for part, source in parts.items():
        assert [item.label for item in source.items] == [which % 10 for which in shown[part]]
        assert source.classes == tuple(names)
    assert parts["train"].description.endswith("split here with seed 0")  # its first rows may be others than SVHN's
    vtab = layout_named("huggingface").read(tmp_path, find_task("vtab-1k/svhn"))
    assert vtab["train"].description.endswith("split here with seed 0")
    assert len(vtab["train"]) == 27


def test_saved_data_sets_that_do_not_fit(tmp_path: Path) -> None:
    layout, task = layout_named("huggingface"), find_task("hta/svhn")
    assert layout.look(tmp_path, task).where is None
    (tmp_path / "huggingface/svhn").mkdir(parents=True)
    assert layout.look(tmp_path, task).missing == ("dataset_dict.json or state.json",)
    saved(tmp_path / "huggingface/svhn", {"train": 6}, ["a", "b", "c"])
    with pytest.raises(DataError, match="has the splits train, and no 'test'"):
        layout.read(tmp_path, task)
    shutil.rmtree(tmp_path / "huggingface/svhn")
    saved(tmp_path / "huggingface/svhn", {"train": 6, "test": 3}, ["a", "b", "c"])
    with pytest.raises(DataError, match="no columns of classes, 10 of them: img"):
        layout.read(tmp_path, task)
    next((tmp_path / "huggingface/svhn/train").glob("*.arrow")).write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as a Hugging Face data set"):
        layout.read(tmp_path, task)


def test_a_data_set_of_ones_own(tmp_path: Path) -> None:
    saved(tmp_path / "own", {"train": 12}, ["a", "b", "c"])
    (rows,) = datasets.load_from_disk(str(tmp_path / "own")).values()
    with pytest.raises(DataError, match=r"2 columns of classes: img \(Image\), coarse \(ClassLabel\), fine"):
        HuggingFaceImages(rows)
    source = read_source(HuggingFaceImages(rows, label="fine"))
    assert source.classes == ("a", "b", "c")
    assert [item.label for item in source.items] == [k % 3 for k in range(12)]
    assert [number(source.read(k)) for k in range(12)] == list(range(12))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
