"""A vision transformer in plain tensor code, from timm's weights: the oracle for everything that puts prompts in.

No module of viapt and no module of timm takes part in the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Enter = Callable[[int, Tensor | None], Tensor]  # (block, prompts that left the block before) -> prompts that enter it


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def embed(w: Mapping[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Class token (batch, 1, d) and patches (batch, n, d), positions added."""
    kernel = w["patch_embed.proj.weight"]
    d, side = kernel.shape[0], kernel.shape[-1]
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // side, side, width // side, side)
    cells = cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * side * side)
    patches = cells @ kernel.reshape(d, -1).T + w["patch_embed.proj.bias"] + w["pos_embed"][:, 1:]
    return (w["cls_token"] + w["pos_embed"][:, :1]).expand(batch, 1, d), patches


def block(w: Mapping[str, Tensor], i: int, x: Tensor, heads: int) -> Tensor:
    def part(name: str) -> tuple[Tensor, Tensor]:
        return w[f"blocks.{i}.{name}.weight"], w[f"blocks.{i}.{name}.bias"]

    def linear(name: str, value: Tensor) -> Tensor:
        weight, bias = part(name)
        return value @ weight.T + bias

    batch, tokens, d = x.shape
    qkv = linear("attn.qkv", layer_norm(x, *part("norm1"))).reshape(batch, tokens, 3, heads, d // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-1, -2) * (d // heads) ** -0.5, dim=-1)
    x = x + linear("attn.proj", (weights @ v).transpose(1, 2).reshape(batch, tokens, d))
    return x + linear("mlp.fc2", gelu(linear("mlp.fc1", layer_norm(x, *part("norm2")))))


def feature(w: Mapping[str, Tensor], images: Tensor, heads: int, enter: Enter | None = None) -> Tensor:
    """The class token after the last block and the final norm, (batch, d). Order: class token, prompts, patches."""
    cls, patches = embed(w, images)
    depth = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    prompts: Tensor | None = None
    for i in range(depth):
        if enter is not None:
            prompts = enter(i, prompts)
        p = 0 if prompts is None else prompts.shape[1]
        x = torch.cat([cls, *([] if prompts is None else [prompts]), patches], dim=1)
        x = block(w, i, x, heads)
        cls, prompts, patches = x[:, :1], x[:, 1 : 1 + p] if p else None, x[:, 1 + p :]
    return layer_norm(cls[:, 0], w["norm.weight"], w["norm.bias"])


def shallow(prompts: Tensor, batch: int) -> Enter:
    """VPT-Shallow, eq. 4 and 5: prompts (p, d) enter once and stay."""

    def enter(i: int, left: Tensor | None) -> Tensor:
        return prompts.expand(batch, *prompts.shape) if left is None else left

    return enter


def deep(prompts: Tensor, batch: int) -> Enter:
    """VPT-Deep, eq. 6: prompts (depth, p, d), those of the block before are replaced."""

    def enter(i: int, left: Tensor | None) -> Tensor:
        return prompts[i].expand(batch, *prompts.shape[1:])

    return enter
