"""SSF: scaling and shifting features (Lian et al., NeurIPS 2022, arXiv 2210.08823)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from viapt.methods.base import WithoutPrompts, stand_in


class SSF(WithoutPrompts):
    """Behind every operation that has weights (patch embedding, linear layers, norms), each channel is scaled, shifted:

        y = gamma * x + beta      (eq. 3)

    gamma starts from N(1, 0.02^2), beta from N(0, 0.02^2), as in the authors' code.
    """

    name = "ssf"
    learning_rate = 5e-3
    inside = True
    same_for_ever = "nothing"

    def enter(self, backbone: Any) -> None:
        found = {path: module for path, module in backbone.named_modules() if channels(module)}
        self.parts = nn.ModuleDict({path.replace(".", "/"): ScaleShift(module) for path, module in found.items()})
        for path in found:
            stand_in(backbone, path, self.parts[path.replace(".", "/")])


class ScaleShift(nn.Module):
    """gamma * f(x) + beta, for the channels of f."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.trailing = (1, 1) if isinstance(module, nn.Conv2d) else ()
        self.scale = nn.Parameter(torch.empty(channels(module)).normal_(1, 0.02))
        self.shift = nn.Parameter(torch.empty(channels(module)).normal_(0, 0.02))

    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Computed in the precision of gamma, given back in that of f."""
        y = module(x)
        scale, shift = (own.view(-1, *self.trailing) for own in (self.scale, self.shift))
        return (y * scale + shift).to(y.dtype)


def channels(module: nn.Module) -> int:
    """Of the output of an operation; 0 for what is none, or has no weights."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        return module.normalized_shape[0]
    return 0
