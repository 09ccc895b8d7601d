"""Adapter+: a small bottleneck behind every block (Steitz and Roth, CVPR 2024, arXiv 2406.06820)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.errors import ConfigError
from viapt.methods.base import WithoutPrompts
from viapt.widths import Widths

STD = 0.01
WITHIN = math.erf(math.sqrt(2))  # share of a normal distribution within two standard deviations


class AdapterPlus(WithoutPrompts):
    """What leaves a frozen block has a branch of two linear layers added to it (the paper's "Post-Adapter").

        x'' = x' + s * (GELU(x' W_down + b_down) W_up + b_up)

    s has a number for each channel, 1 at first; matrices start from N(0, 0.01^2), cut off at 0.02, biases at 0. The
    branch has no norm and no stochastic depth.

    Args:
        width: of the bottleneck, >= 1. Learnable: depth * (2 * width * dim + width + 2 * dim).
    """

    name = "adapter-plus"
    learning_rate = 3e-3
    inside = True
    staged = False  # between stages a block is followed by the merging, not by an adapter

    def __init__(self, dim: Widths, depth: int, patch_size: tuple[int, int], *, width: int = 8) -> None:
        super().__init__(dim, depth, patch_size)
        self.width = width
        if width < 1:
            raise ConfigError(f"width = {width} is not possible", expected="at least 1")
        self.adapters = nn.ModuleList(Adapter(self.dim, width) for _ in range(depth))

    def leaving(self, layer: int, tokens: Float[Tensor, "rows t dim"]) -> Float[Tensor, "rows t dim"]:
        return tokens + self.adapters[layer](tokens)


class Adapter(nn.Module):
    """s * (GELU(x W_down + b_down) W_up + b_up)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        self.scale = nn.Parameter(torch.ones(dim))
        for layer in (self.down, self.up):
            with torch.no_grad():  # a normal distribution within two standard deviations, by its inverse
                layer.weight.uniform_(-WITHIN, WITHIN).erfinv_().mul_(STD * math.sqrt(2))
                layer.bias.zero_()

    def forward(self, x: Float[Tensor, "rows t dim"]) -> Float[Tensor, "rows t dim"]:
        """Computed in the precision of its input."""
        weights = (tensor.to(x.dtype) for layer in (self.down, self.up) for tensor in (layer.weight, layer.bias))
        down, down_bias, up, up_bias = weights
        return self.scale.to(x.dtype) * F.linear(F.gelu(F.linear(x, down, down_bias)), up, up_bias)
