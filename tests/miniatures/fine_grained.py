"""CUB-200-2011, NABirds, Stanford Dogs and Stanford Cars as published, and VPT's JSON splits, with a few images each.

Each writer returns the expected (key, class name, official part) of every picture; picture k has `pictures.colour(k)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

from miniatures.pictures import save, text

Expected = list[tuple[str, str, str]]

CUB_CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
NABIRDS = {"295": "Common Eider (Adult male)", "0": "Birds", "313": "Snow Goose", "1010": "House Wren", "22": "Ducks"}
NABIRDS_USED = ("295", "313", "1010")
DOGS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel")


def cub(root: Path, per_class: int = 4, classes: Sequence[str] = CUB_CLASSES) -> Expected:
    """`CUB_200_2011`: every fourth image of a class tests."""
    folder, expected = root / "CUB_200_2011", []
    images, labels, parts = [], [], []
    for c, name in enumerate(classes, start=1):
        for k in range(per_class):
            image = len(expected) + 1
            key, part = f"{name}/{name[4:]}_{k:04d}_{100 + image}.jpg", "test" if k % 4 == 3 else "train"
            save(folder / "images" / key, len(expected))
            images.append(f"{image} {key}")
            labels.append(f"{image} {c}")
            parts.append(f"{image} {int(part == 'train')}")
            expected.append((key, name, part))
    text(folder / "images.txt", *images)
    text(folder / "image_class_labels.txt", *labels)
    text(folder / "train_test_split.txt", *parts)
    text(folder / "classes.txt", *(f"{c} {name}" for c, name in enumerate(classes, start=1)))
    return expected


def nabirds(
    root: Path, per_class: int = 4, nodes: Mapping[str, str] = NABIRDS, used: Sequence[str] = NABIRDS_USED
) -> Expected:
    """`nabirds`: images are called by UUIDs, classes are nodes of a hierarchy of which some carry images."""
    folder, expected = root / "nabirds", []
    images, labels, parts = [], [], []
    for node in used:
        for k in range(per_class):
            uuid = f"0000139e-21dc-4d0c-bfe1-{len(expected):012x}"
            key, part = f"{int(node):04d}/{uuid.replace('-', '')}.jpg", "test" if k % 2 else "train"
            save(folder / "images" / key, len(expected))
            images.append(f"{uuid} {key}")
            labels.append(f"{uuid} {node}")
            parts.append(f"{uuid} {int(part == 'train')}")
            expected.append((key, nodes[node], part))
    text(folder / "images.txt", *images)
    text(folder / "image_class_labels.txt", *labels)
    text(folder / "train_test_split.txt", *parts)
    text(folder / "classes.txt", *(f"{node} {name}" for node, name in nodes.items()))
    text(folder / "hierarchy.txt", "295 22", "313 22", "22 0", "1010 0")
    return expected


def dogs(root: Path, per_class: int = 4, classes: Sequence[str] = DOGS, *, lists: str = "lists") -> Expected:
    """`stanford_dogs` with `Images` and MATLAB lists, in a folder `lists` or beside."""
    folder, expected = root / "stanford_dogs", []
    for part in ("train", "test"):
        files, labels = [], []
        for c, name in enumerate(classes, start=1):
            for k in range(per_class):
                key = f"{name}/{name.split('-')[0]}_{1000 * (part == 'test') + k}.jpg"
                save(folder / "Images" / key, len(expected))
                files.append(key)
                labels.append([float(c)])
                expected.append((key, name, part))
        column = np.array(files, object).reshape(-1, 1)
        path = folder / lists / f"{part}_list.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"file_list": column, "annotation_list": column, "labels": np.array(labels)}, do_compression=True)
    return expected


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012")


def cars(root: Path, per_class: int = 4, classes: Sequence[str] = CARS) -> Expected:
    """`stanford_cars` with a devkit, and the labels of the test images beside it."""
    folder, expected = root / "stanford_cars", []
    for part, table in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = []
        for k in range(per_class * len(classes)):
            c, file = k % len(classes), f"{k + 1:05d}.jpg"
            save(folder / f"cars_{part}" / file, len(expected))
            rows.append((0.0, 0.0, 15.0, 15.0, c + 1, file))
            expected.append((f"cars_{part}/{file}", classes[c], part))
        _save_structs(folder / table, ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"), rows)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([list(classes)], object)})
    return expected


def cars_in_one(root: Path, per_class: int = 4, classes: Sequence[str] = CARS) -> Expected:
    """`stanford_cars` with `car_ims` and one table."""
    folder, expected, rows = root / "stanford_cars", [], []
    for k in range(2 * per_class * len(classes)):
        c, part, file = k % len(classes), "test" if k % 2 else "train", f"car_ims/{k + 1:06d}.jpg"
        save(folder / file, len(expected))
        rows.append((file, 0.0, 0.0, 15.0, 15.0, c + 1, int(part == "test")))
        expected.append((file, classes[c], part))
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    _save_structs(folder / "cars_annos.mat", fields, rows, class_names=np.array([list(classes)], object))
    return expected


def _save_structs(path: Path, fields: tuple[str, ...], rows: list[tuple], **more: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.empty((1, len(rows)), [(field, object) for field in fields])
    for k, row in enumerate(rows):
        table[0, k] = row
    savemat(path, {"annotations": table} | more)


def json_splits(folder: Path, expected: Expected, ids: dict[str, int]) -> dict[str, dict[str, int]]:
    """`{train,val,test}.json`: every third training image validates; names are relative to VPT's image folder."""
    splits: dict[str, dict[str, int]] = {"train": {}, "val": {}, "test": {}}
    for k, (key, name, part) in enumerate(expected):
        splits["val" if part == "train" and k % 3 == 2 else part][key] = ids[name]
    for part, split in splits.items():
        (folder / f"{part}.json").write_text(json.dumps(split))
    return splits
