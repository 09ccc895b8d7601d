"""Labels that contradict names, copies or lists are seen; honest data of every kind raise no suspicion."""

from __future__ import annotations

from pathlib import Path

import pytest

from viapt.data.benchmarks.examined import Picture
from viapt.data.benchmarks.label_evidence import (
    folders_against_labels,
    lists_against_each_other,
    same_picture_two_labels,
)
from viapt.data.sources import ImageSource, Item

NAMES = ("cat", "dog", "bird")


def source(part: str, rows: list[tuple[str, int]], classes: tuple[str, ...] = NAMES) -> ImageSource:
    items = tuple(Item(key, label, part, Path("/data", key)) for key, label in rows)
    return ImageSource(items, classes, Path("/data"), "data")


def tree(part: str, labels: dict[str, int], count: int = 4) -> list[tuple[str, int]]:
    return [(f"{part}/{folder}/{i}.png", label) for folder, label in labels.items() for i in range(count)]


FOLDERS = {"cat": 0, "dog": 1, "bird": 2}


def test_folders_that_agree_are_not_mentioned() -> None:
    parts = {part: source(part, tree(part, FOLDERS)) for part in ("train", "val", "test")}
    assert folders_against_labels(parts) == []


def test_folders_that_are_no_classes_are_not_mentioned() -> None:
    flat = source("train", [(f"images/{i}.png", i % 3) for i in range(12)])
    mixed = source("test", [(f"{'ab'[i % 2]}/{i}.png", i % 3) for i in range(12)])
    assert folders_against_labels({"train": flat, "test": mixed}) == []


def test_a_picture_unlike_those_beside_it() -> None:
    rows = tree("train", FOLDERS, 10)
    rows[3] = (rows[3][0], 2)
    (remark,) = folders_against_labels({"train": source("train", rows)})
    assert remark.kind == "swapped"
    assert remark.names == ("train/cat/3.png (2, others there 0)",)


def test_labels_swapped_between_parts_and_against_names() -> None:
    parts = {
        "train": source("train", tree("train", FOLDERS)),
        "test": source("test", tree("test", {"cat": 1, "dog": 0, "bird": 2})),
    }
    between, names = folders_against_labels(parts)
    assert between.names == (
        "cat is 0 (train, train/cat) and 1 (test, test/cat)",
        "dog is 1 (train, train/dog) and 0 (test, test/dog)",
    )
    assert names.names == ("test, test/cat: dog", "test, test/dog: cat")


def test_spelling_of_class_names_does_not_matter_and_numbers_are_no_names() -> None:
    rows = tree("train", {"Great_Dane": 0, "basset-hound": 1})
    assert folders_against_labels({"train": source("train", rows, ("great dane", "Basset Hound"))}) == []
    rows = tree("train", {"1": 0, "2": 1, "3": 2})  # counted from 1
    assert folders_against_labels({"train": source("train", rows, ("0", "1", "2"))}) == []


def test_a_picture_with_two_labels() -> None:
    parts = {
        "train": source("train", [("a.png", 0), ("b.png", 1)]),
        "test": source("test", [("c.png", 1), ("d.png", 1)]),
    }
    pictures = {
        "train": [Picture(b"1"), Picture(b"2")],
        "test": [Picture(b"1"), Picture(b"2")],
    }
    (remark,) = same_picture_two_labels(parts, pictures)
    assert remark.kind == "contradiction"
    assert remark.names == ("a.png (0) and c.png (1)",)
    unreadable = {part: [Picture(problem="x")] * 2 for part in parts}
    assert same_picture_two_labels(parts, unreadable) == []


@pytest.mark.parametrize(
    ("union", "expected"),
    [
        ("i/a.png 0\ni/b.png 1\n\n", ()),
        ("i/a.png 1\ni/b.png 0\n", ("i/a.png (0 and 1)", "i/b.png (1 and 0)")),
        ("i/a.png 0\nother/b.png 0\n", ()),
        (None, ()),
    ],
)
def test_lists_against_each_other(tmp_path: Path, union: str | None, expected: tuple[str, ...]) -> None:
    parts = {"train": source("train", [("i/a.png", 0)]), "val": source("val", [("i/b.png", 1)])}
    if union is not None:
        (tmp_path / "train800val200.txt").write_text(union)
    remarks = lists_against_each_other(tmp_path, parts)
    assert tuple(name for remark in remarks for name in remark.names) == expected
