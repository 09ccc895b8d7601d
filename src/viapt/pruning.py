"""Pruning and rewinding of E2VPT (arXiv 2307.13770, section 3.3): what is of little importance is masked for good.

I(rho_k)  = E |d loss / d rho_k|       of a prompt
I(q_kr)   = E |d loss / d q_kr|        of a segment of it, both expected over images

trained = viapt.create_model(..., "e2vpt", seed=0); viapt.fit(trained, train)
rewound = viapt.create_model(..., "e2vpt", seed=0)           # the same first values
prune(trained, rewound, train, tokens=0.5, segments=0.25); viapt.fit(rewound, train)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from viapt.errors import ConfigError, check_rules
from viapt.evaluation import LabelledImages, load
from viapt.methods.e2vpt import E2VPT
from viapt.model import PromptedClassifier

PRUNING = {"prune_tokens": "num_prompts", "prune_segments": "segments"}
"""What a training that prunes calls its shares -> the argument of e2vpt that says of how many."""


def prune(
    trained: PromptedClassifier,
    rewound: PromptedClassifier,
    data: LabelledImages,
    *,
    tokens: float,
    segments: float,
    batch_size: int = 32,
) -> None:
    """Mask in `rewound`, which is yet to be trained, what is of little importance to `trained`.

    Args:
        trained: left as it is.
        rewound: with the same arguments; untrained.
        data: training images, as for `fit`.
        tokens: the share of the prompts that is masked, rounded down, in [0, 1).
        segments: the share of each prompt's segments that is masked, rounded down, in [0, 1).
        batch_size: images at a time.

    Raises:
        ConfigError: other methods than e2vpt, different arguments, or a share out of range.
    """
    new, old = rewound.method, trained.method
    if not isinstance(new, E2VPT) or not isinstance(old, E2VPT):
        raise ConfigError(f"Pruning of {old.name} for {new.name}", expected="two models of the method e2vpt")
    if new.config() != old.config():
        raise ConfigError(f"The models have {old.config()} and {new.config()}", expected="the same arguments")
    check_shares(tokens=tokens, segments=segments)
    of_tokens, of_segments = importance(trained, data, batch_size)
    new.token_mask.copy_(all_but_least(of_tokens, tokens))
    new.segment_mask.copy_(all_but_least(of_segments, segments))


def check_shares(**shares: float) -> None:
    """Refuse shares that cannot be masked.

    Raises:
        ConfigError: naming those that are below 0, or 1 or above.
    """
    check_rules(shares, [(name, 0 <= share < 1, "0 or above, below 1") for name, share in shares.items()])


def masked_of(share: float, n: int) -> int:
    """How many of n a share masks: rounded down, and k / n of n are k."""
    return math.floor(share * n + 1e-9)


def masked_numbers(model: PromptedClassifier) -> int:
    """How many of a model's learnable numbers its masks hold at 0, whatever is learned; 0 of other methods."""
    method = model.method
    if not isinstance(method, E2VPT):
        return 0
    return int((method.whole(method.token_mask[:, None] * method.segment_mask) == 0).sum()) * method.depth


def importance(
    model: PromptedClassifier, data: LabelledImages, batch_size: int = 32
) -> tuple[Float[Tensor, " p"], Float[Tensor, "p segments"]]:
    """Mean absolute derivative of an image's loss by the mask of each prompt, and of each segment of a prompt."""
    method, training = model.method, model.training
    if not isinstance(method, E2VPT):
        raise ConfigError(f"Importance of prompts of {method.name}", expected="the method e2vpt")
    own = model.head.weight
    of_tokens = own.new_zeros(method.num_prompts)
    of_segments = own.new_zeros(method.num_prompts, method.segments)
    model.eval()
    try:
        for images, labels in load(data, 0, own.device, batch_size=batch_size):
            method.gates = own.new_ones(len(images), *of_segments.shape).requires_grad_(True)
            loss = F.cross_entropy(model(images.to(own.device)), labels.to(own.device).long(), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, method.gates)
            of_tokens += gradient.sum(-1).abs().sum(0)
            of_segments += gradient.abs().sum(0)
    finally:
        method.gates = None
        model.train(training)
    return of_tokens / len(data), of_segments / len(data)


def all_but_least(values: Float[Tensor, "*rows n"], share: float) -> Float[Tensor, "*rows n"]:
    """0 for the share of smallest values of each row, 1 for the others."""
    masked = values.argsort(dim=-1)[..., : masked_of(share, values.shape[-1])]
    return torch.ones_like(values).scatter(-1, masked, 0.0)
