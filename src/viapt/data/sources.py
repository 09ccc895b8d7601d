"""Labelled images from wherever they lie: folders, CSV and JSONL files, arrays, data sets of other libraries.

Nothing is decoded here. An `ImageSource` knows what each image is called, its class, and how to get at it.
"""

from __future__ import annotations

import hashlib
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from viapt.data.folders import read_folder
from viapt.data.images import MAX_PIXELS, ImageLike, read_image
from viapt.data.listing import PARTS, Listing, Record, composed, sort_classes, suggest
from viapt.data.tables import read_table
from viapt.errors import DataError


@runtime_checkable
class ImageArrays(Protocol):
    """Images in memory, such as a packaged task.

    `images` is (n, height, width[, 3]) uint8; `labels` (n,) are indices into `classes`. An attribute `official_test`,
    (n,) bool or None, marks the images of an official test part.
    """

    images: UInt8[np.ndarray, "n height width *channels"]
    labels: Shaped[np.ndarray, " n"]
    classes: list[str]


@dataclass(frozen=True)
class LazyImage:
    """The image of one item of a map-style data set, fetched when it is needed."""

    dataset: Any
    index: int


class Item(NamedTuple):
    """One labelled image: key and part as in `Record`, the index of its class, and where its content is."""

    key: str
    label: int
    part: str
    image: Any


@dataclass(frozen=True)
class ImageSource:
    """Labelled images, not yet decoded.

    Attributes:
        items: in a stable order: folders by name, tables and arrays as they are.
        classes: names by index.
        root: the folder that keys are relative to; None for data in memory.
        description: what was read, in words.
        ignored: how many files were left out, by reason.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    root: Path | None
    description: str
    ignored: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        """What messages call item `index`: a path, or a key and the description."""
        item = self.items[index]
        if not isinstance(item.image, Path):
            return f"{item.key} of {self.description}"
        return str(self.root / item.key if self.root else item.image)

    def read(self, index: int, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Decode item `index` to RGB.

        Raises:
            DataError: as `read_image`, or the data set that should give the image failed.
        """
        image = self.items[index].image
        if isinstance(image, LazyImage):
            image = _fetch(image.dataset, image.index, self.name(index))[0]
        if not isinstance(image, ImageLike):
            raise DataError(
                f"{self.name(index)} is of type {type(image).__name__}",
                expected="a path, bytes, a Pillow image or an array (height, width, 3), not transformed",
            )
        return read_image(image, name=self.name(index), max_pixels=max_pixels)

    def digest(self, index: int, image: Image.Image) -> bytes:
        """SHA-256 of the item's content: of the file as it is, or of the decoded `image` for data in memory."""
        path = self.items[index].image
        if isinstance(path, Path):
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()

    def select(self, indices: Iterable[int]) -> ImageSource:
        """The same source with these items only, in this order."""
        return replace(self, items=tuple(self.items[index] for index in indices))


def read_source(data: Any, *, classes: Sequence[str] | None = None) -> ImageSource:
    """List the images and labels of `data`.

    Args:
        data: one of

            - a folder (str or Path) of class folders, or of train/val/test folders of such;
            - a .csv or .jsonl file with `path`, `label` and perhaps `split`;
            - `(images, labels)`: an array (n, height, width[, 3]), or a sequence of what `read_image` takes, and names
              or integers;
            - an object with `images`, `labels` and `classes`, such as a packaged task;
            - a map-style data set whose items are (image, label), the image untransformed;
            - a mapping from "train", "val", "test" to any of these.
        classes: names by index, when they are fixed already (by an adapter, for instance); classes may then be empty,
            and integer labels of arrays and data sets index them.

    Raises:
        DataError: nothing there, fewer than two classes, a class without images, labels that are no class, an image
            listed twice, and whatever is wrong with a table or folder.
    """
    root: Path | None = None
    classes = None if classes is None else _class_names(classes)
    if isinstance(data, Mapping):
        listing, description = _read_parts(data, classes), "data given by part"
    elif isinstance(data, str | Path):
        listing, description = _read_path(Path(data)), str(data)
        root = Path(data) if Path(data).is_dir() else Path(data).parent
    else:
        listing, description = _read_memory(data, classes), f"data in memory ({type(data).__name__})"
    return _assemble(listing, classes, root, description)


def content_hash(contents: Iterable[tuple[str, str, bytes]]) -> str:
    """SHA-256, as "sha256:<hex>", over the sorted (key, class name, digest of the content) of some images."""
    digest = hashlib.sha256()
    for key, name, content in sorted(contents):
        for value in (key.encode(errors="surrogateescape"), name.encode(), content):
            digest.update(len(value).to_bytes(8, "big") + value)
    return f"sha256:{digest.hexdigest()}"


def _read_path(path: Path) -> Listing:
    if not path.exists():
        raise DataError(f"{path} does not exist", expected="a folder of images, or a .csv or .jsonl file")
    return read_folder(path) if path.is_dir() else read_table(path)


def _read_memory(data: Any, classes: list[str] | None) -> Listing:
    if isinstance(data, ImageArrays):
        listing = _pair(data.images, data.labels, _class_names(data.classes))
        official = getattr(data, "official_test", None)
        if official is not None:
            parts = ["test" if is_test else "train" for is_test in official]
            listing.records = [record._replace(part=part) for record, part in zip(listing.records, parts, strict=True)]
        return listing
    if isinstance(data, tuple) and len(data) == 2:
        return _pair(*data, classes)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        count = len(data)
        labels = [_fetch(data, index, f"item {index}")[1] for index in range(count)]
        known = getattr(data, "classes", None)
        images = [LazyImage(data, index) for index in range(count)]
        return _pair(images, labels, _class_names(known) if known else classes)
    raise DataError(
        f"data of type {type(data).__name__}",
        expected="a path, (images, labels), an object with images, labels and classes, or a map-style data set",
    )


def _pair(images: Any, labels: Any, classes: list[str] | None) -> Listing:
    if len(images) != len(labels):
        raise DataError(f"{len(images)} images and {len(labels)} labels", expected="one label for each image")
    names = [_label_name(label, classes, index) for index, label in enumerate(labels)]
    images = [Path(image) if isinstance(image, str) else image for image in images]
    records = [Record(f"{i:06d}", name, "", image) for i, (name, image) in enumerate(zip(names, images, strict=True))]
    return Listing(records, classes)


def _fetch(dataset: Any, index: int, name: str) -> tuple[Any, Any]:
    try:
        image, label = dataset[index]
    except Exception as error:  # somebody else's code
        raise DataError(
            f"{name} cannot be read ({type(error).__name__}: {error})", expected="a pair (image, label)"
        ) from error
    return image, label


def _label_name(label: Any, classes: Sequence[str] | None, index: int) -> str:
    """The class name for a label: itself, or the name at this index, or the number as a name."""
    if isinstance(label, str):
        return composed(label, "a class")
    try:
        number = operator.index(label)
    except TypeError:
        raise DataError(
            f"label {label!r} of image {index} is of type {type(label).__name__}", expected="an integer or a class name"
        ) from None
    if classes is None:
        return str(number)
    if not 0 <= number < len(classes):
        raise DataError(f"label {number} of image {index}", expected=f"an index into {len(classes)} classes")
    return classes[number]


def _read_parts(data: Mapping[str, Any], classes: list[str] | None) -> Listing:
    unknown = [name for name in data if name not in PARTS]
    if unknown or not data:
        raise DataError(
            f"data for the parts {', '.join(map(repr, data)) or 'none'}", expected="train, val and test, or some"
        )
    whole = Listing()
    for part, content in data.items():
        listing = _read_path(Path(content)) if isinstance(content, str | Path) else _read_memory(content, classes)
        if any(record.part for record in listing.records):
            raise DataError(
                f"the data given for {part!r} are split themselves", remedy="give them alone, or one part of them"
            )
        whole.records += [record._replace(key=f"{part}/{record.key}", part=part) for record in listing.records]
        whole.ignored += listing.ignored
        if part == "train":
            whole.classes = listing.classes
    return whole


def _assemble(listing: Listing, classes: Sequence[str] | None, root: Path | None, description: str) -> ImageSource:
    names = classes if classes is not None else listing.classes
    if names is None:
        training = [record.label for record in listing.records if record.part in ("", "train")]
        names = sort_classes(training or [record.label for record in listing.records])
    ignored = {reason: count for reason, count in listing.ignored.items() if count}
    if not listing.records:
        left_out = ", ".join(f"{count} {reason}" for reason, count in ignored.items())
        raise DataError(f"{description} holds no images" + (f" (ignored: {left_out})" if left_out else ""))
    records = _without_repetitions(listing.records, ignored)
    if classes is None:
        _check_classes(records, names, listing.hint, description)
    index = {name: number for number, name in enumerate(names)}
    for record in records:
        if record.label not in index:
            raise DataError(
                f"{record.key} of {description} has the label {record.label!r}",
                expected=f"one of {len(names)} classes: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}",
                remedy=suggest(record.label, names),
            )
    items = tuple(Item(record.key, index[record.label], record.part, record.image) for record in records)
    return ImageSource(items, tuple(names), root, description, ignored)


def _class_names(names: Sequence[Any]) -> list[str]:
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong or len(set(names)) < len(names):
        raise DataError(f"the class names are {list(names)!r}", expected="distinct strings that are not empty")
    return [composed(name, "a class") for name in names]


def _check_classes(records: list[Record], names: Sequence[str], hint: str, description: str) -> None:
    if len(names) < 2:
        raise DataError(
            f"{description} holds the single class {names[0]!r}", expected="two classes or more", remedy=hint
        )
    counts = Counter(record.label for record in records if record.part in ("", "train"))
    empty = [name for name in names if not counts[name]]
    if empty and counts:
        raise DataError(
            f"{description} has no training images of {', '.join(map(repr, empty))}",
            expected="at least one image of each class",
            remedy="add images, or remove the class",
        )


def _without_repetitions(records: list[Record], ignored: dict[str, int]) -> list[Record]:
    """One record per key and file: a link to a listed file is left out, and must not contradict it."""
    keys: dict[str, Record] = {}
    files: dict[Path, Record] = {}
    for record in records:
        first = files.setdefault(record.image, record) if isinstance(record.image, Path) else record
        if record.key in keys or (first.label, first.part) != (record.label, record.part):
            first = keys.get(record.key, first)
            raise DataError(
                f"one image is listed twice: {first.key} ({first.label}, {first.part or 'no part'}) "
                f"and {record.key} ({record.label}, {record.part or 'no part'})",
                expected="each image once",
            )
        if first is record:
            keys[record.key] = record
    if len(keys) < len(records):
        ignored["links to images listed already"] = len(records) - len(keys)
    return list(keys.values())
