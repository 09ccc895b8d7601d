"""Labelled images as torch data sets: all read once before training, kept as 8-bit pixels if they are few, hashed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, islice
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from viapt.data.images import MAX_PIXELS
from viapt.data.sources import ImageSource, LazyImage, content_hash
from viapt.data.transforms import ImageTransform, sample_seed
from viapt.errors import ConfigError, DataError

CACHE_BYTES = 512 * 2**20
SHOWN = 20
THREADS = 8  # of the decode pass, at most: each may hold a full-size image
AHEAD = 64  # images handed to them at once: what is left to finish after Ctrl-C

Progress = Callable[[int, int], None]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """A map-style data set of (float32 image (3, H, W), class index), the same for each (seed, epoch, index).

    Building it decodes every image once, so that bad ones are known before training. What is prepared on the way is
    kept as uint8 unless it grows beyond `cache_bytes`; then images are decoded again whenever they are asked for.
    Pixels are the same either way. It can be pickled for the workers of a `DataLoader`.

    Args:
        source: the images.
        transform: from `eval_transform` or `train_transform`.
        on_bad_image: "error" to refuse the source, naming its bad images; "skip" to leave them out.
        cache_bytes: how many bytes of prepared pixels may be kept; 0 keeps nothing.
        seed: of the augmentation.
        max_pixels: height times width that an image may have.
        progress: called with (images done, images in all) during the decode pass.

    Attributes:
        source: the images that can be read, item by item.
        classes: names by index.
        labels: class indices, by item.
        keys: names of the items, by item.
        digests: SHA-256 of the contents, by item.
        skipped: "path: why" for each image that was left out.

    Raises:
        DataError: bad images, or no good ones.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: ImageTransform,
        *,
        on_bad_image: str = "error",
        cache_bytes: int = CACHE_BYTES,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> None:
        check_choice(on_bad_image)
        self.transform, self.seed, self.max_pixels = transform, seed, max_pixels
        self.skipped: list[str] = []
        self.digests: list[bytes] = []
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that outlive an epoch
        good, cache = [], _Cache(cache_bytes)
        for index, result in enumerate(_decode_all(source, transform, max_pixels)):
            if isinstance(result, str):
                self.skipped.append(result)
            else:
                good.append(index)
                cache.add(result[0])
                self.digests.append(result[1])
            if progress is not None:
                progress(index + 1, len(source))
        if self.skipped and (on_bad_image == "error" or not good):
            raise bad_images(self.skipped)
        self._cache = cache.freeze()
        self.source = source.select(good)
        self.classes = list(source.classes)
        self.keys = [item.key for item in self.source.items]
        self.labels = [item.label for item in self.source.items]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 height width"], int]:
        pixels = self.pixels(index)
        return self.transform.finish(pixels, sample_seed(self.seed, int(self._epoch), index)), self.labels[index]

    def pixels(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The prepared 8-bit pixels of item `index`, in [0, len), before augmentation."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        if self._cache is not None:
            return self._cache[index]
        return self.transform.prepare(self.source.read(index, max_pixels=self.max_pixels))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0 or more) whose augmentation is drawn from now on, in running workers too."""
        self._epoch.fill_(epoch)

    @property
    def cached(self) -> bool:
        """Whether prepared pixels are kept in memory."""
        return self._cache is not None

    @property
    def augmented(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return self.transform.augmentation != "none"

    @property
    def content_hash(self) -> str:
        """SHA-256, as "sha256:<hex>", over the sorted (key, class name, content) of all items."""
        names = [self.classes[label] for label in self.labels]
        return content_hash(zip(self.keys, names, self.digests, strict=True))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        self._epoch.share_memory_()


def check_choice(on_bad_image: str) -> None:
    """Raise a `ConfigError` unless `on_bad_image` is "error" or "skip"."""
    if on_bad_image not in ("error", "skip"):
        raise ConfigError(f"on_bad_image is {on_bad_image!r}", expected='"error" or "skip"')


def bad_images(skipped: list[str]) -> DataError:
    """The error that lists images that cannot be read, each as "path: why"."""
    shown = "; ".join(skipped[:SHOWN]) + (f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else "")
    return DataError(
        f"{len(skipped)} image(s) cannot be read: {shown}",
        remedy="repair or remove them, or leave them out with on_bad_image='skip' (--on-bad-image skip)",
    )


class _Cache:
    """Images of any size, one after another in one buffer: workers share it, whichever way they are started."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes, self._shapes = max_bytes, bytearray(), []
        self._full = max_bytes == 0

    def add(self, pixels: UInt8[Tensor, "3 h w"]) -> None:
        self._full = self._full or len(self._bytes) + pixels.nbytes > self._max_bytes
        if self._full:
            self._bytes, self._shapes = bytearray(), []
        else:
            self._bytes += pixels.numpy().data
            self._shapes.append(tuple(pixels.shape))

    def freeze(self) -> _Cache | None:
        """Ready for reading; None when not everything fitted."""
        if self._full or not self._shapes:
            return None
        self._ends = list(accumulate(3 * height * width for _, height, width in self._shapes))
        self._buffer = torch.frombuffer(self._bytes, dtype=torch.uint8)
        del self._bytes
        return self

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 h w"]:
        _, height, width = self._shapes[index]
        end = self._ends[index]
        return self._buffer[end - 3 * height * width : end].view(3, height, width)


def _decode_all(
    source: ImageSource, transform: ImageTransform, max_pixels: int
) -> Iterator[tuple[UInt8[Tensor, "3 h w"], bytes] | str]:
    """Prepared pixels and digest of each item, or what is wrong with it, in order."""

    def decode(index: int) -> tuple[Tensor, bytes] | str:
        try:
            image = source.read(index, max_pixels=max_pixels)
            return transform.prepare(image), source.digest(index, image)
        except DataError as error:
            return error.found
        except OSError as error:
            return f"{source.name(index)}: {error}"

    foreign = any(isinstance(item.image, LazyImage) for item in source.items)  # nobody promised that it bears threads
    indices = iter(range(len(source)))
    with ThreadPoolExecutor(1 if foreign else min(THREADS, os.cpu_count() or 1)) as pool:
        while ahead := list(islice(indices, AHEAD)):
            yield from pool.map(decode, ahead)
