"""One way out of TensorFlow Datasets: the records of its cache become folders of the community's VTAB-1k layout.

Neither TensorFlow nor tensorflow-datasets is needed. A version's folder holds `dataset_info.json`, with the lengths of
its shards, and the shards: TFRecord files, or ArrayRecord files (extra `tfds`). Images are written as they were stored,
byte for byte, but for dSprites, whose 0 and 1 become 0 and 255. VTAB's slices are taken of the stored order.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from viapt.data.benchmarks import labels
from viapt.data.benchmarks.archives import whole_folder
from viapt.data.benchmarks.listed import read_text
from viapt.data.benchmarks.record_order import PART_NAMES
from viapt.data.benchmarks.registry import TASKS, BenchmarkTask, find_task
from viapt.data.benchmarks.splits import PARTS, Pool, cut, split_rule
from viapt.data.benchmarks.tfrecord import Example, parse_example, read_records
from viapt.data.images import read_image
from viapt.errors import ConfigError, DataError

FILES = {"train": "train800", "val": "val200", "test": "test"}
RULES = {"vtab-caltech": "vtab-90", "vtab-sun": "vtab-val"}
"""Releases that have official parts in TensorFlow Datasets only are cut by other rules there."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Builder:
    """A data set of TensorFlow Datasets.

    Attributes:
        path: its name, and the configuration that VTAB takes.
        versions: major versions whose records are those of VTAB.
    """

    path: str
    versions: tuple[int, ...]


BUILDERS = {
    "caltech101": Builder("caltech101", (3,)),
    "cifar100": Builder("cifar100", (3,)),
    "clevr": Builder("clevr", (3,)),
    "dmlab": Builder("dmlab", (2,)),
    "dsprites": Builder("dsprites", (2,)),
    "dtd": Builder("dtd", (3,)),
    "eurosat": Builder("eurosat/rgb", (2,)),
    "flowers102": Builder("oxford_flowers102", (2,)),
    "kitti": Builder("kitti", (3,)),
    "patch-camelyon": Builder("patch_camelyon", (2,)),
    "pets": Builder("oxford_iiit_pet", (3, 4)),
    "resisc45": Builder("resisc45", (3,)),
    "retinopathy": Builder("diabetic_retinopathy_detection/btgraham-300", (3,)),
    "smallnorb": Builder("smallnorb", (2,)),
    "sun397": Builder("sun397/tfds", (4,)),
    "svhn": Builder("svhn_cropped", (3,)),
}


def default_source() -> Path:
    """Where TensorFlow Datasets keeps its cache: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    own = os.environ.get("TFDS_DATA_DIR")
    return Path(own) if own else Path.home() / "tensorflow_datasets"


def convert(name: str, source: Path, to: Path, on_progress: Progress | None = None) -> Path:
    """Write a task of VTAB-1k in the community's layout, whole or not at all.

    Args:
        name: of the task.
        source: the cache's folder.
        to: the folder that gets a folder of the task.
        on_progress: called with (images written, images in all).

    Returns:
        the task's folder.

    Raises:
        ConfigError: no such task, or none that TensorFlow Datasets has for VTAB-1k.
        DataError: the cache does not hold it, or is damaged; the disk has no room, or refuses.
    """
    task = find_task(name if name.startswith("vtab-1k/") or f"vtab-1k/{name}" not in TASKS else f"vtab-1k/{name}")
    if task.suite != "vtab-1k":
        raise ConfigError(f"{task.name} is no task of VTAB-1k", remedy="only those are converted: see viapt data list")
    version = find_version(source, BUILDERS[task.release])
    info = read_info(version)
    rule = RULES.get(task.split, task.split)
    sizes = {part: sum(info.lengths(PART_NAMES[part])) for part in split_rule(rule).official}
    parts = cut(rule, {part: Pool(np.zeros(n, np.int64), order=np.arange(n)) for part, n in sizes.items()})
    folder = to / task.community[0]
    with whole_folder(folder, info.bytes) as inside:
        _write_parts(task, info, parts, inside, on_progress or (lambda done, total: None))
    return folder


@dataclass(frozen=True)
class Info:
    """What `dataset_info.json` says.

    Attributes:
        folder: of the version.
        name: of the data set.
        file_format: "tfrecord" or "array_record".
        shards: lengths of the shards by split.
        bytes: of all shards.
    """

    folder: Path
    name: str
    file_format: str
    shards: dict[str, list[int]]
    bytes: int

    def lengths(self, split: str) -> list[int]:
        """Records of each shard.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.shards:
            raise DataError(f"{self.folder} has the splits {', '.join(self.shards)}", expected=f"{split!r} among them")
        return self.shards[split]

    def examples(self, split: str) -> Iterator[Example]:
        """All records of a split in order.

        Raises:
            DataError: a shard is missing or damaged, or has another number of records than it should.
        """
        lengths = self.lengths(split)
        for number, length in enumerate(lengths):
            path = self.folder / f"{self.name}-{split}.{self.file_format}-{number:05d}-of-{len(lengths):05d}"
            if not path.is_file():
                raise DataError(f"{path} is missing", remedy="prepare the data set again with TensorFlow Datasets")
            count = 0
            for content in _records(path, self.file_format):
                count += 1
                yield _parsed(path, content)
            if count != length:
                raise DataError(f"{path} holds {count:,} records", expected=f"{length:,}", remedy="copy it again")


def find_version(source: Path, builder: Builder) -> Path:
    """The folder of the newest version that holds VTAB's records.

    Raises:
        DataError: there is none.
    """
    base = source / builder.path
    known = {}
    for path in base.iterdir() if base.is_dir() else ():
        numbers = path.name.split(".")
        if len(numbers) == 3 and all(number.isdigit() for number in numbers) and int(numbers[0]) in builder.versions:
            known[tuple(map(int, numbers))] = path
    if not known:
        expected = " or ".join(f"{base}/{major}.*.*" for major in builder.versions)
        raise DataError(
            f"{source} does not hold {builder.path}",
            expected=expected,
            remedy="say where the cache is with --from, or prepare the data set with TensorFlow Datasets",
        )
    return known[max(known)]


def read_info(folder: Path) -> Info:
    """What a version's folder holds.

    Raises:
        DataError: its description is missing or damaged, or the records are in another format.
    """
    path = folder / "dataset_info.json"
    try:
        content = json.loads(read_text(path))
        shards = {split["name"]: [int(n) for n in split.get("shardLengths", ())] for split in content["splits"]}
        stored = sum(int(split.get("numBytes", 0)) for split in content["splits"])
        name, file_format = content["name"], content.get("fileFormat", "tfrecord")
        if not all(isinstance(text, str) and "/" not in text for text in (name, file_format, *shards)):
            raise ValueError("a name with a slash")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error})", remedy="prepare the data set again"
        ) from error
    if file_format not in ("tfrecord", "array_record"):
        raise DataError(f"{folder} holds {file_format} files", expected="tfrecord or array_record")
    return Info(folder, name, file_format, shards, stored)


def label_of(task: BenchmarkTask, example: Example) -> int:
    """The task's label of a record."""
    quantity = task.name.rpartition("-")[2]
    if task.release == "clevr":
        depths: Any = example["objects/pixel_coords"][2::3]
        return labels.clevr_count(len(depths)) if quantity == "count" else labels.clevr_distance(depths)
    if task.release == "kitti":
        kinds: Any = example["objects/type"]
        distances: Any = example["objects/location"][2::3]
        vehicles = [labels.KITTI_VEHICLES[kind] if kind < len(labels.KITTI_VEHICLES) else "" for kind in kinds]
        return labels.kitti_distance(list(zip(vehicles, distances, strict=True)))
    if task.release == "dsprites":
        key, values = {
            "location": ("label_x_position", labels.DSPRITES_POSITIONS),
            "orientation": ("label_orientation", labels.DSPRITES_ORIENTATIONS),
        }[quantity]
        return labels.dsprites_label(_integer(example, key), values)
    return _integer(example, f"label_{quantity}" if task.release == "smallnorb" else "label")


def _integer(example: Example, key: str) -> int:
    (value,) = example[key]
    return int(value)


def _write_parts(task: BenchmarkTask, info: Info, parts: Any, folder: Path, on_progress: Progress) -> None:
    total, done = sum(len(indices) for _, indices in parts.values()), 0
    lines: dict[str, list[str]] = {}
    for part in PARTS:
        origin, indices = parts[part]
        wanted, last, lines[part] = set(indices.tolist()), int(max(indices)), []
        (folder / "images" / FILES[part]).mkdir(parents=True)
        for number, example in enumerate(info.examples(PART_NAMES[origin])):
            if number in wanted:
                lines[part].append(_write_image(task, example, folder, f"images/{FILES[part]}/{number:06d}"))
                done += 1
                on_progress(done, total)
            if number == last and part != "test":
                break  # the shards of the test part are counted to the end
    lists = {FILES[part]: lines[part] for part in PARTS} | {"train800val200": lines["train"] + lines["val"]}
    for name, content in lists.items():
        (folder / f"{name}.txt").write_text("".join(content), encoding="utf-8")


def _write_image(task: BenchmarkTask, example: Example, folder: Path, stem: str) -> str:
    """Write an image, and return its line of the list."""
    try:
        (content,) = example["image"]
        label = label_of(task, example)
        if not isinstance(content, bytes) or not 0 <= label < task.classes:
            raise ValueError(f"the label {label}")
    except (KeyError, ValueError, TypeError, DataError) as error:
        raise DataError(
            f"a record of {task.title} is not as expected ({type(error).__name__}: {error})",
            expected="an image and a label, as TensorFlow Datasets writes them",
        ) from error
    if task.release == "dsprites":
        content = _brightened(content, stem)
    name = stem + (".jpg" if content.startswith(b"\xff\xd8") else ".png")
    (folder / name).write_bytes(content)
    return f"{name} {label}\n"


def _brightened(content: bytes, name: str) -> bytes:
    pixels = np.asarray(read_image(content, name=name))
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] * np.uint8(255)).save(buffer, "PNG")
    return buffer.getvalue()


def _records(path: Path, file_format: str) -> Iterator[bytes]:
    if file_format == "tfrecord":
        yield from (content for _, content in read_records(path))
        return
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise ConfigError(
            "ArrayRecord files need the library array_record", remedy="pip install 'viapt[tfds]'"
        ) from error
    try:
        reader = ArrayRecordReader(str(path))
        for _ in range(reader.num_records()):
            yield reader.read()
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(f"{path} is damaged or truncated ({error})", remedy="copy it again") from error


def _parsed(path: Path, content: bytes) -> Example:
    try:
        return parse_example(content)
    except ValueError as error:
        raise DataError(f"a record of {path} is damaged ({error})", remedy="copy it again") from error
