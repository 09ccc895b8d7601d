"""From the user's data to what training and evaluation take: read, split, decoded, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from viapt.backbones.base import Preprocessing
from viapt.data.dataset import CACHE_BYTES, ImageDataset, Progress, bad_images, check_choice
from viapt.data.images import MAX_PIXELS
from viapt.data.listing import PARTS
from viapt.data.sources import ImageSource, Item, read_source
from viapt.data.splits import Split, split_items
from viapt.data.transforms import eval_transform, train_transform
from viapt.errors import ConfigError, DataError

FRACTION = 0.15


@dataclass(frozen=True)
class DataSplits:
    """Data ready for training.

    Attributes:
        train: with augmentation.
        val, test: as in evaluation; None when there is none. `test` is for one evaluation, after training.
        classes: names by index.
        split: which key is in which part, and how that came about.
        description: what was read.
        ignored: files that were never listed, by reason.
    """

    train: ImageDataset
    val: ImageDataset | None
    test: ImageDataset | None
    classes: list[str]
    split: Split
    description: str
    ignored: dict[str, int]

    @property
    def parts(self) -> dict[str, ImageDataset]:
        """The data sets that are there, by part."""
        return {part: dataset for part in PARTS if (dataset := getattr(self, part)) is not None}

    @property
    def skipped(self) -> list[str]:
        """All images that were left out because they cannot be read, each as "path: why"."""
        return [name for dataset in self.parts.values() for name in dataset.skipped]

    @property
    def content_hash(self) -> str:
        """One hash of the contents of all parts, for run records."""
        lines = "\n".join(f"{part} {dataset.content_hash}" for part, dataset in self.parts.items())
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"

    @property
    def repeated(self) -> int:
        """How many validation and test images have exactly the content of a training image."""
        trained = set(self.train.digests)
        return sum(
            digest in trained for part in ("val", "test") if part in self.parts for digest in self.parts[part].digests
        )

    def to_dict(self) -> dict[str, Any]:
        """What a run keeps of its data, in plain JSON types; `Split.from_dict` reads `["split"]`."""
        return {
            "description": self.description,
            "classes": self.classes,
            "images": {part: len(dataset) for part, dataset in self.parts.items()},
            "content": {part: dataset.content_hash for part, dataset in self.parts.items()},
            "skipped": self.skipped,
            "ignored": self.ignored,
            "repeated": self.repeated,
            "split": self.split.to_dict(),
        }


def load_data(
    data: Any,
    preprocessing: Preprocessing,
    *,
    augmentation: str = "standard",
    seed: int = 0,
    val_fraction: float | int | None = None,
    test_fraction: float | int | None = None,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
    on_bad_image: str = "error",
    cache_bytes: int = CACHE_BYTES,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> DataSplits:
    """Data for training, validation and test.

    Parts that the data come with are used as they are. Where `val` is missing it is drawn from `train`. Data without
    parts are split into training, validation and test: 70, 15 and 15 % of each class by default. A test part is never
    drawn from data that come with parts.

    Every image is decoded once, those of the test part too, but only to see that it can be read.

    Args:
        data: anything that `read_source` takes.
        preprocessing: of the backbone.
        augmentation: of the training images, see `train_transform`.
        seed: of split and augmentation.
        val_fraction: a share in [0, 1) of each class, or an integer number of images of each class;
            0 for none, None for the default of 0.15 where the part has to be drawn.
        test_fraction: likewise.
        split: one that was stored, to be used again instead of drawing; images that it does not know are left out.
        classes: names by index, when they are fixed already.
        on_bad_image: "error" to stop and name all images that cannot be read; "skip" to leave them out.
        cache_bytes: how much each part may keep in memory; see `ImageDataset`.
        max_pixels: height times width that an image may have.
        progress: called with (images done, images in all) while images are decoded.

    Raises:
        ConfigError: a fraction for a part that is not drawn, an unknown augmentation.
        DataError: see `read_source`; bad images; no training part; a class left without training images.
    """
    check_choice(on_bad_image)
    source = read_source(data, classes=classes)
    if split is None:
        split = _draw(source, val_fraction, test_fraction, seed)
    elif val_fraction is not None or test_fraction is not None:
        raise ConfigError("both a stored split and a fraction to draw are given", expected="one of them")
    positions = {part: found for part, found in split.positions([item.key for item in source.items]).items() if found}
    if "train" not in positions:
        raise DataError(f"the split of {source.description} has no training images")
    total, done = sum(map(len, positions.values())), 0
    datasets: dict[str, ImageDataset] = {}
    for part, indices in positions.items():
        datasets[part] = ImageDataset(
            source.select(indices),
            train_transform(preprocessing, augmentation) if part == "train" else eval_transform(preprocessing),
            on_bad_image="skip",
            cache_bytes=cache_bytes,
            seed=seed,
            max_pixels=max_pixels,
            progress=_shifted(progress, done, total),
        )
        done += len(indices)
    skipped = [name for dataset in datasets.values() for name in dataset.skipped]
    if skipped and on_bad_image == "error":
        raise bad_images(skipped)
    _check_training(datasets["train"])
    ignored = source.ignored | (
        {"images that the stored split does not know": len(source) - total} if total < len(source) else {}
    )
    return DataSplits(
        datasets["train"],
        datasets.get("val"),
        datasets.get("test"),
        list(source.classes),
        split,
        source.description,
        ignored,
    )


def load_evaluation(
    data: Any,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    *,
    part: str | None = None,
    split: Split | None = None,
    on_bad_image: str = "error",
    cache_bytes: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> ImageDataset:
    """Data on which to evaluate a model that knows `classes`; not every class need be there.

    Args:
        data: anything that `read_source` takes.
        preprocessing: of the model's backbone.
        classes: the model's, in its order.
        part: "train", "val" or "test" of data that come with parts, or of the stored `split`; by default "test". Data
            without parts, and without a stored split, are evaluated whole.
        split: as stored by the run that trained the model.
        on_bad_image: this and the next three as in `ImageDataset`.
        cache_bytes: of decoded images that are kept.
        max_pixels: of one image.
        progress: told of what is decoded.

    Raises:
        DataError: see `read_source`; bad images; labels that the model does not know; no such part.
    """
    source = part_of(read_source(data, classes=classes), part, split)
    return ImageDataset(
        source,
        eval_transform(preprocessing),
        on_bad_image=on_bad_image,
        cache_bytes=cache_bytes,
        max_pixels=max_pixels,
        progress=progress,
    )


def part_of(source: ImageSource, part: str | None, split: Split | None = None) -> ImageSource:
    """One part of data that come with parts, or of the stored `split`; data without are taken whole.

    Args:
        part: "train", "val" or "test"; None: "test", where there are parts.

    Raises:
        DataError: there is no such part.
    """
    parts = {name: [i for i, item in enumerate(source.items) if item.part == name] for name in PARTS}
    if split is not None:
        parts = split.positions([item.key for item in source.items])
    there = [name for name, indices in parts.items() if indices]
    if not there and part is None:
        return source
    wanted = part or "test"
    if wanted not in there:
        raise DataError(
            f"{source.description} has no part {wanted!r}",
            expected=f"one of {', '.join(there)}" if there else "data that come with parts",
            remedy="choose another part" if there else "leave the part out, to evaluate on everything",
        )
    return source.select(parts[wanted])


def _draw(source: ImageSource, val_fraction: float | int | None, test_fraction: float | int | None, seed: int) -> Split:
    given: dict[str, list[Item]] = {}
    for item in source.items:
        given.setdefault(item.part, []).append(item)
    drawable = {"val", "test"} if "" in given else {"val"} - set(given)
    for part, fraction in (("val", val_fraction), ("test", test_fraction)):
        if fraction is not None and part not in drawable:
            raise ConfigError(
                f"{part}_fraction is {fraction}, but {source.description} comes with parts: {', '.join(sorted(given))}",
                remedy=f"leave {part}_fraction out",
            )
    pool = given.get("", given.get("train", []))
    if not pool:
        raise DataError(f"{source.description} has no training part", expected="train, beside val and test")
    keys = {part: tuple(item.key for item in items) for part, items in given.items()}
    if not drawable:
        return Split(keys["train"], keys["val"], keys.get("test", ()))
    drawn = split_items(
        [item.key for item in pool],
        [source.classes[item.label] for item in pool],
        val=FRACTION if val_fraction is None else val_fraction,
        test=0 if "test" not in drawable else FRACTION if test_fraction is None else test_fraction,
        seed=seed,
    )
    return replace(drawn, test=drawn.test + keys.get("test", ()))


def _shifted(progress: Progress | None, done: int, total: int) -> Progress | None:
    return None if progress is None else lambda count, _: progress(done + count, total)


def _check_training(train: ImageDataset) -> None:
    """Skipped images must not empty a class."""
    empty = sorted(set(range(len(train.classes))) - set(train.labels))
    if train.skipped and empty:
        raise DataError(
            f"no training image of {', '.join(repr(train.classes[label]) for label in empty)} can be read",
            expected="at least one of each class",
            remedy="repair the images that were skipped: " + "; ".join(train.skipped[:5]),
        )
