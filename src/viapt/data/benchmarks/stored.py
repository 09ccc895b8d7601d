"""Images of a release that comes as one array: in memory, those that a part does not use let go of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64, UInt8

from viapt.data.sources import ImageSource, Item, LazyImage


@dataclass(frozen=True)
class StoredImages:
    """A map-style data set of (uint8 image (height, width, 3), label) over an array in memory."""

    images: UInt8[np.ndarray, "n channels height width"]
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[UInt8[np.ndarray, "height width channels"], int]:
        return np.ascontiguousarray(self.images[index].transpose(1, 2, 0)), int(self.labels[index])

    def source(self, part: str, classes: tuple[str, ...], name: str) -> ImageSource:
        """All of it, in order, called by part and number."""
        labels = enumerate(self.labels.tolist())
        items = (Item(f"{part}/{i:06d}", label, part, LazyImage(self, i)) for i, label in labels)
        return ImageSource(tuple(items), classes, None, f"{name} ({part})")


def without_others(source: ImageSource) -> ImageSource:
    """The same images, over an array of these alone where they are less than half of one: SVHN's takes 225 MB."""
    images = [item.image for item in source.items if isinstance(item.image, LazyImage)]
    dataset = images[0].dataset if images else None
    if not isinstance(dataset, StoredImages) or 2 * len(images) >= len(dataset):
        return source
    rows = np.array([image.index for image in images], np.int64)
    own = StoredImages(dataset.images[rows], dataset.labels[rows])
    return replace(
        source, items=tuple(item._replace(image=LazyImage(own, place)) for place, item in enumerate(source.items))
    )
