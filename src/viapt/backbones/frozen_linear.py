"""Products with frozen weights: on a CPU by oneDNN, with a gradient for what enters alone.

PyTorch gives float32 products to MKL, which leaves half the speed of an AMD processor unused, and adds the bias of
bfloat16 products in a pass of its own. The operator is the one that PyTorch's own compiler calls.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.device import onednn_linear, prefers_onednn


def linear(
    x: Float[Tensor, "*rows a"], weight: Float[Tensor, "b a"], bias: Float[Tensor, " b"] | None = None
) -> Float[Tensor, "*rows b"]:
    """x W^T + b for weights that want no gradient; what `F.linear` gives, to rounding."""
    if not onednn_serves(x, weight) or (bias is not None and bias.requires_grad):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        return FrozenLinear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return onednn_linear(x, weight, bias)


def apply(layer: nn.Module, x: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows b"]:
    """A layer's output, by `linear` if it is a plain linear one."""
    return linear(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)


def activated(layer: nn.Module, activation: nn.Module, x: Float[Tensor, "*rows a"]) -> Float[Tensor, "*rows b"]:
    """A layer's output, activated; in one pass where that is GELU and no gradient is wanted."""
    if type(layer) is nn.Linear and type(activation) is nn.GELU and activation.approximate == "none":
        learning = torch.is_grad_enabled() and any(part.requires_grad for part in (x, *layer.parameters()))
        if not learning and onednn_serves(x, layer.weight):
            return onednn_linear(x, layer.weight, layer.bias, gelu=True)
    return activation(apply(layer, x))


def onednn_serves(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is the better choice, and nobody takes a graph (which should hold standard operators)."""
    return not weight.requires_grad and not torch.compiler.is_compiling() and prefers_onednn(x)


class FrozenLinear(torch.autograd.Function):
    """x W^T + b; its gradient is that of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return onednn_linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return onednn_linear(gradient, ctx.weight.mT), None, None
