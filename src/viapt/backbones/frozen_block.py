"""A frozen pre-norm block of timm, without the work that nobody reads.

Attention treats tokens as a set, so a token whose output is thrown away (a prompt of VPT-Deep, a patch in the last
block before a class token is pooled) needs no query, no output projection and no MLP: keys and values are all that
others see of it. The block's own layers do the computing; only their order is written here.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.backbones import frozen_linear
from viapt.backbones.base import for_each_draw
from viapt.device import prefers_plain_attention


def is_plain(block: nn.Module) -> TypeGuard[Block]:
    """Whether `advance` computes what this block does: timm's own code, plain linear weights, no gate, no hooks."""
    return (
        isinstance(block, Block)
        and type(block).forward is Block.forward
        and isinstance(block.attn, Attention)
        and type(block.attn).forward is Attention.forward
        and type(block.attn.qkv) is nn.Linear
        and getattr(block.attn, "gate", None) is None
        and not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
    )


def advance(
    block: Block,
    asking: list[Float[Tensor, "_ _ dim"]],
    silent: list[Float[Tensor, "_ _ dim"]],
    *,
    rows: int,
) -> Float[Tensor, "rows asking dim"]:
    """The tokens that ask, through a block in which they see the silent ones, too.

    Groups are projected apart, so that no gradient is computed for a group that needs none, and so that a group with
    fewer than `rows` rows (the same for each of several draws, or expanded from one) is projected once.
    """
    q, k, v = zip(*(query_key_value(block, group, rows) for group in asking), strict=True)
    others = [key_value(block, group, rows) for group in silent]
    k, v = (*k, *(pair[0] for pair in others)), (*v, *(pair[1] for pair in others))
    attn: Any = block.attn
    x = together([for_each_draw(group, rows) for group in asking], dim=1)
    seen = attend(together(q, dim=2), together(k, dim=2), together(v, dim=2))
    x = x + block.ls1(frozen_linear.apply(attn.proj, attn.norm(seen.transpose(1, 2).flatten(2))))
    return x + block.ls2(feed_forward(block.mlp, block.norm2(x)))


def feed_forward(mlp: nn.Module, x: Float[Tensor, "rows t dim"]) -> Float[Tensor, "rows t dim"]:
    """timm's `Mlp`, or whatever else stands there."""
    if type(mlp) is not Mlp:
        return mlp(x)
    return frozen_linear.apply(mlp.fc2, mlp.norm(frozen_linear.activated(mlp.fc1, mlp.act, x)))


def query_key_value(block: Block, tokens: Float[Tensor, "_ t dim"], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three times (rows, heads, t, dim / heads)."""
    attn: Any = block.attn
    q, k, v = split_heads(frozen_linear.apply(attn.qkv, block.norm1(tokens)), 3, attn.num_heads)
    return for_each_draw(attn.q_norm(q), rows), for_each_draw(attn.k_norm(k), rows), for_each_draw(v, rows)


def key_value(block: Block, tokens: Float[Tensor, "_ t dim"], rows: int) -> tuple[Tensor, Tensor]:
    """Twice (rows, heads, t, dim / heads): the query's part of the weights is left alone."""
    attn: Any = block.attn
    weight, bias = attn.qkv.weight, attn.qkv.bias
    query = weight.shape[0] // 3
    expanded = tokens.stride(0) == 0
    x = block.norm1(tokens[:1] if expanded else tokens)
    k, v = split_heads(
        frozen_linear.linear(x, weight[query:], None if bias is None else bias[query:]), 2, attn.num_heads
    )
    k = attn.k_norm(k)
    if expanded:
        return k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)
    return for_each_draw(k, rows), for_each_draw(v, rows)


def split_heads(x: Float[Tensor, "batch t c"], kinds: int, heads: int) -> tuple[Tensor, ...]:
    """`kinds` times (batch, heads, t, e)."""
    return x.unflatten(-1, (kinds, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def attend(
    q: Float[Tensor, "batch heads t e"], k: Float[Tensor, "batch heads s e"], v: Float[Tensor, "batch heads s e"]
) -> Float[Tensor, "batch heads t e"]:
    """softmax(Q K^T / sqrt(e)) V, by the faster of PyTorch's fused kernel and separate steps."""
    if prefers_plain_attention(q) and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def together(parts: list[Tensor] | tuple[Tensor, ...], dim: int) -> Tensor:
    """Concatenated; one alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
