"""Labels that cannot be right: as far as names, copies and lists tell, since pictures do not say what they show.

- The same picture with two labels.
- A folder whose pictures nearly all have one label, and some another one; a folder of the same name in two parts with
  two labels; a folder called as one class whose pictures have the label of another.
- Two lists of the same folder that contradict each other (the community's `train800val200.txt`).

Where names say nothing and no picture is there twice, swapped labels cannot be told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

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
    seen: dict[bytes, dict[int, str]] = defaultdict(dict)
    for part, source in parts.items():
        for index, (item, picture) in enumerate(zip(source.items, pictures[part], strict=True)):
            if picture.content:
                seen[picture.content].setdefault(item.label, source.name(index))
    twice = [
        " and ".join(f"{name} ({label})" for label, name in labels.items())
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
    """The list of training and validation pictures together, beside their own lists; nothing where it is not there.

    Raises:
        DataError: it cannot be read.
    """
    if not (folder / UNION).is_file():
        return []
    stated = {item.key: item.label for part in ("train", "val") for item in parts[part].items}
    rows = [line.rpartition(" ") for line in read_text(folder / UNION).splitlines() if line.strip()]
    other = {key.strip(): label for key, _, label in rows}
    wrong = [
        f"{key} ({label} and {other.get(key, 'not there')})"
        for key, label in stated.items()
        if other.get(key) != str(label)
    ]
    if not wrong:
        return []
    text = f"{UNION} contradicts train800.txt and val200.txt in {len(wrong)} picture(s): {wrong[0]}"
    return [Remark("swapped", text, tuple(wrong))]


Folders = dict[str, dict[str, int]]
"""By folder: the label of each picture in it, by key."""


def _labels_by_folder(source: ImageSource) -> Folders:
    folders: Folders = defaultdict(dict)
    for item in source.items:
        if isinstance(item.image, Path):
            folders[str(PurePosixPath(item.key).parent)][item.key] = item.label
    return folders


def _stand_for_classes(folders: Folders) -> bool:
    """Whether there are several, and the label of a picture nearly always follows from its folder."""
    agreeing = sum(sum(label == _label(found) for label in found.values()) for found in folders.values())
    count = sum(map(len, folders.values()))
    return len({_label(found) for found in folders.values()}) > 1 and agreeing >= PURE * count


def _label(folder: Mapping[str, int]) -> int:
    """The most frequent label of a folder's pictures; the smallest of several."""
    return min(Counter(folder.values()).most_common(), key=lambda pair: (-pair[1], pair[0]))[0]


def _odd_ones(folders: Mapping[str, Folders]) -> list[Remark]:
    odd = [
        f"{key} ({label}, others there {_label(found)})"
        for part in folders.values()
        for found in part.values()
        for key, label in found.items()
        if label != _label(found)
    ]
    if not odd:
        return []
    return [Remark("swapped", f"{len(odd)} picture(s) have another label than those beside them: {odd[0]}", tuple(odd))]


def _between_parts(folders: Mapping[str, Folders]) -> list[Remark]:
    places: dict[str, dict[int, str]] = defaultdict(dict)
    for part, found in folders.items():
        for folder, labels in found.items():
            places[PurePosixPath(folder).name].setdefault(_label(labels), f"{part}, {folder}")
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
        for folder, labels in found.items():
            number = known.get(_plain(PurePosixPath(folder).name))
            if number is not None and number != _label(labels):
                wrong.append(f"{part}, {folder}: {classes[_label(labels)]}")
    if not wrong:
        return []
    text = f"{len(wrong)} folder(s) are called as one class and have the label of another: {wrong[0]}"
    return [Remark("swapped", text, tuple(wrong))]


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
