"""Labels that cannot be right: as far as names, copies and lists tell, since pictures do not say what they show.

- The same picture with two labels.
- A folder whose pictures nearly all have one label, and some another one; a folder of the same name in two parts with
  two labels; a folder called as one class whose pictures have the label of another.
- Two lists of the same folder that contradict each other (the community's `train800val200.txt`).

Where names say nothing and no picture is there twice, swapped labels cannot be told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from viapt.data.benchmarks.diagnosis import Remark
from viapt.data.benchmarks.examined import Picture
from viapt.data.benchmarks.layouts import Parts
from viapt.data.benchmarks.listed import read_text
from viapt.data.sources import ImageSource

PURE = 0.9
"""Share of a folder's pictures with one label from which on the folder stands for a class."""
UNION = "train800val200.txt"


def same_picture_two_labels(parts: Parts, pictures: Mapping[str, Sequence[Picture]]) -> list[Remark]:
    """Pictures whose content is there with more than one label."""
    seen: dict[bytes, dict[int, tuple[str, int]]] = defaultdict(dict)
    for part, source in parts.items():
        for index, (item, picture) in enumerate(zip(source.items, pictures[part], strict=True)):
            if picture.content:
                seen[picture.content].setdefault(item.label, (part, index))
    twice = [
        " and ".join(f"{parts[part].items[index].key} ({label})" for label, (part, index) in labels.items())
        for labels in seen.values()
        if len(labels) > 1
    ]
    if not twice:
        return []
    return [Remark("contradiction", f"{len(twice)} picture(s) are there with two labels: {twice[0]}", tuple(twice))]


def folders_against_labels(parts: Parts) -> list[Remark]:
    """Folders that stand for classes, and what does not fit them."""
    folders = {part: _labels_by_folder(source) for part, source in parts.items()}
    folders = {part: found for part, found in folders.items() if _stand_for_classes(found)}
    return _odd_ones(folders) + _between_parts(folders) + _against_class_names(parts, folders)


def lists_against_each_other(folder: Path, parts: Parts) -> list[Remark]:
    """The list of training and validation pictures together, beside their own lists, as far as they name the same.

    Raises:
        DataError: it cannot be read.
    """
    if not (folder / UNION).is_file():
        return []
    rows = [line.rstrip().rpartition(" ") for line in read_text(folder / UNION).splitlines()]
    other = {key.strip(): label for key, _, label in rows}
    wrong = [
        f"{item.key} ({item.label} and {other[item.key]})"
        for part in ("train", "val")
        for item in parts[part].items
        if other.get(item.key, str(item.label)) != str(item.label)
    ]
    if not wrong:
        return []
    text = f"{UNION} contradicts train800.txt and val200.txt in {len(wrong)} picture(s): {wrong[0]}"
    return [Remark("swapped", text, tuple(wrong))]


class Folder(NamedTuple):
    """The label of each picture in a folder, by key, and the most frequent one (the smallest of several)."""

    labels: dict[str, int]
    label: int


Folders = dict[str, Folder]


def _labels_by_folder(source: ImageSource) -> Folders:
    folders: dict[str, dict[str, int]] = defaultdict(dict)
    for item in source.items:
        if isinstance(item.image, Path):
            folders[item.key.rpartition("/")[0]][item.key] = item.label
    return {folder: Folder(labels, _most_frequent(labels.values())) for folder, labels in folders.items()}


def _most_frequent(labels: Iterable[int]) -> int:
    counts = Counter(labels)
    return max(sorted(counts), key=counts.__getitem__)


def _stand_for_classes(folders: Folders) -> bool:
    """Whether there are several, and the label of a picture nearly always follows from its folder."""
    agreeing = sum(label == folder.label for folder in folders.values() for label in folder.labels.values())
    count = sum(len(folder.labels) for folder in folders.values())
    return len({folder.label for folder in folders.values()}) > 1 and agreeing >= PURE * count


def _odd_ones(folders: Mapping[str, Folders]) -> list[Remark]:
    odd = [
        f"{key} ({label}, others there {folder.label})"
        for part in folders.values()
        for folder in part.values()
        for key, label in folder.labels.items()
        if label != folder.label
    ]
    if not odd:
        return []
    return [Remark("swapped", f"{len(odd)} picture(s) have another label than those beside them: {odd[0]}", tuple(odd))]


def _between_parts(folders: Mapping[str, Folders]) -> list[Remark]:
    places: dict[str, dict[int, str]] = defaultdict(dict)
    for part, found in folders.items():
        for name, folder in found.items():
            places[PurePosixPath(name).name].setdefault(folder.label, f"{part}, {name}")
    split = [
        f"{name} is {' and '.join(f'{label} ({place})' for label, place in found.items())}"
        for name, found in places.items()
        if len(found) > 1
    ]
    if not split:
        return []
    return [Remark("swapped", f"{len(split)} folder(s) of one name have different labels: {split[0]}", tuple(split))]


def _against_class_names(parts: Parts, folders: Mapping[str, Folders]) -> list[Remark]:
    """Numbers are no names: some count from 0, others from 1."""
    wrong = []
    for part, found in folders.items():
        classes = parts[part].classes
        known = {_plain(name): number for number, name in enumerate(classes) if not name.isdecimal()}
        for name, folder in found.items():
            number = known.get(_plain(PurePosixPath(name).name))
            if number is not None and number != folder.label:
                wrong.append(f"{part}, {name}: {classes[folder.label]}")
    if not wrong:
        return []
    text = f"{len(wrong)} folder(s) are called as one class and have the label of another: {wrong[0]}"
    return [Remark("swapped", text, tuple(wrong))]


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
