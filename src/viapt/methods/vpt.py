"""Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv 2203.12119): the two methods between which ViaPT lies."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.errors import ConfigError, check_rules
from viapt.methods.base import InitialPrompts, PromptMethod, init_bound, rows_of
from viapt.widths import PromptsByStage, Widths, at, by_stage, prompt_parameter, stage_prompts


class VPT(PromptMethod):
    """Prompts that are the same for every image, some for each of `self.sets` blocks.

    The paper's options: prompts of h numbers that one linear layer, for all blocks of a width, projects to that width;
    and dropout of what enters, for each image anew.
    """

    carries = False
    staged = True
    prompts: nn.Parameter | PromptsByStage

    def __init__(
        self,
        dim: Widths,
        depth: int,
        patch_size: tuple[int, int],
        sets: int,
        num_prompts: int,
        projected_dim: int | None,
        dropout: float,
        initial_prompts: InitialPrompts,
    ) -> None:
        super().__init__(dim, depth, patch_size)
        self.sets, self.num_prompts, self.projected_dim, self.dropout = sets, num_prompts, projected_dim, dropout
        self.initial_prompts = initial_prompts
        where = "with projected_dim" if len(self.stages) == 1 else "for blocks of several widths"
        plain = projected_dim is None and len(self.stages) == 1
        rules = [
            ("num_prompts", num_prompts >= 1, "at least 1"),
            ("projected_dim", projected_dim is None or projected_dim >= 1, "at least 1, or none"),
            ("initial_prompts", initial_prompts == "uniform" or plain, f"uniform {where}"),
            ("dropout", 0 <= dropout < 1, "0 or above, below 1"),
        ]
        check_rules(vars(self), rules)
        width = self.dim if projected_dim is None else projected_dim
        bound = init_bound(width, patch_size)
        if sets > 1 and projected_dim is None:
            self.prompts = stage_prompts(self.stages, num_prompts, bound=bound)
        else:
            shape = (num_prompts, width) if sets == 1 else (sets, num_prompts, width)
            self.prompts = prompt_parameter(*shape, bound=bound)
        served = self.stages[:1] if self.carries else self.stages
        self.projection = (
            nn.Identity() if projected_dim is None else by_stage(served, lambda stage: projection(width, stage.dim))
        )
        self.noise: Tensor | None = None

    @property
    def training_noise(self) -> int:
        return self.place(self.depth) if self.dropout else 0

    def place(self, layer: int) -> int:
        """Rows of noise, d numbers each, that the blocks before this one take."""
        return self.num_prompts * sum(self.widths[:layer]) // self.dim

    @torch.no_grad()
    def begin(self, tokens: Float[Tensor, "depth p dim"]) -> None:
        assert isinstance(self.prompts, nn.Parameter)
        self.prompts.copy_(tokens[0] if self.sets == 1 else tokens)

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        self.noise = noise if self.training and self.dropout else None  # of this pass
        return self.entering(0, rows_of(patches, noise))

    def entering(self, layer: int, rows: int) -> Float[Tensor, "rows p dim"]:
        """The prompts of a block."""
        prompts: Any = self.prompts if self.sets == 1 else self.prompts[layer]
        prompts = at(self.projection, layer)(prompts).expand(rows, -1, -1)
        if self.noise is None:
            return prompts
        noise = self.noise[:, self.place(layer) : self.place(layer + 1)]
        return prompts * kept(noise.reshape(prompts.shape), self.dropout)


def projection(width: int, dim: int) -> nn.Linear:
    """From h to d numbers, started as in the authors' code."""
    layer = nn.Linear(width, dim)
    nn.init.kaiming_normal_(layer.weight, a=0, mode="fan_out")
    return layer


def kept(noise: Float[Tensor, "rows p dim"], dropout: float) -> Float[Tensor, "rows p dim"]:
    """Factors of dropout, 0 or 1 / (1 - dropout), from standard normal noise."""
    threshold = math.sqrt(2) * torch.erfinv(torch.tensor(2 * dropout - 1, dtype=torch.float64)).item()
    return (noise > threshold).to(noise.dtype) / (1 - dropout)


class VPTShallow(VPT):
    """Prompts P enter the first block and go through all of them: [x_1, Z_1, E_1] = L_1([x_0, P, E_0]) (eq. 4 and 5).

    Args:
        num_prompts: p >= 1. Learnable: p * dim.
        projected_dim: h, to learn p * h numbers and a projection (h + 1) * dim instead.
        dropout: share of the prompts' numbers that training leaves out, in [0, 1).
        initial_prompts: "uniform", as the paper has it, or "tokens" of training images (SPT, arXiv 2402.02382).
    """

    name = "vpt-shallow"
    carries = True

    def __init__(
        self,
        dim: Widths,
        depth: int,
        patch_size: tuple[int, int],
        *,
        num_prompts: int = 10,
        projected_dim: int | None = None,
        dropout: float = 0.0,
        initial_prompts: InitialPrompts = "uniform",
    ) -> None:
        super().__init__(dim, depth, patch_size, 1, num_prompts, projected_dim, dropout, initial_prompts)

    @property
    def training_noise(self) -> int:
        return self.num_prompts if self.dropout else 0

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        return prompts


class VPTDeep(VPT):
    """Every block has prompts P_{i-1} of its own: [x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}]) (eq. 6).

    Args:
        num_prompts: p >= 1. Learnable: depth * p * dim.
        projected_dim: h, to learn depth * p * h numbers and a projection (h + 1) * dim instead.
        dropout: share of the prompts' numbers that training leaves out, in [0, 1).
        shared: the same P for all blocks: learnable p * dim. Where their widths differ, with `projected_dim` alone.
        initial_prompts: "uniform", as the paper has it, or "tokens" of training images (SPT, arXiv 2402.02382).
    """

    name = "vpt-deep"

    def __init__(
        self,
        dim: Widths,
        depth: int,
        patch_size: tuple[int, int],
        *,
        num_prompts: int = 10,
        projected_dim: int | None = None,
        dropout: float = 0.0,
        shared: bool = False,
        initial_prompts: InitialPrompts = "uniform",
    ) -> None:
        sets = 1 if shared else depth
        super().__init__(dim, depth, patch_size, sets, num_prompts, projected_dim, dropout, initial_prompts)
        self.shared = shared
        if shared and projected_dim is None and len(self.stages) > 1:
            raise ConfigError(
                f"shared = {shared} is not possible for blocks of widths {list(dict.fromkeys(self.widths))}",
                expected="projected_dim as well",
            )

    def carry(self, layer: int, prompts: Float[Tensor, "rows p _"]) -> Float[Tensor, "rows p dim"]:
        return self.entering(layer, prompts.shape[0])
