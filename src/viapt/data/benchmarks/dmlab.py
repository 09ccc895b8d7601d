"""DMLab frames as VTAB publishes them: TFRecord files whose examples hold `image` (JPEG), `filename` and `label`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viapt.data.benchmarks.layouts import Finding, Parts, Release
from viapt.data.benchmarks.listed import by_part
from viapt.data.benchmarks.tfrecord import Example, parse_example, read_record_at, read_records
from viapt.data.listing import composed
from viapt.data.sources import Item, LazyImage
from viapt.errors import DataError

if TYPE_CHECKING:
    from viapt.data.benchmarks.registry import BenchmarkTask

FILES = {"train": "dmlab-train.tfrecord", "val": "dmlab-validation.tfrecord", "test": "dmlab-test.tfrecord"}
CLASSES = tuple(
    f"{distance}, {reward}" for reward in ("positive", "negative") for distance in ("close", "far", "very far")
)
SHARD = re.compile(r".*-(\d+)-of-(\d+)$")


class Dmlab(Release):
    """A folder with the files of dmlab.tar.gz."""

    name = "dmlab"

    def look(self, root: Path, task: BenchmarkTask) -> Finding:
        return self.nearest(root, task, _missing)

    def official(self, folder: Path, task: BenchmarkTask) -> Parts:
        items = [item for part in FILES for item in _read(folder, part)]
        return by_part(items, CLASSES, None, f"{task.title}, original release")


class RecordImages:
    """Images in TFRecord files, as a map-style data set of (bytes of the image, 0).

    Args:
        places: file and offset of each record.
    """

    def __init__(self, places: list[tuple[Path, int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, offset = self.places[index]
        return parse_example(read_record_at(path, offset))["image"][0], 0


def _shards(folder: Path, file: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"{file}*") if path.is_file())


def _missing(folder: Path) -> tuple[str, ...]:
    return tuple(name for file in FILES.values() for name in _missing_shards(folder, file))


def _missing_shards(folder: Path, file: str) -> list[str]:
    shards = _shards(folder, file)
    if not shards:
        return [file]
    numbered = [match for path in shards if (match := SHARD.match(path.name))]
    if not numbered:
        return []
    there, width, count = {int(match[1]) for match in numbered}, len(numbered[0][2]), int(numbered[0][2])
    return [f"{file}-{k:0{width}d}-of-{count:0{width}d}" for k in range(min(count, 10_000)) if k not in there]


def _read(folder: Path, part: str) -> list[Item]:
    items: list[Item] = []
    dataset = RecordImages([])
    for path in _shards(folder, FILES[part]):
        for offset, content in read_records(path):
            name, label = _described(path, offset, content)
            items.append(Item(f"{part}/{name}", label, part, LazyImage(dataset, len(items))))
            dataset.places.append((path, offset))
    return items


def _described(path: Path, offset: int, content: bytes) -> tuple[str, int]:
    try:
        example: Example = parse_example(content)
        (image,), (name,), (label,) = (example[key] for key in ("image", "filename", "label"))
        if not (isinstance(image, bytes) and isinstance(name, bytes) and isinstance(label, int)):
            raise TypeError("fields of other types")
        if not 0 <= label < len(CLASSES):
            raise ValueError(f"the label {label}")
        return composed(name.decode("utf-8"), f"a frame in {path}"), label
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the record at byte {offset:,} of {path} is none of DMLab's ({type(error).__name__}: {error})",
            expected="an example with image, filename and label 0 to 5",
            remedy="download it again",
        ) from error
