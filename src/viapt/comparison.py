"""What a change to a model costs and buys: the same images through both, and their answers compared pair by pair."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from scipy.special import ndtri
from torch import Tensor

from viapt.device import synchronise
from viapt.evaluation import Estimate, Evaluation, LabelledImages, measure, outputs, proportion
from viapt.inference import Policy, class_probabilities, evaluating
from viapt.model import PromptedClassifier

PASSES = 7


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        before, after: what each does.
        accuracy_change: share of images that `after` has right, less that of `before`; with a paired interval.
        agreement: share of images that both put into the same class.
        lost, gained: images that only `before`, and only `after`, has right.
        images_per_second: of `before` and of `after`, reading and decoding left out.
    """

    before: Evaluation
    after: Evaluation
    accuracy_change: Estimate
    agreement: Estimate
    lost: int
    gained: int
    images_per_second: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, `before` and `after` left out."""
        return {key: value for key, value in asdict(self).items() if key not in ("before", "after")}


def compare(
    before: PromptedClassifier,
    after: PromptedClassifier,
    dataset: LabelledImages,
    *,
    policy: Policy = "mean",
    rounds: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    confidence: float = 0.95,
    resamples: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Measure two models of the same classes on labelled images.

    Args:
        before, after: for instance a model, and `viapt.quantise` of it; each on its own device.
        dataset, policy, rounds, seed, batch_size, workers, confidence, resamples, progress: see `evaluate`.

    Raises:
        ConfigError, DataError: see `evaluate`.
    """
    sampling: dict[str, Any] = {"policy": policy, "rounds": rounds, "seed": seed}
    reading: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    answers = [outputs(model, dataset, **sampling, **reading) for model in (before, after)]
    labels = answers[0].labels
    found = [measure(p, labels, before.classes, policy, confidence, resamples, seed) for p, *_ in answers]
    predicted = [probabilities.argmax(1) for probabilities, *_ in answers]
    change, lost, gained = accuracy_change(predicted[0], predicted[1], labels, confidence)
    batch = torch.stack([dataset[index][0] for index in range(min(batch_size, len(dataset)))])
    return Comparison(
        before=found[0],
        after=found[1],
        accuracy_change=change,
        agreement=proportion(int((predicted[0] == predicted[1]).sum()), len(labels), confidence),
        lost=lost,
        gained=gained,
        images_per_second=speeds((before, after), batch, policy, rounds, seed),
    )


def accuracy_change(
    before: Int64[Tensor, " n"], after: Int64[Tensor, " n"], labels: Int64[Tensor, " n"], confidence: float
) -> tuple[Estimate, int, int]:
    """Difference of two accuracies on the same images, and how many images are lost and gained.

    The interval is that of Bonett and Price (2012): Wald's, for paired proportions, with one image more lost and one
    more gained; it holds what it promises also where few images, or none, change.
    """
    was, is_ = before == labels, after == labels
    n, lost, gained = len(labels), int((was & ~is_).sum()), int((is_ & ~was).sum())
    down, up = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt((down + up - (up - down) ** 2) / (n + 2))
    value = (gained - lost) / n
    low, high = max(-1.0, up - down - half), min(1.0, up - down + half)
    return Estimate(value, min(low, value), max(high, value)), lost, gained


def speeds(
    models: tuple[PromptedClassifier, PromptedClassifier],
    images: Float[Tensor, "batch 3 height width"],
    policy: Policy,
    rounds: int,
    seed: int,
) -> tuple[float, float]:
    """Images per second of two models that take turns, so that a machine whose speed drifts slows both alike."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(PASSES):
        for model, taken in zip(models, seconds, strict=True):
            device = model.head.weight.device
            with evaluating(model):
                start = time.perf_counter()
                class_probabilities(model, images, policy, rounds, seed)
                synchronise(device)
                taken.append(time.perf_counter() - start)
    first, second = (len(images) / statistics.median(taken) for taken in seconds)  # the first pass only warms up
    return first, second
