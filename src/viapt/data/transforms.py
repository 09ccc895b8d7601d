"""From an RGB image to the tensor that the weights expect, in three steps.

1. `prepare`, deterministic, to 8-bit pixels: timm's own resizing (and crop) for these weights. Its result may be kept
   in memory, and since it always runs, a cache changes no pixel.
2. augmentation, random, on 8-bit pixels: torchvision's transforms, from a seed given per sample.
3. normalisation to float32, as timm does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from timm.data.transforms_factory import transforms_imagenet_eval
from torch import Tensor, nn
from torchvision.transforms import Compose, v2
from torchvision.transforms.functional import normalize

from viapt.backbones.base import Preprocessing
from viapt.data.listing import suggest
from viapt.errors import ConfigError

Pixels = UInt8[Tensor, "3 height width"]


class ImageTransform:
    """A picklable transform of one image.

    Attributes:
        augmentation: its name, "none" for evaluation.
        preprocessing: what it was made from.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        augmentation: str,
        resize: Callable[[Any], Tensor],
        augment: nn.Module | None,
    ) -> None:
        self.preprocessing, self.augmentation = preprocessing, augmentation
        self._resize, self._augment = resize, augment

    def prepare(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """The deterministic part, on an RGB image; (h, w) is `image_size` unless a random crop follows."""
        return self._resize(image).contiguous()

    def finish(self, pixels: UInt8[Tensor, "3 h w"], seed: int = 0) -> Float[Tensor, "3 height width"]:
        """Augment as `seed` says, and normalise to float32 of `preprocessing.image_size`.

        torchvision draws from torch's global CPU generator: it is set here, and put back as it was.
        """
        if self._augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                pixels = self._augment(pixels)
        mean, std = list(self.preprocessing.mean), list(self.preprocessing.std)
        return normalize(pixels.to(torch.float32).div(255), mean, std)

    def __call__(self, image: Image.Image, seed: int = 0) -> Float[Tensor, "3 height width"]:
        """RGB image to float32 tensor: `prepare`, then `finish`."""
        return self.finish(self.prepare(image), seed)


def eval_transform(preprocessing: Preprocessing) -> ImageTransform:
    """The transform of the weights' own configuration: pixel for pixel that of `timm.data.create_transform`."""
    return ImageTransform(preprocessing, "none", _timm(preprocessing), None)


def train_transform(preprocessing: Preprocessing, augmentation: str = "standard") -> ImageTransform:
    """A transform for training, with the augmentation of this name.

    - "none": as in evaluation.
    - "light": as in evaluation, and mirrored left to right half of the time.
    - "standard": resized to 256/224 of the image size, cropped at random, mirrored (as in VPT's fine-grained tasks).
    - "strong": a random crop of 25 to 100 % of the area, mirrored, and two operations of RandAugment at magnitude 9.

    Mirroring is wrong where left and right matter, as for digits or for directions.

    Raises:
        ConfigError: no augmentation of this name.
    """
    if augmentation not in AUGMENTATIONS:
        raise ConfigError(
            f"no augmentation {augmentation!r}",
            expected=f"one of {', '.join(AUGMENTATIONS)}",
            remedy=suggest(augmentation, AUGMENTATIONS),
        )
    return AUGMENTATIONS[augmentation](preprocessing)


def list_augmentations() -> list[str]:
    """Names for `train_transform`, from weak to strong."""
    return list(AUGMENTATIONS)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed for one sample in one epoch, whichever process draws it; seed, epoch and index are at least 0."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _timm(preprocessing: Preprocessing) -> Compose:
    """timm's evaluation transform without its normalisation."""
    values = asdict(preprocessing)
    return transforms_imagenet_eval(values.pop("image_size"), normalize=False, **values)


def _enlarged(preprocessing: Preprocessing, crop_pct: float) -> Compose:
    """timm's resize to image_size / crop_pct without its centre crop, to be replaced by a random one; "border" pads."""
    if preprocessing.crop_mode == "border":
        height, width = (math.floor(side / crop_pct) for side in preprocessing.image_size)
        return _timm(replace(preprocessing, image_size=(height, width), crop_pct=1.0))
    resize, _, to_tensor = _timm(replace(preprocessing, crop_pct=crop_pct)).transforms
    return Compose([resize, to_tensor])


def _light(preprocessing: Preprocessing) -> ImageTransform:
    return ImageTransform(preprocessing, "light", _timm(preprocessing), v2.RandomHorizontalFlip())


def _standard(preprocessing: Preprocessing) -> ImageTransform:
    augment = v2.Compose([v2.RandomCrop(preprocessing.image_size), v2.RandomHorizontalFlip()])
    return ImageTransform(preprocessing, "standard", _enlarged(preprocessing, 224 / 256), augment)


def _strong(preprocessing: Preprocessing) -> ImageTransform:
    mode = str_to_interp_mode(preprocessing.interpolation)
    fill = [round(255 * value) for value in preprocessing.mean]
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(preprocessing.image_size, scale=(0.25, 1.0), interpolation=mode),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(num_ops=2, magnitude=9, fill=fill),
        ]
    )
    return ImageTransform(preprocessing, "strong", _enlarged(preprocessing, 0.5), augment)


AUGMENTATIONS: dict[str, Callable[[Preprocessing], ImageTransform]] = {
    "none": eval_transform,
    "light": _light,
    "standard": _standard,
    "strong": _strong,
}
