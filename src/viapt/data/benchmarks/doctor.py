"""The doctor: what of each task is there, whether it is what it should be, and what to do.

Every task is checked by itself: whatever goes wrong with one is said of that one. A task is complete ("found") when its
parts have the images that are expected, of the classes that are expected, and all can be read. Copies of a picture in
two parts, pictures that look alike, labels that seem swapped, and strange file names are warnings: published data have
some of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from viapt.data.benchmarks.archives import SUFFIXES, list_members
from viapt.data.benchmarks.diagnosis import FAILED, FOUND, MISSING, PARTLY, Diagnosis, Remark
from viapt.data.benchmarks.examined import Picture, examine
from viapt.data.benchmarks.label_evidence import (
    folders_against_labels,
    lists_against_each_other,
    same_picture_two_labels,
)
from viapt.data.benchmarks.layouts import Finding, Parts, candidates, layout_named
from viapt.data.benchmarks.manifest import Manifest
from viapt.data.benchmarks.registry import BenchmarkTask
from viapt.data.benchmarks.task_checks import (
    copies,
    counted,
    listed,
    strange_names,
    unreadable,
    wrong_counts,
    wrong_labels,
)
from viapt.data.listing import PARTS
from viapt.errors import DataError, ViaptError

LOOKED_THROUGH = 2**30  # bytes of a packed tar archive that is read to its end to see whether it is whole

Progress = Callable[[str, int, int], None]
"""Called with a task's name, its pictures looked at so far, and its pictures in all."""


def check_tasks(tasks: Iterable[BenchmarkTask], root: Path, progress: Progress) -> Iterator[Diagnosis]:
    """A diagnosis of each task below `root`, as it is made; nothing of a task is ever raised.

    Args:
        tasks: to check.
        root: a folder with tasks in any layouts.
        progress: is told of every picture.
    """
    for task in tasks:
        try:
            yield check_task(task, root, progress)
        except Exception as error:  # a broken task must not hide the others
            yield Diagnosis(task.name, FAILED, problems=(_broken_off(error),), next_step=_after_failure(error))


def check_task(task: BenchmarkTask, root: Path, progress: Progress) -> Diagnosis:
    """A diagnosis of one task.

    Raises:
        OSError, Exception: something else than the data is wrong.
    """
    finding, refused = find_layout(task, root)
    if finding is None or finding.where is None:
        damaged, step = _how_to_get(task, root)
        return Diagnosis(task.name, MISSING, problems=(*refused, *damaged), next_step=step)
    known = Diagnosis(task.name, PARTLY, finding.layout, str(finding.where))
    names = (*(strange_names(finding.where) if finding.where.is_dir() else ()), *refused)
    if finding.missing:
        problem = Remark("missing-file", listed("missing in the folder", finding.missing), finding.missing)
        step = "unpack its archive again, to the end"
        return replace(known, problems=(problem,), warnings=names, next_step=step)
    try:
        parts = layout_named(finding.layout).read_found(finding, root, task)
    except ViaptError as error:
        step = error.remedy or f"get it again; source: {task.source}"
        problem = Remark("unreadable-data", _in_words(error))
        return replace(known, problems=(problem,), warnings=names, next_step=step)
    return _examined(task, parts, finding, known, names, progress)


def find_layout(task: BenchmarkTask, root: Path) -> tuple[Finding | None, tuple[Remark, ...]]:
    """The layout that is complete, the first of several; else the one of which the least is missing; else none.

    Beside it remarks on layouts that could not be looked for.

    Raises:
        Exception: looking for a layout failed, and no other one is complete.
    """
    findings: list[Finding] = []
    refused: list[Remark] = []
    failures: list[Exception] = []
    for name in task.layouts:
        try:
            findings.append(layout_named(name).look(root, task))
        except Exception as error:  # must not hide the other layouts
            refused.append(Remark("layout", f"The layout {name} cannot be looked for: {_broken_off(error).text}"))
            failures += [] if isinstance(error, ViaptError) else [error]
    there = [finding for finding in findings if finding.where is not None]
    best = min(there, key=lambda finding: len(finding.missing), default=None)
    if failures and not (best and best.complete):
        raise failures[0]
    return best, tuple(refused)


def _examined(
    task: BenchmarkTask,
    parts: Parts,
    finding: Finding,
    known: Diagnosis,
    names: tuple[Remark, ...],
    progress: Progress,
) -> Diagnosis:
    where = finding.where
    assert where is not None
    with _kept_manifest(where) as (manifest, unkept):
        pictures = _all_pictures(task.name, parts, manifest, progress)
    checks = {part: counted(parts, part, pictures[part], task) for part in PARTS if part in parts}
    problems = [
        *wrong_counts(task, checks),
        *wrong_labels(task, parts),
        *unreadable(pictures),
    ]
    warnings = [
        *names,
        *same_picture_two_labels(parts, pictures),
        *folders_against_labels(parts),
        *(lists_against_each_other(where, parts) if finding.layout == "community" else ()),
        *copies(task, parts, pictures),
        *unkept,
    ]
    return replace(
        known,
        state=PARTLY if problems else FOUND,
        parts=checks,
        problems=tuple(problems),
        warnings=tuple(warnings),
        next_step=_next_step(task, problems),
    )


@contextmanager
def _kept_manifest(folder: Path) -> Iterator[tuple[Manifest, list[Remark]]]:
    """The folder's manifest, saved at the end, also when the check is interrupted; and why it could not be saved."""
    manifest, unkept = Manifest(folder if folder.is_dir() else folder.parent), []
    try:
        yield manifest, unkept
    finally:
        try:
            manifest.save()
        except OSError as error:
            text = f"What was found cannot be kept in {manifest.path.parent} ({error.strerror}): set VIAPT_CACHE"
            unkept.append(Remark("cache", text))


def _all_pictures(name: str, parts: Parts, manifest: Manifest, progress: Progress) -> dict[str, list[Picture]]:
    total, done = sum(map(len, parts.values())), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(name, done, total)

    return {part: examine(source, manifest, step) for part, source in parts.items()}


def _how_to_get(task: BenchmarkTask, root: Path) -> tuple[tuple[Remark, ...], str]:
    """What is wrong with an archive that lies where the task should, and what to do."""
    packed = [path for path in _archives(task, root) if path.is_file()]
    if not packed:
        names = " or ".join(f"{names[0]} ({layout})" for layout, names in task.layouts.items())
        return (), f"put it into {root} as {names}; source: {task.source}"
    archive = packed[0]
    try:
        if archive.suffix == ".zip" or archive.stat().st_size < LOOKED_THROUGH:
            list_members(archive)
    except DataError as error:
        return (
            Remark("archive", _in_words(error)),
        ), error.remedy or f"get {archive.name} again; source: {task.source}"
    folder = root / task.name.partition("/")[2]
    return (), f"unpack {archive}" if folder.exists() else f"viapt data extract {archive} --to {folder}"


def _archives(task: BenchmarkTask, root: Path) -> Iterator[Path]:
    for layout in task.layouts:
        for path in candidates(root, task, layout):
            if path != root:
                yield from (path.with_name(path.name + suffix) for suffix in SUFFIXES)


def _next_step(task: BenchmarkTask, problems: Sequence[Remark]) -> str:
    kinds = {problem.kind for problem in problems}
    if "unreadable" in kinds:
        return f"put these files there again, from the archive; source: {task.source}"
    if kinds & {"count", "class-count", "classes"}:
        return f"this copy is cut short, or of another release: get it again; source: {task.source}"
    return f"its labels are wrong: get them again; source: {task.source}" if kinds else ""


def _in_words(error: ViaptError) -> str:
    return error.found + (f" (expected: {error.expected})" if error.expected else "")


def _broken_off(error: Exception) -> Remark:
    if isinstance(error, ViaptError):
        return Remark("error", _in_words(error))
    if isinstance(error, OSError) and error.strerror:
        return Remark("error", f"{error.strerror}: {error.filename}" if error.filename else error.strerror)
    return Remark("error", f"{type(error).__name__}: {error}")


def _after_failure(error: Exception) -> str:
    if isinstance(error, ViaptError) and error.remedy:
        return error.remedy
    if isinstance(error, OSError | ViaptError):
        return "see that the folder can be read and the disk works, then check again"
    return "this may be a bug in viapt: please report it; viapt data check TASK --debug shows where"
