"""Prediction: three ways to deal with the randomness of instance prompts, and whatever images people have.

    policy    noise                                                   properties
    mean      none: std * eps is dropped                              deterministic, one pass, exportable
    fixed     one eps from a seed, the same for every image           deterministic, one pass
    multi     R eps from a seed, the same R for every image           R passes, their mean and their spread

With `adaptive`, `multi` gives an image only as many of its R passes as its label needs; see `viapt.rounds`.

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
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from PIL import Image
from torch import Tensor

from viapt.backbones.base import Preprocessing
from viapt.data.images import read_image
from viapt.data.transforms import ImageTransform, eval_transform
from viapt.device import prepare_process, send
from viapt.errors import ConfigError, DataError
from viapt.model import PromptedClassifier
from viapt.sampling import all_rounds, needed_rounds

Policy = Literal["mean", "fixed", "multi"]
MAX_DISAGREEMENT = 0.01  # between the labels of adaptive rounds and of all rounds


@dataclass(frozen=True)
class Prediction:
    """What a model says of some images, in their order.

    Attributes:
        labels: the most probable class of each image.
        probabilities: of each class, summing to 1 for each image.
        spread: standard deviation of the probabilities over the rounds, for `multi`; an uncertainty. None where rounds
            are adaptive: an image that stops after its first has none.
        rounds: passes that each image took.
    """

    labels: list[str]
    probabilities: Float32[Tensor, "n classes"]
    spread: Float32[Tensor, "n classes"] | None
    rounds: Int64[Tensor, " n"] | None = None


def predict(
    model: PromptedClassifier,
    images: Any,
    policy: Policy = "mean",
    rounds: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    *,
    adaptive: bool = False,
    max_disagreement: float = MAX_DISAGREEMENT,
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
        adaptive: stop the rounds of an image as soon as its label is settled.
        max_disagreement: probability, at most, that the label of an image then differs from the one of all rounds.

    Raises:
        ConfigError: unknown policy, a number out of range, an argument without effect, or adaptive rounds of a model
            whose rounds were not calibrated.
        DataError: an image that cannot be read or has the wrong shape, no images at all, or probabilities that are not
            finite.

    Warns:
        UserWarning: if the method's answers depend on the batch.
    """
    check_policy(policy, rounds, seed)
    alpha = check_adaptive(policy, rounds, adaptive, max_disagreement)
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size}", expected="at least 1")
    if model.method.batch_dependent:
        warnings.warn(
            f"The method {model.method.name!r}, as configured, answers by the other images of the batch, too",
            stacklevel=2,
        )
    answers, done = [], 0
    with evaluating(model):
        for batch in preprocessed(model.backbone.preprocessing, images, batch_size):
            answer = class_probabilities(model, batch, policy, rounds, seed, alpha)
            if not bool(answer.probabilities.isfinite().all()):
                worst = done + int((~answer.probabilities.isfinite()).any(1).nonzero()[0])
                raise DataError(
                    f"The probabilities of image {worst} (counting from 0) are not finite",
                    expected="finite pixels and finite weights",
                )
            answers.append(answer.cpu())
            done += batch.shape[0]
            if progress is not None:
                progress(done)
    if not answers:
        raise DataError("There are no images to predict", expected="at least one")
    probabilities = torch.cat([answer.probabilities for answer in answers])
    spreads = [answer.spread for answer in answers if answer.spread is not None]
    return Prediction(
        labels=[model.classes[index] for index in probabilities.argmax(1).tolist()],
        probabilities=probabilities,
        spread=torch.cat(spreads) if spreads else None,
        rounds=torch.cat([answer.rounds for answer in answers]),
    )


class Answer(NamedTuple):
    """Of a batch: as the attributes of `Prediction`."""

    probabilities: Float32[Tensor, "batch classes"]
    spread: Float32[Tensor, "batch classes"] | None
    rounds: Int64[Tensor, " batch"]

    def cpu(self) -> Answer:
        """The same on the CPU."""
        return Answer(self.probabilities.cpu(), None if self.spread is None else self.spread.cpu(), self.rounds.cpu())


def class_probabilities(
    model: PromptedClassifier,
    images: Float[Tensor, "batch ..."],
    policy: Policy,
    rounds: int,
    seed: int,
    alpha: float | None = None,
) -> Answer:
    """One batch under a policy.

    `images` may lie on any device; the results lie on the model's. The model must be in evaluation mode. With `alpha`,
    rounds are adaptive, and differ from all rounds in an image's label with at most this probability.
    """
    images = send(images, model.head.weight.device)
    sampled = model.method.sampled_prompts > 0  # without noise all rounds are equal
    passes = rounds if policy == "multi" and sampled else 1
    used = torch.full((images.shape[0],), passes, device=images.device)
    if policy == "mean":
        return Answer(softmax(model(images)), None, used)
    if alpha is not None and sampled:
        logits, used = needed_rounds(model, images, rounds, seed, alpha)
        return Answer(softmax(logits).nanmean(0), None, used)
    outcomes = softmax(all_rounds(model, images, passes, seed))
    spread = outcomes.std(0, correction=0) if policy == "multi" and alpha is None else None
    return Answer(outcomes.mean(0), spread, used)


def softmax(logits: Float[Tensor, "*batch classes"]) -> Float32[Tensor, "*batch classes"]:
    """Class probabilities in float32, whatever the precision of the logits."""
    return logits.float().softmax(-1)


@contextmanager
def evaluating(model: PromptedClassifier) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the mode is what it was.

    Not `inference_mode`: a backbone that caches a tensor made under it could not train any more.
    """
    training = model.training
    prepare_process(model.head.weight.device)
    if any(module.training for module in model.modules()):  # switching takes three times as long as looking
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


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


def check_adaptive(policy: str, rounds: int, adaptive: bool, max_disagreement: float) -> float | None:
    """The probability with which adaptive rounds may change a label; None for all rounds.

    Raises:
        ConfigError: an argument without effect, or out of range.
    """
    if not adaptive:
        if max_disagreement != MAX_DISAGREEMENT:
            raise ConfigError(f"max_disagreement = {max_disagreement} has no effect", expected="adaptive = True")
        return None
    if policy != "multi" or rounds < 2:
        raise ConfigError(
            f"adaptive has no effect on policy {policy} with {rounds} round(s)",
            expected="policy multi, 2 rounds or more",
        )
    if not 0 < max_disagreement < 1:
        raise ConfigError(f"max_disagreement = {max_disagreement}", expected="between 0 and 1, for instance 0.01")
    return max_disagreement


def preprocessed(
    preprocessing: Preprocessing, images: Any, batch_size: int
) -> Iterator[Float[Tensor, "batch 3 height width"]]:
    """Batches of preprocessed images, made as they are asked for."""
    if isinstance(images, Tensor):
        check_preprocessed(preprocessing, images)
        yield from images.split(batch_size) if images.shape[0] else ()
        return
    if isinstance(images, str | Path | bytes | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    if not isinstance(images, Iterable):
        raise DataError(
            f"The images are a {type(images).__name__}", expected="a float tensor, or an iterable of images"
        )
    transform = eval_transform(preprocessing)
    items = (prepare(transform, item, index) for index, item in enumerate(images))
    while batch := list(islice(items, batch_size)):
        yield torch.stack(batch)


def prepare(transform: ImageTransform, item: Any, index: int) -> Float[Tensor, "3 height width"]:
    """One image as the backbone wants it; `index` names it in errors."""
    if isinstance(item, Tensor):
        check_preprocessed(transform.preprocessing, item[None])
        return item
    if not isinstance(item, str | Path | bytes | Image.Image | np.ndarray):
        raise DataError(
            f"Image {index} (counting from 0) is a {type(item).__name__}",
            expected="a path, bytes, a Pillow image, an array, or a preprocessed float tensor (3, height, width)",
        )
    return transform(read_image(item, name=str(item) if isinstance(item, str | Path) else f"image {index}"))


def check_images(model: PromptedClassifier, images: Tensor) -> None:
    """Refuse a batch that the backbone does not take; see `check_shape`."""
    check_shape(model.backbone.input_shape, images)


def check_preprocessed(preprocessing: Preprocessing, images: Tensor) -> None:
    """Refuse a batch that is not preprocessed so; see `check_shape`."""
    check_shape((3, *preprocessing.image_size), images)


def check_shape(expected: tuple[int, ...], images: Tensor) -> None:
    """Refuse a batch of items of another shape or type.

    Raises:
        DataError: naming what was found.
    """
    if tuple(images.shape[1:]) != expected or not images.is_floating_point():
        raise DataError(
            f"A batch of images is a {images.dtype} tensor of shape {tuple(images.shape)}",
            expected=f"floating point, (n, {', '.join(map(str, expected))}), as the model's preprocessing says",
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
