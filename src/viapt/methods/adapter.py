"""AdaptFormer: a small bottleneck beside the MLP of every block (Chen et al., NeurIPS 2022, arXiv 2205.13535)."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.errors import BackboneError, ConfigError
from viapt.methods.base import WithoutPrompts, stand_in
from viapt.widths import Widths


class AdaptFormer(WithoutPrompts):
    """Beside the MLP, which stays frozen, a branch of two linear layers learns from the same input (eq. 2 and 3).

        x~  = ReLU(LN(x') W_down) W_up
        x'' = MLP(LN(x')) + s * x~ + x'

    W_up and the biases start at 0, so the model starts as the frozen one. Where a block scales what its MLP gives
    (LayerScale), the sum of MLP and branch is scaled.

    Args:
        width: of the bottleneck, >= 1. Learnable: depth * (2 * width * dim + width + dim).
        scale: s, a finite number.
    """

    name = "adaptformer"
    learning_rate = 1e-3
    inside = True

    def __init__(
        self, dim: Widths, depth: int, patch_size: tuple[int, int], *, width: int = 64, scale: float = 0.1
    ) -> None:
        super().__init__(dim, depth, patch_size)
        self.width, self.scale = width, scale
        if width < 1 or not math.isfinite(scale) or scale == 0:
            raise ConfigError(
                f"width = {width}, scale = {scale} is not possible", expected="a width of at least 1, a scale not 0"
            )
        self.branches = nn.ModuleList(Branch(dim, width, scale) for dim in self.widths)

    def enter(self, backbone: Any) -> None:
        for block, branch in zip(backbone.blocks, self.branches, strict=True):
            if not isinstance(getattr(block, "mlp", None), nn.Module):
                raise BackboneError(
                    f"A block of the kind {type(block).__name__} has no MLP of its own", expected="a block with one"
                )
            stand_in(block, "mlp", branch)


class Branch(nn.Module):
    """MLP(z) + s * ReLU(z W_down + b_down) W_up + b_up."""

    def __init__(self, dim: int, width: int, scale: float) -> None:
        super().__init__()
        self.down, self.up, self.scale = nn.Linear(dim, width), nn.Linear(width, dim), scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, mlp: nn.Module, z: Float[Tensor, "batch t dim"]) -> Float[Tensor, "batch t dim"]:
        """The branch computes in the precision of its input."""
        weights = (tensor.to(z.dtype) for layer in (self.down, self.up) for tensor in (layer.weight, layer.bias))
        down, down_bias, up, up_bias = weights
        return mlp(z) + self.scale * F.linear(F.linear(z, down, down_bias).relu(), up, up_bias)
