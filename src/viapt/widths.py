"""Blocks of several widths: where a backbone has stages, what is learned for a block is as wide as its stage.

A method builds one part for each stage (`by_stage`, `stage_prompts`) and asks for that of a block (`at`, `prompts[i]`).
On a backbone of one width the part is the tensor or module itself, under its own name: adapters hold the same tensors
as if there were no stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.errors import BackboneError

Widths = int | tuple[int, ...]  # d; or d of each block


class Stage(NamedTuple):
    """Blocks of one width, `first` to `end` - 1 (0-based)."""

    dim: int
    first: int
    end: int


def width_of_each(dim: Widths, depth: int) -> tuple[int, ...]:
    """d of each block, checked.

    Raises:
        BackboneError: there are not as many as blocks, or one is no multiple of the first.
    """
    widths = (dim,) * depth if isinstance(dim, int) else dim
    if len(widths) != depth or any(width % widths[0] for width in widths):
        raise BackboneError(
            f"The {depth} blocks have the widths {widths}", expected="one for each, multiples of the first"
        )
    return widths


def stages_of(widths: Sequence[int]) -> list[Stage]:
    """The stages of blocks with these widths."""
    stages: list[Stage] = []
    for dim, blocks in groupby(widths):
        first = stages[-1].end if stages else 0
        stages.append(Stage(dim, first, first + len(list(blocks))))
    return stages


def number_of_each(stages: Sequence[Stage]) -> list[int]:
    """Which stage each block belongs to; a list, since torch.compile does not follow a search."""
    return [number for number, stage in enumerate(stages) for _ in range(stage.first, stage.end)]


class ByStage(nn.Module):
    """A module for each stage."""

    def __init__(self, stages: Sequence[Stage], parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.number, self.parts = number_of_each(stages), nn.ModuleList(parts)


def by_stage(stages: Sequence[Stage], build: Callable[[Stage], nn.Module]) -> nn.Module:
    """What `build` makes for each stage; where there is one, that module itself."""
    parts = [build(stage) for stage in stages]
    return parts[0] if len(parts) == 1 else ByStage(stages, parts)


def at(part: nn.Module, layer: int) -> Any:
    """Of what `by_stage` made, the module of block `layer`."""
    return part.parts[part.number[layer]] if isinstance(part, ByStage) else part


class PromptsByStage(nn.Module):
    """Learnable prompts of each block; `prompts[layer]` is (p, width), as of a tensor (blocks, p, width)."""

    def __init__(self, stages: Sequence[Stage], tensors: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.number, self.tensors = number_of_each(stages), nn.ParameterList(tensors)
        self.first = [stage.first for stage in stages]

    def __getitem__(self, layer: int) -> Float[Tensor, "p width"]:
        number = self.number[layer]
        return self.tensors[number][layer - self.first[number]]


def stage_prompts(
    stages: Sequence[Stage], rows: int, *, bound: float, widths: Sequence[int] | None = None
) -> nn.Parameter | PromptsByStage:
    """Learnable prompts for every block, (blocks, rows, width) for each stage, uniform in [-bound, bound].

    Args:
        widths: of the prompts of each stage; None: that of its blocks.
    """
    sizes = [stage.dim for stage in stages] if widths is None else widths
    tensors = [
        prompt_parameter(stage.end - stage.first, rows, width, bound=bound)
        for stage, width in zip(stages, sizes, strict=True)
    ]
    return tensors[0] if len(tensors) == 1 else PromptsByStage(stages, tensors)


def prompt_parameter(*shape: int, bound: float) -> nn.Parameter:
    """A learnable tensor, uniform in [-bound, bound]."""
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
