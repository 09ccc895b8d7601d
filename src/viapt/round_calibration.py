"""How far the rounds of a model differ, measured: what adaptive rounds need to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from viapt.errors import ConfigError
from viapt.inference import check_images, evaluating
from viapt.model import PromptedClassifier
from viapt.rounds import RoundNoise, estimate_noise

IMAGES, ROUNDS = 128, 5


def calibrate_rounds(
    model: PromptedClassifier,
    dataset: Any,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> RoundNoise:
    """Measure how far the rounds of `multi` differ, and keep it in `model.round_noise`; labels are not used.

    128 images, evenly spaced, go through the model five times, each with noise of its own.

    Args:
        model: left in the mode that it was in; its answers do not change, but for those of adaptive rounds.
        dataset: map-style, of (preprocessed float image (3, height, width), anything). Better not what it was trained
            on, whose margins are larger.
        seed: of the noise.
        batch_size: images in one pass.
        progress: called after each batch with the number of images done.

    Raises:
        ConfigError: a model that samples no prompts, fewer than two images, or logits that are not finite.
        DataError: images that do not fit the model.
    """
    if model.method.sampled_prompts == 0:
        raise ConfigError(f"{model.method.name} samples no prompts", expected="a model whose rounds differ")
    if len(dataset) < 2:
        raise ConfigError(f"{len(dataset)} image(s) to measure rounds on", expected="at least two")
    count = min(len(dataset), IMAGES)
    chosen = [len(dataset) * k // count for k in range(count)]
    margins = []
    with evaluating(model):
        for start in range(0, count, batch_size):
            images = torch.stack([dataset[index][0] for index in chosen[start : start + batch_size]])
            check_images(model, images)
            noise = model.draw_noise(ROUNDS * images.shape[0], seed=seed, index=start)
            logits = model.classify(model.embed(images.to(noise.device)), noise)
            margins.append(first_margins(logits.unflatten(0, (ROUNDS, -1))).cpu().numpy())
            if progress is not None:
                progress(start + images.shape[0])
    model.round_noise = estimate_noise(np.concatenate(margins, axis=1))
    return model.round_noise


def calibrate_if_sampled(model: PromptedClassifier, datasets: list[Any], **options: Any) -> None:
    """`calibrate_rounds` on the first data set that is there and has two images; nothing where nothing is sampled."""
    measurable = [dataset for dataset in datasets if dataset is not None and len(dataset) > 1]
    if measurable and model.method.sampled_prompts:
        calibrate_rounds(model, measurable[0], **options)


def first_margins(logits: Float[Tensor, "rounds batch classes"]) -> Float[Tensor, "rounds batch"]:
    """Logit of the first class minus that of the second, in each round; which these are, all rounds say together."""
    first, second = logits.double().softmax(2).mean(0).topk(2).indices.T
    z, images = logits.double(), torch.arange(logits.shape[1])
    return z[:, images, first] - z[:, images, second]
