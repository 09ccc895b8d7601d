"""Layouts: the forms in which a benchmark task lies on a user's disk, found and read without decoding an image.

A layout looks for a task below a root and says what is there and what is missing; it never raises for data that are
absent or half there, so that one broken task hides no other. Reading gives an `ImageSource` for each part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Int64

from viapt.data.benchmarks.record_order import record_order
from viapt.data.benchmarks.splits import SEED, Pool, cut, is_exact
from viapt.data.benchmarks.stored import without_others
from viapt.data.sources import ImageSource, Item, LazyImage
from viapt.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

Parts = dict[str, ImageSource]

LAYOUTS = {
    "community": "viapt.data.benchmarks.community:CommunityFolders",
    "fgvc-json": "viapt.data.benchmarks.fgvc_json:FgvcJson",
    "torchvision": "viapt.data.benchmarks.torchvision_layouts:TorchvisionRelease",
    "kitti": "viapt.data.benchmarks.kitti:Kitti",
    "clevr": "viapt.data.benchmarks.clevr:Clevr",
    "dmlab": "viapt.data.benchmarks.dmlab:Dmlab",
    "retinopathy": "viapt.data.benchmarks.retinopathy:Retinopathy",
    "cub": "viapt.data.benchmarks.birds:Cub",
    "nabirds": "viapt.data.benchmarks.birds:Nabirds",
    "dogs": "viapt.data.benchmarks.dogs:Dogs",
    "cars": "viapt.data.benchmarks.cars:Cars",
    "resisc45": "viapt.data.benchmarks.resisc45:Resisc45",
    "smallnorb": "viapt.data.benchmarks.norb:SmallNorb",
    "dsprites": "viapt.data.benchmarks.dsprites:Dsprites",
    "huggingface": "viapt.data.benchmarks.huggingface:HuggingFace",
}
"""Where each layout's class is; it is imported when a task that may have it is looked for."""

SHOWN = 5
DRAWN_HERE = f", split here with seed {SEED}"
"""What the description of a source says where the split is not the publications', image by image."""


@dataclass(frozen=True)
class Finding:
    """What there is of a task in one layout.

    Attributes:
        layout: its name.
        where: the folder that was recognised, or None where nothing was.
        missing: what should be there and is not, as paths below `where` or in words.
        parts: the task, where looking for it took reading it.
    """

    layout: str
    where: Path | None = None
    missing: tuple[str, ...] = ()
    parts: Parts | None = field(default=None, repr=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether the task can be read."""
        return self.where is not None and not self.missing


class Layout(ABC):
    """One form on disk. Instances have no state.

    Attributes:
        name: as in `BenchmarkTask.layouts`.
    """

    name: ClassVar[str]

    @abstractmethod
    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        """Find the task's folder below `root`, and what is missing in it."""

    @abstractmethod
    def read_at(self, where: Path, task: BenchmarkTask) -> Parts:
        """List "train", "val" and "test" of a task in the folder of a complete finding.

        Raises:
            DataError: it is not as it should be.
        """

    def read(self, root: Path, task: BenchmarkTask) -> Parts:
        """Find a task below `root`, and list its parts.

        Raises:
            DataError: it is not there, or not as it should be.
        """
        return self.read_found(self.look(root, task), root, task)

    def read_found(self, finding: Finding, root: Path, task: BenchmarkTask) -> Parts:
        """The parts of what `look` found below `root`.

        Raises:
            DataError: as `read`.
        """
        if finding.where is None:
            names = " or ".join(dict.fromkeys(str(path) for path in candidates(root, task, self.name)))
            raise DataError(f"{task.name} is not in {root} in the layout {self.name}", expected=names)
        if finding.missing:
            raise incomplete(task.name, finding)
        return self.read_at(finding.where, task) if finding.parts is None else finding.parts

    def nearest(self, root: Path, task: BenchmarkTask, missing: Callable[[Path], tuple[str, ...]]) -> Finding:
        """Of the folders that have a name of this layout for this task, the first that lacks the least.

        An archive that was unpacked into a folder of its own name has one such folder within another.
        """
        folders = [path for path in candidates(root, task, self.name) if path.is_dir()]
        findings = [Finding(self.name, folder, missing(folder)) for folder in folders]
        return min(findings, key=lambda finding: len(finding.missing), default=Finding(self.name))


class Release(Layout):
    """An original release: its official parts, which the split rule of the task cuts.

    A subclass says how to look and what the official parts are; tracks, where the rule needs them, come from `tracks`.

    Attributes:
        own_order: whether the parts are in the release's own order, on which slices depend, and from which that of
            TensorFlow Datasets follows.
    """

    own_order: ClassVar[bool] = True

    @abstractmethod
    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        """The parts as released, in the release's order: those that the task's split rule names.

        Raises:
            DataError: files are not as they should be.
        """

    def tracks(self, source: ImageSource) -> Sequence[str] | None:
        """What must stay together, such as the frames of one video: a name for each item, or None."""
        return None

    def read_at(self, where: Path, task: BenchmarkTask) -> Parts:
        official = self.official(where, task)
        pools = {
            part: Pool(
                np.array([item.label for item in source.items], np.int64),
                self.tracks(source),
                record_order(task.release, part, [item.key for item in source.items]) if self.own_order else None,
            )
            for part, source in official.items()
        }
        note = "" if is_exact(task.split, pools, own_order=self.own_order) else DRAWN_HERE
        return {
            part: marked(without_others(official[origin].select(indices.tolist())), part, note)
            for part, (origin, indices) in cut(task.split, pools).items()
        }


def cut_rows(
    task: BenchmarkTask,
    labels: Mapping[str, Int64[np.ndarray, " n"]],
    classes: tuple[str, ...],
    images: Callable[[str, Int64[np.ndarray, " wanted"]], Any],
) -> Parts:
    """Parts of a release whose images are rows of arrays, of which only those that a part uses are ever read.

    Args:
        task: whose split rule cuts.
        labels: by official part, of all rows.
        classes: names by index.
        images: from an official part and ascending numbers of rows to a data set of (image, anything).
    """
    pools = {part: Pool(own, order=record_order(task.release, part, [""] * len(own))) for part, own in labels.items()}
    parts = cut(task.split, pools)
    rows = {origin: [own for other, own in parts.values() if other == origin] for origin, _ in parts.values()}
    wanted = {origin: np.unique(np.concatenate(own)) for origin, own in rows.items()}
    datasets = {origin: images(origin, own) for origin, own in wanted.items()}
    description = f"{task.title}, original release" + ("" if is_exact(task.split, pools) else DRAWN_HERE)
    sources = {}
    for part, (origin, indices) in parts.items():
        places = np.searchsorted(wanted[origin], indices)
        items = tuple(
            Item(f"{origin}/{row:06d}", label, part, LazyImage(datasets[origin], place))
            for row, label, place in zip(
                indices.tolist(), labels[origin][indices].tolist(), places.tolist(), strict=True
            )
        )
        sources[part] = ImageSource(items, classes, None, description)
    return sources


def marked(source: ImageSource, part: str, note: str = "") -> ImageSource:
    """The same items, each said to belong to `part`; the note is added to what the source says of itself."""
    items = tuple(item._replace(part=part) for item in source.items)
    return ImageSource(items, source.classes, source.root, source.description + note, source.ignored)


def candidates(root: Path, task: BenchmarkTask, layout: str) -> Iterator[Path]:
    """Where a task may lie below `root` in a layout: under its names, also within a folder called as the task."""
    short = task.name.partition("/")[2]
    for name in task.layouts.get(layout, ()):
        yield root / name
        yield root / short / name
        yield root / short.replace("-", "_") / name


def layout_named(name: str) -> Layout:
    """An instance of a layout.

    Raises:
        ConfigError: no layout of this name, or a library that it needs is not installed.
    """
    if name not in LAYOUTS:
        remedy = did_you_mean(name, LAYOUTS)
        raise ConfigError(f"There is no layout {name!r}", expected=f"one of {', '.join(LAYOUTS)}", remedy=remedy)
    module, _, cls = LAYOUTS[name].partition(":")
    return getattr(import_module(module), cls)()


def incomplete(name: str, finding: Finding) -> DataError:
    """The error that says what is missing."""
    more = f" and {len(finding.missing) - SHOWN} more" if len(finding.missing) > SHOWN else ""
    return DataError(
        f"{finding.where} holds only a part of {name}: {', '.join(finding.missing[:SHOWN])}{more} missing",
        remedy="unpack the archive again, to the end",
    )
