"""Data sets of Hugging Face's `datasets` (extra `huggingface`), from disk and never from the network.

A benchmark task is read from `ROOT/huggingface/RELEASE`, a folder that `save_to_disk` wrote, whose splits are taken for
the release's official parts. Rows come in whatever order the data set has, so that VTAB's slices are drawn here.
`HuggingFaceImages` makes one of its splits a data set for `viapt.data.read_source`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.splits import split_rule
from viapt.data.listing import PART_NAMES
from viapt.data.sources import ImageSource, Item, LazyImage
from viapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

MARKS = ("dataset_dict.json", "state.json")  # of several splits, of one


class HuggingFaceImages:
    """A split as a map-style data set of (the file's bytes, class index): nothing is decoded before it is needed.

    Args:
        split: a `datasets.Dataset` with a column of images and one of classes.
        image, label: their names; by default the only ones of their kinds.
        class_count: how many classes the column of classes must have.

    Attributes:
        classes: their names.
        labels: class indices of all rows.

    Raises:
        DataError: no such column, or several; a label out of range.
    """

    def __init__(
        self, split: Any, *, image: str | None = None, label: str | None = None, class_count: int | None = None
    ) -> None:
        datasets = _library()
        self.image = _column(split, image, lambda feature: isinstance(feature, datasets.Image), "images")
        kind = lambda feature: (  # noqa: E731
            isinstance(feature, datasets.ClassLabel) and class_count in (None, feature.num_classes)
        )
        self.label = _column(split, label, kind, f"classes{f', {class_count} of them' if class_count else ''}")
        feature = split.features[self.label]
        self.classes: list[str] = list(feature.names)
        self.labels: list[int] = list(split[self.label])
        if wrong := [number for number in self.labels if not 0 <= number < len(self.classes)]:
            raise DataError(f"the column {self.label!r} holds {wrong[0]}", expected=f"0 to {len(self.classes) - 1}")
        self._rows = split.cast_column(self.image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[bytes | Path, int]:
        content = self._rows[index][self.image]
        return content["bytes"] if content["bytes"] is not None else Path(content["path"]), self.labels[index]


class HuggingFace(Release):
    """A folder that `save_to_disk` wrote."""

    name = "huggingface"
    own_order: ClassVar[bool] = False

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, _missing)

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        splits = _load(folder)
        needed = split_rule(task.split).official
        if needed == ("all",) and len(splits) == 1:
            named = {"all": next(iter(splits.values()))}
        else:
            named = {PART_NAMES.get(name, name): split for name, split in splits.items()}
        if missing := [part for part in needed if part not in named]:
            raise DataError(
                f"{folder} has the splits {', '.join(splits)}, and no {missing[0]!r}",
                expected=f"the official parts of {task.title}: {', '.join(needed)}",
                remedy="save them with save_to_disk under these names",
            )
        return {part: _source(named[part], part, task) for part in needed}


def _missing(folder: Path) -> tuple[str, ...]:
    return () if any((folder / mark).is_file() for mark in MARKS) else (" or ".join(MARKS),)


def _source(split: Any, part: str, task: BenchmarkTask) -> ImageSource:
    images = HuggingFaceImages(split, class_count=task.classes)
    items = tuple(
        Item(f"{part}/{row:06d}", label, part, LazyImage(images, row)) for row, label in enumerate(images.labels)
    )
    return ImageSource(items, tuple(images.classes), None, f"{task.title}, Hugging Face data set")


def _load(folder: Path) -> dict[str, Any]:
    datasets = _library()
    try:
        content = datasets.load_from_disk(str(folder))
    except Exception as error:  # of several libraries
        raise DataError(
            f"{folder} cannot be read as a Hugging Face data set ({type(error).__name__}: {error})",
            expected="a folder that save_to_disk wrote",
            remedy="save it again",
        ) from error
    return dict(content) if isinstance(content, datasets.DatasetDict) else {"train": content}


def _column(split: Any, name: str | None, fits: Any, what: str) -> str:
    found = [column for column, feature in split.features.items() if fits(feature)]
    if name is not None:
        found = [column for column in found if column == name]
    if len(found) != 1:
        raise DataError(
            f"the data set has {len(found) or 'no'} column{'s' * (len(found) != 1)} of {what}: "
            + ", ".join(f"{column} ({type(feature).__name__})" for column, feature in split.features.items()),
            expected=f"one{f', named {name}' if name else ''}",
        )
    return found[0]


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "Hugging Face data sets need the library datasets", remedy="pip install 'viapt[huggingface]'"
        ) from error
    return datasets
