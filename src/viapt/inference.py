"""Prediction: three ways to deal with the randomness of instance prompts, and whatever images people have.

    policy    noise                                                   properties
    mean      none: std * eps is dropped                              deterministic, one pass, exportable
    fixed     one eps from a seed, the same for every image           deterministic, one pass
    multi     R eps from a seed, the same R for every image           R passes, their mean and their spread

Noise comes from private generators and never depends on the batch, so the answer for an image does not depend on where
it lies in which batch (but for rounding in the last digits). The exception is a method whose `batch_dependent` is true.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from viapt.data.images import read_image
from viapt.data.transforms import ImageTransform, eval_transform
from viapt.errors import ConfigError, DataError
from viapt.model import PromptedClassifier

Policy = Literal["mean", "fixed", "multi"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of some images, in their order.

    Attributes:
        labels: the most probable class of each image.
        probabilities: of each class, summing to 1 for each image.
        spread: standard deviation of the probabilities over the rounds, for `multi`; an uncertainty.
    """

    labels: list[str]
    probabilities: Float32[Tensor, "n classes"]
    spread: Float32[Tensor, "n classes"] | None


def predict(
    model: PromptedClassifier,
    images: Any,
    policy: Policy = "mean",
    rounds: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Prediction:
    """Classify images, a batch at a time, on the device where the model is; its mode is afterwards what it was before.

    Args:
        images: a preprocessed float tensor (n, 3, height, width), or an iterable of paths, encoded files (bytes),
            Pillow images, arrays as `viapt.data.images.read_image` takes them, or preprocessed float tensors (3,
            height, width). It is read lazily. A path, Pillow image or such an array alone counts as a list of one.
        policy: "mean", "fixed" or "multi".
        rounds: R >= 1, passes of `multi`.
        seed: of the noise of `fixed` and `multi`, >= 0.
        batch_size: images in one pass.
        progress: called after each batch with the number of images done.

    Raises:
        ConfigError: unknown policy, or a number out of range.
        DataError: an image that cannot be read or has the wrong shape, no images at all, or probabilities that are not
            finite.

    Warns:
        UserWarning: if the method's answers depend on the batch.
    """
    check_policy(policy, rounds, seed)
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}", expected="at least 1")
    if model.method.batch_dependent:
        warnings.warn(
            f"The method {model.method.name!r}, as configured, answers by the other images of the batch, too",
            stacklevel=2,
        )
    probabilities, spreads, done = [], [], 0
    with evaluating(model):
        for batch in preprocessed(model, images, batch_size):
            mean, spread = class_probabilities(model, batch, policy, rounds, seed)
            if not bool(mean.isfinite().all()):
                worst = done + int((~mean.isfinite()).any(1).nonzero()[0])
                raise DataError(
                    f"The probabilities of image {worst} (counting from 0) are not finite",
                    expected="finite pixels and finite weights",
                )
            probabilities.append(mean.cpu())
            spreads.append(None if spread is None else spread.cpu())
            done += batch.shape[0]
            if progress is not None:
                progress(done)
    if not probabilities:
        raise DataError("There are no images to predict", expected="at least one")
    together = torch.cat(probabilities)
    return Prediction(
        labels=[model.classes[index] for index in together.argmax(1).tolist()],
        probabilities=together,
        spread=torch.cat([s for s in spreads if s is not None]) if policy == "multi" else None,
    )


def class_probabilities(
    model: PromptedClassifier, images: Float[Tensor, "batch 3 height width"], policy: Policy, rounds: int, seed: int
) -> tuple[Float32[Tensor, "batch classes"], Float32[Tensor, "batch classes"] | None]:
    """One batch under a policy: probabilities, and for `multi` their standard deviation over the rounds.

    `images` may lie on any device; the results lie on the model's. The model must be in evaluation mode.
    """
    images = images.to(model.head.weight.device)
    if policy == "mean":
        return softmax(model(images)), None
    passes = rounds if policy == "multi" and model.method.num_instance_prompts else 1  # without noise all are equal
    outcomes = []
    for index in range(passes):
        noise = model.draw_noise(1, seed=seed, index=index).expand(images.shape[0], -1, -1)
        outcomes.append(softmax(model(images, noise=noise)))
    stacked = torch.stack(outcomes)
    return stacked.mean(0), stacked.std(0, correction=0) if policy == "multi" else None


def softmax(logits: Float[Tensor, "batch classes"]) -> Float32[Tensor, "batch classes"]:
    """Class probabilities in float32, whatever the precision of the logits."""
    return logits.float().softmax(1)


@contextmanager
def evaluating(model: PromptedClassifier) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the mode is what it was.

    Not `inference_mode`: a backbone that caches a tensor made under it could not train any more.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def check_policy(policy: str, rounds: int, seed: int) -> None:
    """Refuse an unknown policy and numbers out of range.

    Raises:
        ConfigError: naming the argument.
    """
    if policy not in get_args(Policy):
        raise ConfigError(f"There is no inference policy {policy!r}", expected=f"one of {', '.join(get_args(Policy))}")
    if rounds < 1:
        raise ConfigError(f"rounds = {rounds}", expected="at least 1")
    if seed < 0:
        raise ConfigError(f"seed = {seed}", expected="0 or above")


def preprocessed(
    model: PromptedClassifier, images: Any, batch_size: int
) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    """Batches of preprocessed images, made as they are asked for."""
    if isinstance(images, Tensor):
        check_images(model, images)
        yield from images.split(batch_size) if images.shape[0] else ()
        return
    if isinstance(images, str | Path | bytes | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    if not isinstance(images, Iterable):
        raise DataError(
            f"The images are a {type(images).__name__}", expected="a float tensor, or an iterable of images"
        )
    transform = eval_transform(model.backbone.preprocessing)
    items = (prepare(model, transform, item, index) for index, item in enumerate(images))
    while batch := list(islice(items, batch_size)):
        yield torch.stack(batch)


def prepare(
    model: PromptedClassifier, transform: ImageTransform, item: Any, index: int
) -> Float[Tensor, "3 height width"]:
    """One image as the backbone wants it; `index` names it in errors."""
    if isinstance(item, Tensor):
        check_images(model, item[None])
        return item
    if not isinstance(item, str | Path | bytes | Image.Image | np.ndarray):
        raise DataError(
            f"Image {index} (counting from 0) is a {type(item).__name__}",
            expected="a path, bytes, a Pillow image, an array, or a preprocessed float tensor (3, height, width)",
        )
    return transform(read_image(item, name=str(item) if isinstance(item, str | Path) else f"image {index}"))


def check_images(model: PromptedClassifier, images: Tensor) -> None:
    """Refuse a batch that is not preprocessed as the backbone expects.

    Raises:
        DataError: naming what was found.
    """
    expected = (3, *model.backbone.preprocessing.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected or not images.is_floating_point():
        raise DataError(
            f"A batch of images is a {images.dtype} tensor of shape {tuple(images.shape)}",
            expected=f"floating point, (n, {', '.join(map(str, expected))}), as model.backbone.preprocessing says",
            remedy="give paths, Pillow images or uint8 arrays (height, width, 3), which are preprocessed here",
        )


def check_labels(classes: int, labels: Tensor) -> None:
    """Refuse labels that are no class indices (cross-entropy would ignore -100 in silence, and crash a GPU at others).

    Raises:
        DataError: naming the label.
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise DataError(
            f"The labels of a batch are a {labels.dtype} tensor of shape {tuple(labels.shape)}",
            expected="one class index per image",
        )
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise DataError(f"A label is {int(wrong[0])}", expected=f"class indices 0 to {classes - 1}")
