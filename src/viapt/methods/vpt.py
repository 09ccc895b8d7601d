"""Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv 2203.12119): the two methods between which ViaPT lies."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.errors import ConfigError
from viapt.methods.base import InitialPrompts, PromptMethod, init_bound, prompt_parameter, rows_of


class VPT(PromptMethod):
    """Prompts that are the same for every image, some for each of `self.sets` blocks.

    The paper's options: prompts of h numbers that one linear layer, for all blocks, projects to the d of the backbone;
    and dropout of what enters, for each image anew.
    """

    carries = False
    prompts: nn.Parameter

    def __init__(
        self,
        dim: int,
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
        if projected_dim is not None and projected_dim < 1:
            raise ConfigError(f"projected_dim = {projected_dim} is not possible", expected="at least 1, or none")
        if projected_dim is not None and initial_prompts == "tokens":
            found = "initial_prompts = 'tokens' with projected_dim is not possible"
            raise ConfigError(found, expected="prompts of as many numbers as tokens", remedy="leave one of them out")
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout = {dropout} is not possible", expected="0 or above, below 1")
        width = dim if projected_dim is None else projected_dim
        shape = (num_prompts, width) if sets == 1 else (sets, num_prompts, width)
        self.prompts = prompt_parameter(*shape, bound=init_bound(width, patch_size))
        self.projection = nn.Identity() if projected_dim is None else nn.Linear(width, dim)
        if isinstance(self.projection, nn.Linear):
            nn.init.kaiming_normal_(self.projection.weight, a=0, mode="fan_out")
        self.noise: Tensor | None = None

    @property
    def training_noise(self) -> int:
        return self.depth * self.num_prompts if self.dropout else 0

    @torch.no_grad()
    def begin(self, tokens: Float[Tensor, "depth p dim"]) -> None:
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
        prompts = self.prompts if self.sets == 1 else self.prompts[layer]
        prompts = self.projection(prompts).expand(rows, -1, -1)
        if self.noise is None:
            return prompts
        p = self.num_prompts
        return prompts * kept(self.noise[:, layer * p : (layer + 1) * p], self.dropout)


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
        dim: int,
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
        shared: the same P for all blocks: learnable p * dim.
        initial_prompts: "uniform", as the paper has it, or "tokens" of training images (SPT, arXiv 2402.02382).
    """

    name = "vpt-deep"

    def __init__(
        self,
        dim: int,
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

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        return self.entering(layer, prompts.shape[0])
