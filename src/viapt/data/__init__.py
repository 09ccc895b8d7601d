"""Labelled images: read from anywhere, decoded safely, split, augmented."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from viapt.data.images import read_image
from viapt.data.sources import ImageSource, read_source
from viapt.data.splits import Split, split_items

if TYPE_CHECKING:
    from viapt.data.dataset import ImageDataset
    from viapt.data.loading import DataSplits, load_data, load_evaluation
    from viapt.data.transforms import ImageTransform, eval_transform, list_augmentations, train_transform

__all__ = [
    "DataSplits",
    "ImageDataset",
    "ImageSource",
    "ImageTransform",
    "Split",
    "eval_transform",
    "list_augmentations",
    "load_data",
    "load_evaluation",
    "read_image",
    "read_source",
    "split_items",
    "train_transform",
]

_NEED_TORCH = {
    "ImageDataset": "dataset",
    "DataSplits": "loading",
    "load_data": "loading",
    "load_evaluation": "loading",
    "ImageTransform": "transforms",
    "eval_transform": "transforms",
    "list_augmentations": "transforms",
    "train_transform": "transforms",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: listing data must not wait for it."""
    if name not in _NEED_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
