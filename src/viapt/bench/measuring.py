"""What is measured of a trained model: the metrics of a part, and what policies of inference make of one model."""

from __future__ import annotations

import time
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from viapt.caching import Cache, cached
from viapt.evaluation import Evaluation, LabelledImages, evaluate, load
from viapt.evaluation import measure as metrics_of
from viapt.inference import MAX_DISAGREEMENT, class_probabilities, evaluating, softmax
from viapt.model import PromptedClassifier
from viapt.sampling import shared_noise

BATCH = 32
CONFIDENCE, RESAMPLES = 0.95, 100  # of intervals, which no record keeps


def measure(model: PromptedClassifier, dataset: LabelledImages, cache: Cache | None) -> dict[str, Any]:
    """The metrics of a part, with the policy `mean`."""
    with cached(model, dataset, None, cache) as (inputs, _):
        return in_short(evaluate(model, inputs))


def in_short(found: Evaluation) -> dict[str, Any]:
    """Metrics without intervals."""
    shares = [estimate.value for estimate in found.per_class.values() if estimate is not None]
    return {
        "accuracy": found.accuracy.value,
        "mean_per_class_accuracy": sum(shares) / len(shares),
        "loss": found.loss,
        "calibration_error": found.calibration_error.value,
        "images": found.count,
    }


def measure_policies(
    model: PromptedClassifier, dataset: LabelledImages, rounds: int, draws: int
) -> list[dict[str, Any]]:
    """The policies of inference on one part: `mean`; `multi` with 1, 2, ... rounds; as many rounds as a label needs.

    With one round, `multi` is `fixed`. R rounds are the first R of all, as they are everywhere: so all numbers of
    rounds come from one series of passes. Rounds are done one after the other, which is how adaptive ones are.

    Args:
        rounds: the most, at least 2.
        draws: noise seeds 0, 1, ..., each a series of its own.

    Returns:
        A row for each policy, number of rounds and noise seed: its metrics, `passes` (of an image, on average) and
        `seconds` (of all images, without reading them). None for a method that samples nothing.
    """
    if model.method.num_instance_prompts == 0:
        return []
    rows = [row("mean", 1, None, model, *mean_pass(model, dataset))]
    for seed in range(draws):
        by_round, labels, seconds = series(model, dataset, rounds, seed)
        for count, probabilities in enumerate(by_round, start=1):
            ones = torch.full_like(labels, count)
            rows.append(row("multi", count, seed, model, probabilities, labels, ones, seconds[count - 1]))
        rows.append(row("adaptive", rounds, seed, model, *adaptive(model, dataset, rounds, seed)))
    return rows


def row(
    policy: str,
    rounds: int,
    seed: int | None,
    model: PromptedClassifier,
    probabilities: Float[Tensor, "n classes"],
    labels: Int64[Tensor, " n"],
    used: Int64[Tensor, " n"],
    seconds: float,
) -> dict[str, Any]:
    """One policy's numbers."""
    found = metrics_of(probabilities, labels, model.classes, policy, CONFIDENCE, RESAMPLES, 0)
    metrics = in_short(found)
    del metrics["images"]  # as many as the part has
    passes = float(used.double().mean())
    return {"policy": policy, "rounds": rounds, "noise_seed": seed, "passes": passes, "seconds": seconds} | metrics


Measured = tuple[Float[Tensor, "n classes"], Int64[Tensor, " n"], Int64[Tensor, " n"], float]


def mean_pass(model: PromptedClassifier, dataset: LabelledImages) -> Measured:
    """Probabilities, labels, passes and seconds without noise."""
    return one_policy(model, dataset, "mean", 1, 0, None)


def adaptive(model: PromptedClassifier, dataset: LabelledImages, rounds: int, seed: int) -> Measured:
    """Probabilities, labels, passes and seconds of rounds that stop when a label is settled."""
    return one_policy(model, dataset, "multi", rounds, seed, MAX_DISAGREEMENT)


def one_policy(
    model: PromptedClassifier, dataset: LabelledImages, policy: Any, rounds: int, seed: int, alpha: float | None
) -> Measured:
    """Probabilities, labels, passes and seconds of a policy."""
    answers, labels, seconds = [], [], 0.0
    with evaluating(model):
        for images, targets in load(dataset, 0, model.head.weight.device, batch_size=BATCH):
            started = time.perf_counter()
            answers.append(class_probabilities(model, images, policy, rounds, seed, alpha).cpu())
            seconds += time.perf_counter() - started
            labels.append(targets.long())
    probabilities = torch.cat([answer.probabilities for answer in answers])
    return probabilities, torch.cat(labels), torch.cat([answer.rounds for answer in answers]), seconds


def series(
    model: PromptedClassifier, dataset: LabelledImages, rounds: int, seed: int
) -> tuple[Float[Tensor, "rounds n classes"], Int64[Tensor, " n"], list[float]]:
    """Mean probabilities of the first 1, 2, ... rounds, labels, and the seconds that so many rounds take."""
    means, labels, seconds = [], [], [0.0] * rounds
    with evaluating(model):
        for images, targets in load(dataset, 0, model.head.weight.device, batch_size=BATCH):
            started = time.perf_counter()
            tokens, passes = model.embed(images.to(model.head.weight.device)), []
            for index in range(rounds):
                noise = shared_noise(model, images.shape[0], range(index, index + 1), seed)
                passes.append(softmax(model.classify(tokens, noise)).cpu())
                seconds[index] += time.perf_counter() - started
            counts = torch.arange(1, rounds + 1)[:, None, None]
            means.append(torch.stack(passes).cumsum(0) / counts)
            labels.append(targets.long())
    return torch.cat(means, dim=1), torch.cat(labels), seconds
