"""What the doctor looks for in the parts of a task, once its pictures have been looked at."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from viapt.data.benchmarks.class_counts import expected_per_class
from viapt.data.benchmarks.diagnosis import PartCheck, Remark
from viapt.data.benchmarks.examined import Picture
from viapt.data.benchmarks.layouts import Parts
from viapt.data.benchmarks.near_duplicates import find_alike
from viapt.data.benchmarks.registry import BenchmarkTask
from viapt.data.listing import PARTS
from viapt.data.sources import content_hash

SHOWN = 3


def counted(parts: Parts, part: str, pictures: Sequence[Picture], task: BenchmarkTask) -> PartCheck:
    """Images of a part and of its classes, and its hash."""
    source = parts[part]
    labels = Counter(item.label for item in source.items)
    whole = not any(picture.problem for picture in pictures) and all(
        0 <= label < len(source.classes) for label in labels
    )
    contents = (
        content_hash(
            (item.key, source.classes[item.label], picture.content)
            for item, picture in zip(source.items, pictures, strict=True)
        )
        if whole
        else ""
    )
    return PartCheck(len(source), task.counts[part], tuple(labels[i] for i in range(task.classes)), contents)


def wrong_counts(task: BenchmarkTask, checks: Mapping[str, PartCheck]) -> Iterator[Remark]:
    """Parts, then classes, that have not as many images as they should."""
    images = {part: checks[part].images if part in checks else 0 for part in PARTS}
    wrong = [
        f"{part} {images[part]:,} instead of {task.counts[part]:,}"
        for part in PARTS
        if images[part] != task.counts[part]
    ]
    if wrong:
        yield Remark("count", f"another number of images than expected: {', '.join(wrong)}", tuple(wrong))
        return  # then those of classes cannot be right either
    for names, count in expected_per_class(task).items():
        per_class = [sum(numbers) for numbers in zip(*(checks[part].per_class for part in names), strict=True)]
        wrong = [f"class {i}: {number:,}" for i, number in enumerate(per_class) if number != count]
        if wrong:
            where = " and ".join(names)
            text = listed(f"{len(wrong)} class(es) have not the {count:,} images in {where} that are expected", wrong)
            yield Remark("class-count", text, tuple(wrong))
    empty = [f"class {i}" for i, number in enumerate(checks["test"].per_class) if not number]
    if empty:
        yield Remark("class-count", listed(f"{len(empty)} class(es) have no test image", empty), tuple(empty))


def wrong_labels(task: BenchmarkTask, parts: Parts) -> Iterator[Remark]:
    """Another number of classes than expected, and labels that are no class of the task."""
    found = {len(source.classes) for source in parts.values()} - {task.classes}
    if found:
        yield Remark("classes", f"{' or '.join(map(str, sorted(found)))} classes instead of {task.classes}")
    wrong = tuple(
        f"{item.key} ({item.label})"
        for source in parts.values()
        for item in source.items
        if not 0 <= item.label < task.classes
    )
    if wrong:
        yield Remark("label", listed(f"{len(wrong)} label(s) are not within 0 and {task.classes - 1}", wrong), wrong)


def unreadable(pictures: Mapping[str, Sequence[Picture]]) -> Iterator[Remark]:
    """Images that cannot be decoded, or files that cannot be opened."""
    bad = tuple(picture.problem for part in pictures.values() for picture in part if picture.problem)
    if bad:
        yield Remark("unreadable", listed(f"{len(bad)} image(s) cannot be read", bad), bad)


def copies(task: BenchmarkTask, parts: Parts, pictures: Mapping[str, Sequence[Picture]]) -> Iterator[Remark]:
    """Pictures of a part that are in an earlier one too, or look like one there."""
    known: list[tuple[str, int, Picture]] = []
    before: list[str] = []
    for part in (part for part in PARTS if part in parts):
        if known:
            yield from _copies_of(task, part, parts, pictures[part], known, " or ".join(before))
        known += [(part, i, picture) for i, picture in enumerate(pictures[part])]
        before.append(part)


def _copies_of(
    task: BenchmarkTask,
    part: str,
    parts: Parts,
    pictures: Sequence[Picture],
    known: Sequence[tuple[str, int, Picture]],
    before: str,
) -> Iterator[Remark]:
    def name(place: tuple[str, int]) -> str:
        return parts[place[0]].items[place[1]].key

    contents = {picture.content: (origin, i) for origin, i, picture in known if picture.content}
    same = [i for i, picture in enumerate(pictures) if picture.content in contents]
    if same:
        names = tuple(f"{name((part, i))} = {name(contents[pictures[i].content])}" for i in same)
        yield Remark("duplicate", listed(f"{len(same)} picture(s) of {part} are in {before} too", names), names)
    others = [picture.appearance if picture.content not in contents else b"" for picture in pictures]
    alike = find_alike(others, [picture.appearance for *_, picture in known])
    if alike:
        names = tuple(f"{name((part, pair.other))} ~ {name(known[pair.known][:2])}" for pair in alike)
        design = ", which is the nature of this task" if task.group == "structured" else ""
        text = listed(f"{len(alike)} picture(s) of {part} look like one of {before}{design}", names)
        yield Remark("near-duplicate", text, names)


def strange_names(folder: Path) -> tuple[Remark, ...]:
    """File names that are no UTF-8, and folders that cannot be listed."""
    strange: list[str] = []
    closed: list[OSError] = []
    for place, folders, files in os.walk(folder, onerror=closed.append):
        strange += [os.path.join(place, name) for name in (*folders, *files) if not _is_unicode(name)]  # noqa: PTH118
    remarks = []
    if strange:
        text = listed(f"{len(strange)} name(s) are no UTF-8 (rename them, with convmv for instance)", strange)
        remarks.append(Remark("name", text, tuple(strange)))
    if closed:
        names = tuple(str(error.filename) for error in closed)
        remarks.append(Remark("permission", listed(f"{len(closed)} folder(s) cannot be listed", names), names))
    return tuple(remarks)


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def listed(text: str, names: Sequence[str]) -> str:
    """A text and the first few of what it is about."""
    more = f"; and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{text}: {'; '.join(names[:SHOWN])}{more}"
