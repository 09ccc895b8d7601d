"""Several rounds of an image: all of them batched, or as many as its label needs.

All rounds share what comes before the first sampled prompt. Noise comes from (seed, round) and is the same for every
image, so an image's answer does not depend on its batch, nor does the number of its rounds (but for rounding, where it
decides).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from viapt.backbones.base import Tokens
from viapt.errors import ConfigError
from viapt.model import PromptedClassifier
from viapt.rounds import RoundNoise, settled

TOGETHER = 8  # rounds in one pass: it has at most so many times the rows of the batch


def all_rounds(
    model: PromptedClassifier, images: Float[Tensor, "batch ..."], rounds: int, seed: int
) -> Float[Tensor, "rounds batch classes"]:
    """Logits of every round."""
    tokens, batch, passes = model.embed(images), images.shape[0], []
    for start in range(0, rounds, TOGETHER):
        indices = range(start, min(start + TOGETHER, rounds))
        logits = model.classify(tokens, shared_noise(model, batch, indices, seed))
        passes.append(logits.unflatten(0, (len(indices), batch)))
    return torch.cat(passes)


def needed_rounds(
    model: PromptedClassifier,
    images: Float[Tensor, "batch ..."],
    rounds: int,
    seed: int,
    max_disagreement: float,
) -> tuple[Float[Tensor, "rounds batch classes"], Int64[Tensor, " batch"]]:
    """Logits of as many rounds as each image needs (NaN beyond them), and how many these are.

    An image stops as soon as `viapt.rounds.settled` says so; the others go on together.

    Raises:
        ConfigError: nobody has measured how far this model's rounds differ.
    """
    noise = known_noise(model)
    tokens, rows = model.embed(images), torch.arange(images.shape[0], device=images.device)
    logits = torch.full((rounds, images.shape[0], len(model.classes)), torch.nan).to(model.head.weight)
    used = torch.zeros_like(rows)
    for index in range(rounds):
        logits[index, rows] = model.classify(tokens, shared_noise(model, rows.shape[0], range(index, index + 1), seed))
        used[rows] = index + 1
        going_on = ~settled(logits[: index + 1, rows], noise, rounds, max_disagreement)
        if not bool(going_on.any()):
            break
        rows, tokens = rows[going_on], select(tokens, going_on)
    return logits, used


def shared_noise(model: PromptedClassifier, batch: int, rounds: range, seed: int) -> Float[Tensor, "rows lambda_ dim"]:
    """The noise of some rounds, the same for every image: all images with the first, then all with the second ..."""
    draws = torch.cat([model.draw_noise(1, seed=seed, index=index) for index in rounds])
    return draws[:, None].expand(-1, batch, -1, -1).flatten(0, 1)


def select(tokens: Tokens, rows: Tensor) -> Tokens:
    """Some images of a batch."""
    return tokens._replace(prefix=tokens.prefix[rows], patches=tokens.patches[rows])


def known_noise(model: PromptedClassifier) -> RoundNoise:
    """How far this model's rounds differ.

    Raises:
        ConfigError: nobody has measured it.
    """
    if model.round_noise is None:
        raise ConfigError(
            "How far the rounds of this model differ is not known, so nobody can say when they are enough",
            expected="a model whose rounds were calibrated, as `fit` does; older adapters were not",
            remedy="viapt.calibrate_rounds(model, dataset), then model.save_pretrained(directory); or all rounds",
        )
    return model.round_noise
