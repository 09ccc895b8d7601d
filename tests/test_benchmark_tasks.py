"""Every task in every layout that it can have, all its classes included: found, listed, split, decoded, described."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniatures import fine_grained, originals, torchvision_forms
from miniatures.community import write_community
from miniatures.originals import example, tfds_cache
from miniatures.pictures import encoded
from miniatures.saved import saved
from viapt.data.benchmarks import TASKS, BenchmarkTask, find_task
from viapt.data.benchmarks.loading import BenchmarkData, load_benchmark
from viapt.data.benchmarks.tfds import convert

PAIRS = [(name, layout) for name, task in TASKS.items() for layout in task.layouts]
VTAB = [name for name in TASKS if name.startswith("vtab-1k/")]

NODES = {str(7 * k + 3): f"bird {k}" for k in range(555)}
ORIGINALS: dict[str, Callable[[Path], object]] = {
    "cub": partial(fine_grained.cub, classes=[f"{k + 1:03d}.bird_{k}" for k in range(200)]),
    "nabirds": partial(fine_grained.nabirds, per_class=2, nodes=NODES | {"1": "Birds"}, used=list(NODES)),
    "dogs": partial(fine_grained.dogs, per_class=1, classes=[f"n{k:08d}-dog {k}" for k in range(120)]),
    "cars": partial(fine_grained.cars, per_class=1, classes=[f"car {k}" for k in range(196)]),
    "resisc45": partial(originals.resisc45, per_class=5, classes=[f"land_{k:02d}" for k in range(45)]),
    "smallnorb": originals.smallnorb,
    "dsprites": originals.dsprites,
    "kitti": lambda root: originals.kitti(root, [[("Car", 9.0)]] * 30, [f"drive {k // 2:02d}"[6:] for k in range(30)]),
    "clevr": lambda root: originals.clevr(root, {"train": [[9.0] * 3] * 12, "val": [[7.0] * 4] * 6}),
    "dmlab": originals.dmlab,
    "retinopathy": originals.retinopathy,
}
FOLDERS = {"cub200": "CUB_200_2011", "nabirds": "nabirds", "dogs": "stanford_dogs", "stanford-cars": "stanford_cars"}
LAYOUT_OF = {"cub200": "cub", "nabirds": "nabirds", "dogs": "dogs"}


def json_splits(root: Path, task: BenchmarkTask) -> None:
    """VPT's files beside the release."""
    if task.release == "flowers102":
        folder = torchvision_forms.flowers102(root)
        parts = ["train"] * 102 + ["val"] * 102 + ["test"] * 204
        for part in ("train", "val", "test"):
            numbers = [k for k, own in enumerate(parts, start=1) if own == part]
            (folder / f"{part}.json").write_text(json.dumps({f"image_{k:05d}.jpg": k % 102 for k in numbers}))
        return
    if task.release == "stanford-cars":
        expected = fine_grained.cars_in_one(root, 3, classes=[f"car {k}" for k in range(196)])
    else:
        expected = ORIGINALS[LAYOUT_OF[task.release]](root)
    assert isinstance(expected, list)
    ids = {name: k for k, name in enumerate(sorted({name for _, name, _ in expected}))}
    fine_grained.json_splits(root / FOLDERS[task.release], expected, ids)


OFFICIAL = {  # parts that each release comes with
    **dict.fromkeys(["cifar10", "cifar100", "svhn", "pets", "food101", "gtsrb", "cub200", "nabirds", "dogs"], 2),
    **dict.fromkeys(["caltech101", "eurosat", "resisc45", "sun397"], 1),
    **dict.fromkeys(["dtd", "flowers102", "patch-camelyon", "dmlab"], 3),
    "stanford-cars": 2,
}


def hugging_face(root: Path, task: BenchmarkTask) -> None:
    names = [f"class {k:03d}" for k in range(task.classes)]
    splits = {1: ["train"], 2: ["train", "test"], 3: ["train", "validation", "test"]}[OFFICIAL[task.release]]
    used = 2 if task.release == "caltech101" else task.classes  # 30 of each class train
    saved(root / "huggingface" / task.release, dict.fromkeys(splits, 80), names, used)


def write(root: Path, task: BenchmarkTask, layout: str) -> None:
    if layout == "community":
        write_community(root, task, {"train800": 1, "val200": 1, "test": 1})
    elif layout == "torchvision":
        torchvision_forms.WRITERS[task.release](root)
    elif layout == "fgvc-json":
        json_splits(root, task)
    elif layout == "huggingface":
        hugging_face(root, task)
    else:
        ORIGINALS[layout](root)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Callable[[BenchmarkTask, str], Path]:
    """A release is written once for all tasks that are made of it."""
    known: dict[tuple[str, str], Path] = {}

    def root(task: BenchmarkTask, layout: str) -> Path:
        key = (task.name if layout == "community" else task.release, layout)
        if key not in known:
            known[key] = tmp_path_factory.mktemp("task")
            write(known[key], task, layout)
        return known[key]

    return root


def drawn_here(task: BenchmarkTask, layout: str) -> bool:
    """Whether the split can only be ours."""
    if layout in ("community", "fgvc-json"):
        return False
    official = task.name in ("fgvc/flowers102", "hta/flowers102", "hta/dtd")
    if layout == "huggingface":
        return not official  # rows come in an order of their own
    fifths = task.name in ("hta/cifar10", "hta/cifar100", "hta/svhn")
    ordered = task.suite == "vtab-1k" and task.release not in ("caltech101", "sun397")
    return not (official or fifths or ordered)


def check(data: BenchmarkData, task: BenchmarkTask) -> None:
    keys = [(part, item.key) for part, source in data.parts.items() for item in source.items]
    assert len({key for _, key in keys}) == len(keys) and {part for part, _ in keys} == {"train", "val", "test"}
    for source in data.parts.values():
        assert len(source.classes) == task.classes
        assert {item.label for item in source.items} <= set(range(task.classes))
        assert np.asarray(source.read(len(source) - 1)).shape[2] == 3


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_every_task_in_every_layout(roots: Callable[[BenchmarkTask, str], Path], name: str, layout: str) -> None:
    task = find_task(name)
    data = load_benchmark(task, roots(task, layout))
    assert data.layout == layout
    check(data, task)
    assert data.own_split is drawn_here(task, layout)
    words = "split here with seed 0" if data.own_split else "split as published"
    assert f"{task.title}, layout {layout}, {words}" in data.source
    facts = json.loads(json.dumps(data.to_dict()))
    assert facts["images"] == {part: len(source) for part, source in data.parts.items()} and len(facts["listing"]) == 64
    assert bool(facts["unexpected"]) and facts["unexpected"] in data.source


@pytest.mark.parametrize(
    ("name", "layout", "words"),
    [
        ("vtab-1k/retinopathy", "retinopathy", "not normalised as VTAB's"),
        ("vtab-1k/cifar100", "community", "may not be those of TensorFlow Datasets"),
        ("vtab-1k/sun397", "torchvision", "neither scaled down nor compressed again"),
        ("vtab-1k/cifar100", "torchvision", ""),
        ("hta/cifar100", "torchvision", ""),
    ],
)
def test_releases_that_are_not_the_published_images_say_so(
    roots: Callable[[BenchmarkTask, str], Path], name: str, layout: str, words: str
) -> None:
    data = load_benchmark(find_task(name), roots(find_task(name), layout))
    facts = data.to_dict()
    assert bool(facts["differs"]) is bool(words)
    assert words in facts["differs"] and facts["differs"] in data.source


def test_splits_of_fgvc_are_not_taken_for_vtabs(roots: Callable[[BenchmarkTask, str], Path]) -> None:
    """The same folder may hold VPT's JSON files: they speak of another task on these pictures."""
    root = roots(find_task("fgvc/flowers102"), "fgvc-json")
    assert load_benchmark(find_task("fgvc/flowers102"), root).layout == "fgvc-json"
    assert load_benchmark(find_task("vtab-1k/flowers102"), root).layout == "torchvision"


# Caches of TensorFlow Datasets

CACHES = {
    "caltech101": "caltech101/3.0.2", "cifar100": "cifar100/3.0.2", "clevr": "clevr/3.1.0", "dmlab": "dmlab/2.0.1",
    "dsprites": "dsprites/2.0.0", "dtd": "dtd/3.0.1", "eurosat": "eurosat/rgb/2.0.0",
    "flowers102": "oxford_flowers102/2.1.1", "kitti": "kitti/3.2.0", "patch-camelyon": "patch_camelyon/2.0.0",
    "pets": "oxford_iiit_pet/3.2.0", "resisc45": "resisc45/3.0.0",
    "retinopathy": "diabetic_retinopathy_detection/btgraham-300/3.0.0", "smallnorb": "smallnorb/2.0.0",
    "sun397": "sun397/tfds/4.0.0", "svhn": "svhn_cropped/3.1.0",
}  # fmt: skip
WHOLE = {"train": 20, "validation": 10, "test": 8}
SIZES = {  # train, val, test of the parts that are there
    **dict.fromkeys(["cifar100", "svhn", "caltech101"], (18, 2, 8)),
    "pets": (16, 4, 8),
    **dict.fromkeys(["eurosat", "resisc45"], (12, 4, 4)),
    "dsprites": (16, 2, 2),
    "smallnorb": (20, 4, 4),
    "clevr": (18, 2, 10),
}


def stored(task: BenchmarkTask, k: int, black_and_white: bytes) -> bytes:
    """A record as TensorFlow Datasets has it, of the class k modulo the number of classes."""
    label, image = k % task.classes, [encoded(k, "PNG")]
    if task.release == "clevr":
        count = label + 3 if task.name.endswith("count") else 3
        nearest = (4.0, 8.25, 8.75, 9.25, 9.75, 12.0)[label % 6]
        depths = [nearest, *[50.0] * (count - 1)]
        return example(image=image, objects__pixel_coords=[x for depth in depths for x in (1.0, 2.0, depth)])
    if task.release == "kitti":
        kinds, distances = ([], []) if label == 3 else ([0], [1.0, 1.0, (5.0, 10.0, 30.0)[label]])
        return example(image=image, objects__type=kinds, objects__location=distances)
    if task.release == "dsprites":
        own = {"label_x_position": [2 * label], "label_orientation": [(5 * label + 1) // 2]}
        return example(image=[black_and_white], **own)
    if task.release == "smallnorb":
        return example(image=image, label_azimuth=[label], label_elevation=[label % 9])
    return example(image=image, label=[label])


@pytest.mark.parametrize("name", VTAB)
def test_every_task_of_vtab_from_a_cache(tmp_path: Path, name: str) -> None:
    task = find_task(name)
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "sprite.png")
    picture = (tmp_path / "sprite.png").read_bytes()
    path, _, version = CACHES[task.release].rpartition("/")
    splits = {split: [[stored(task, k, picture) for k in range(count)]] for split, count in WHOLE.items()}
    tfds_cache(tmp_path / "cache", path, version, splits)
    convert(name, tmp_path / "cache", tmp_path / "out")
    data = load_benchmark(task, tmp_path / "out")
    check(data, task)
    sizes = tuple(len(data.parts[part]) for part in ("train", "val", "test"))
    assert sizes == SIZES.get(task.release, (20, 10, 8))
    assert [item.label for item in data.parts["train"].items] == [k % task.classes for k in range(sizes[0])]
    assert data.layout == "community" and not data.own_split
