"""Attention weights of any block that uses PyTorch's attention: asked of it a second time, with other values.

    attention(q, k, v) = softmax(q k^T / sqrt(d_h) + mask) v,  so that  attention(q, k, I) = the weights

Whatever the block does to queries and keys (norms, rotations, biases of positions) has happened by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from viapt.errors import BackboneError


class Overhearing(TorchFunctionMode):
    """While this is entered, the weights of every `scaled_dot_product_attention` are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Float[Tensor, "*batch heads queries keys"]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.weights.append(weights_of(*args, **options))
        return func(*args, **options)


def weights_of(
    query: Float[Tensor, "*batch heads queries d"],
    key: Float[Tensor, "*batch _ keys d"],
    value: Float[Tensor, "*batch _ keys e"],
    *options: Any,
    **more: Any,
) -> Float[Tensor, "*batch heads queries keys"]:
    """What attention of the same queries, keys and options (mask, scale ...) gives for the identity."""
    identity = torch.eye(key.shape[-2], dtype=value.dtype, device=value.device)
    return F.scaled_dot_product_attention(query, key, identity.expand(*key.shape[:-1], -1), *options, **more)


def attention_weights(block: Callable[[], Any], name: str, batch: int, t: int) -> Float[Tensor, "batch heads t t"]:
    """The weights with which t tokens attend to each other while `block` runs; errors name the backbone.

    Raises:
        BackboneError: it calls PyTorch's attention not once, or for other tokens than these.
    """
    with Overhearing() as heard:
        block()
    if len(heard.weights) != 1:
        raise BackboneError(
            f"A block of {name} calls PyTorch's attention {len(heard.weights)} times instead of once",
            expected="scaled_dot_product_attention, which tells its weights",
            remedy='a model of transformers has it with attn_implementation="sdpa", timm without TIMM_FUSED_ATTN=0',
        )
    weights = heard.weights[0]
    if (weights.shape[0], *weights.shape[2:]) != (batch, t, t):
        raise BackboneError(
            f"The attention of a block of {name} has weights of shape {tuple(weights.shape)} for {t} tokens",
            expected="each token of an image attends to all of them, and to nothing else",
        )
    return weights
