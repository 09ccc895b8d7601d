"""Training without doing the same work in every epoch: what nothing learned has touched is computed once per image.

That is the embedded image for methods with prompts, and the feature for those without (linear probing: the head alone
is left). Images are neither read, decoded nor resized again, which is often the larger part. It is possible where an
image is the same in every epoch, that is, without augmentation.

    memory    one tensor for each data set, gone with the process
    disk      mapped files below the folder of `viapt.packaged.cache_dir`, kept for other runs on the same images
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast, get_args

import psutil
import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from viapt.backbones.base import Backbone
from viapt.backbones.cached import CachedFeatures, CachedTokens
from viapt.cache_files import Column, Entry, in_words
from viapt.data.dataset import ImageDataset
from viapt.distributed import process_count
from viapt.errors import ConfigError, DataError
from viapt.evaluation import LabelledImages, load
from viapt.inference import check_images, check_labels, evaluating
from viapt.model import PromptedClassifier
from viapt.packaged import open_cache

Cache = Literal["auto", "memory", "disk"]
FOLDER = "embedded"  # below viapt's cache
BATCH = 32  # images embedded at once, whatever the batches of training: the same images give the same bits
MEMORY_SHARE = 0.5  # of what is free, at most
TOLERANCE = 0.02  # of the largest number: how far a row on disk may be from the same row computed now
LIBRARIES = "viapt", "torch", "torchvision", "timm", "pillow"


class CachedImages(Dataset[tuple[Tensor, int]]):
    """A map-style data set of (what a cache holds of an image, class index).

    Attributes:
        classes: names by index, where the data set had them.
        ready: nothing is left to do for worker processes.
    """

    ready = True

    def __init__(self, items: Shaped[Tensor, "n ..."], labels: Shaped[Tensor, " n"], classes: Any) -> None:
        self.items, self.labels, self.classes = items, labels.tolist(), classes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.items[index], self.labels[index]


class Recorder:
    """Computes what is the same in every epoch: features where there are no prompts, else embedded tokens."""

    def __init__(self, model: PromptedClassifier, workers: int, heed: Callable[[], None]) -> None:
        self.model, self.workers, self.heed = model, workers, heed
        self.features = has_features(model)

    def of(self, images: Tensor) -> Tensor:
        """What the cache holds of images."""
        model = self.model
        tokens = model.embed(images.to(model.head.weight.device))
        return model.run(tokens, None) if self.features else torch.cat([tokens.prefix, tokens.patches], dim=1)

    def behind(self, dataset: LabelledImages) -> Backbone:
        """The rest of the backbone."""
        image = self.first(dataset)
        if self.features:
            return CachedFeatures(self.model.backbone)
        with evaluating(self.model):
            return CachedTokens(self.model.backbone, self.model.embed(image))

    def first(self, dataset: LabelledImages) -> Tensor:
        """A batch of the first image, on the model's device.

        Raises:
            DataError: it is another one when it is read again.
        """
        image, again = dataset[0][0], dataset[0][0]
        check_images(self.model, image[None])
        if not torch.equal(image.nan_to_num(), again.nan_to_num()):
            raise DataError(
                "Image 0 is not the same when it is read twice",
                expected="images without augmentation, if they are cached",
                remedy="train without a cache",
            )
        return image[None].to(self.model.head.weight.device)

    def columns(self, backbone: Backbone) -> dict[str, Column]:
        """What is kept of an image."""
        dtype = item_dtype(self.model)
        return {"items": Column(backbone.input_shape, dtype), "labels": Column((), torch.int64)}

    def chunks(self, dataset: LabelledImages) -> Iterator[dict[str, Tensor]]:
        """All of a data set, in order."""
        with evaluating(self.model):
            for images, labels in load(dataset, self.workers, self.model.head.weight.device, batch_size=BATCH):
                check_images(self.model, images)
                check_labels(len(self.model.classes), labels)
                yield {"items": self.of(images).cpu(), "labels": labels.long()}
                self.heed()

    def in_memory(self, dataset: LabelledImages, backbone: Backbone) -> CachedImages:
        """A data set in memory."""
        columns = self.columns(backbone)
        tensors = {name: torch.empty(len(dataset), *c.shape, dtype=c.dtype) for name, c in columns.items()}
        done = 0
        for chunk in self.chunks(dataset):
            count = chunk["labels"].shape[0]
            for name, tensor in tensors.items():
                tensor[done : done + count] = chunk[name]
            done += count
        return CachedImages(tensors["items"], tensors["labels"], getattr(dataset, "classes", None))

    def on_disk(self, dataset: Any, backbone: Backbone, root: Path) -> CachedImages:
        """A data set on disk, found there or written now."""
        entry = Entry(root, self.key(dataset), self.columns(backbone), len(dataset))
        with entry.locked(self.heed):
            tensors = entry.read()
            if tensors is None or not self.confirmed(tensors["items"], dataset):
                entry.write(self.chunks(dataset))
                tensors = entry.read()
        if tensors is None:
            raise ConfigError(f"The cache {entry.folder} does not keep what is written", remedy="train without a cache")
        return CachedImages(tensors["items"], tensors["labels"], getattr(dataset, "classes", None))

    def confirmed(self, items: Tensor, dataset: LabelledImages) -> bool:
        """Whether a row found on disk is what this backbone, in this process, makes of its image."""
        with evaluating(self.model):
            now = self.of(self.first(dataset))[0].cpu().float()
        fits = bool(((items[0].float() - now).abs().max() <= TOLERANCE * now.abs().max()).item())
        if not fits:
            warnings.warn("A cache does not hold what this backbone computes: it is made again", stacklevel=2)
        return fits

    def key(self, dataset: ImageDataset) -> dict[str, Any]:
        """All that the rows depend on."""
        backbone = self.model.backbone
        return {
            "kind": "features" if self.features else "tokens",
            "images": ordered_hash(dataset),
            "preprocessing": dataset.transform.preprocessing.to_dict(),
            "backbone": {"adapter": type(backbone).__name__, "fingerprint": backbone.fingerprint},
            "precision": str(backbone.dtype).removeprefix("torch."),
            "versions": {name: version(name) for name in LIBRARIES},
        } | ({"compiled": True} if self.features and backbone.compiled else {})


@contextmanager
def cached(
    model: PromptedClassifier,
    train: LabelledImages,
    val: LabelledImages | None,
    where: Cache | None,
    *,
    workers: int = 0,
    heed: Callable[[], None] = lambda: None,
) -> Iterator[tuple[LabelledImages, LabelledImages | None]]:
    """Inside, the model takes what the two data sets that are yielded hold; the same ones where nothing is cached.

    Args:
        model: on the device where it will be trained.
        train, val: map-style, of (preprocessed image, class index).
        where: see `chosen`.
        workers: processes that load images, once.
        heed: called now and then, to be interrupted.

    Raises:
        ConfigError: see `chosen`; too little memory, or room on the disk.
        DataError: images or labels that do not fit the model; images that are never the same.
    """
    datasets = [train] if val is None else [train, val]
    where = chosen(model, datasets, where)
    if where is None:
        yield train, val
        return
    recorder, whole = Recorder(model, workers, heed), model.backbone
    behind = recorder.behind(train)
    if where == "disk":
        root = open_cache() / FOLDER
        kept = [recorder.on_disk(dataset, behind, root) for dataset in datasets]
    else:
        check_memory(needed(model, behind.input_shape, datasets))
        kept = [recorder.in_memory(dataset, behind) for dataset in datasets]
    model.backbone = behind
    try:
        yield kept[0], kept[1] if val is not None else None
    finally:
        model.backbone = whole


def chosen(model: PromptedClassifier, datasets: list[LabelledImages], where: str | None) -> Cache | None:
    """Where to cache: what was asked for, or, for "auto", features in memory where that is safe and small.

    Safe are data sets that say that they do not augment (`dataset.augmented` is False). Embedded tokens take more
    memory than pixels and save little but decoding, so nobody is given them unasked.

    Raises:
        ConfigError: no such place; several processes; images that are augmented; for "disk", a data set without hashes
            of its images.
    """
    if where is None:
        return None
    if where not in get_args(Cache):
        raise ConfigError(f"cache = {where!r}", expected=f"one of {', '.join(get_args(Cache))}, or None")
    if process_count() > 1:
        if where == "auto":
            return None
        raise ConfigError(
            f"cache = {where!r} in {process_count()} processes",
            expected="one process, or no cache",
            remedy="cache=None",
        )
    if where == "auto":
        safe = all(getattr(dataset, "augmented", None) is False for dataset in datasets)
        small = needed(model, (model.backbone.feature_dim,), datasets) <= MEMORY_SHARE * free_memory()
        return "memory" if safe and small and has_features(model) else None
    if model.method.same_for_ever == "nothing":
        raise ConfigError(
            f"cache = {where!r} with the method {model.method.name}, which learns how images are embedded",
            expected="no cache",
            remedy="cache=None (--cache none)",
        )
    for dataset in datasets:
        if getattr(dataset, "augmented", hasattr(dataset, "set_epoch")):
            raise ConfigError(
                f"cache = {where!r} with images that differ from epoch to epoch",
                expected="no augmentation",
                remedy="augmentation 'none' (--augmentation none), or no cache",
            )
        if where == "disk" and not isinstance(dataset, ImageDataset):
            raise ConfigError(
                f"cache = 'disk' with a {type(dataset).__name__}, whose images have no hashes",
                expected="data from viapt.data.load_data",
                remedy="cache='memory'",
            )
    return cast("Cache", where)


def needed(model: PromptedClassifier, shape: tuple[int, ...], datasets: list[LabelledImages]) -> int:
    """Bytes of all items of some data sets."""
    return sum(map(len, datasets)) * math.prod(shape) * item_dtype(model).itemsize


def item_dtype(model: PromptedClassifier) -> torch.dtype:
    """Features are kept as the head takes them, tokens in the precision of the backbone."""
    return model.head.weight.dtype if has_features(model) else model.backbone.dtype


def has_features(model: PromptedClassifier) -> bool:
    """Whether an image's feature is the same whatever is learned."""
    return model.method.same_for_ever == "features"


def check_memory(size: int) -> None:
    """Refuse a cache that would crowd out the training.

    Raises:
        ConfigError: with both sizes.
    """
    free = free_memory()
    if size > MEMORY_SHARE * free:
        raise ConfigError(
            f"The cache takes {in_words(size)} of memory, and {in_words(free)} are free",
            expected=f"at most {100 * MEMORY_SHARE:g} % of it",
            remedy="cache='disk' (--cache disk), or no cache",
        )


def free_memory() -> int:
    """Bytes of memory that this process may still take: of the machine, or of its control group."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such group, or no limit
        return free
    return max(0, min(free, limit - used))


def ordered_hash(dataset: ImageDataset) -> str:
    """SHA-256 over contents and labels of all images in their order."""
    lines = [[digest.hex(), int(label)] for digest, label in zip(dataset.digests, dataset.labels, strict=True)]
    return f"sha256:{hashlib.sha256(json.dumps(lines).encode()).hexdigest()}"
