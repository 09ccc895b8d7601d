"""Methods that learn weights of the backbone: each keeps copies of its own, and the backbone stays as it is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from viapt.methods.base import WithoutPrompts


class FineTuning(WithoutPrompts):
    """Copies of some of the backbone's weights, in float32, which start from these and learn."""

    inside = True
    same_for_ever = "nothing"

    @abstractmethod
    def learns(self, name: str, stage: int) -> bool:
        """Whether the backbone's parameter of this name, used in this stage (see `weights`), is learned."""

    def enter(self, backbone: Any) -> None:
        used = {name: backbone.stage_of(name) for name, _ in backbone.named_parameters()}
        self.used_in = {name: stage for name, stage in used.items() if self.learns(name, stage)}
        copies = {key(name): copy_of(backbone.get_parameter(name)) for name in self.used_in}
        self.own = nn.ParameterDict(copies)

    def replaced(self) -> set[str]:
        return set(self.used_in)

    def weights(self, stage: int) -> dict[str, Tensor]:
        return {name: self.own[key(name)] for name, used in self.used_in.items() if used == stage}


def copy_of(parameter: Tensor) -> nn.Parameter:
    """Its values, in float32 and on its device."""
    return nn.Parameter(torch.empty(parameter.shape, device=parameter.device).copy_(parameter.detach()))


def key(name: str) -> str:
    """A parameter's name without dots, which names inside a module must not have."""
    return name.replace(".", "/")
