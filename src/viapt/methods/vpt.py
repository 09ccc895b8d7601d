"""Visual Prompt Tuning (Jia et al., ECCV 2022, arXiv 2203.12119): the two methods between which ViaPT lies."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from viapt.methods.base import PromptMethod, init_bound, prompt_parameter, rows_of


class VPTShallow(PromptMethod):
    """Prompts P enter the first block and go through all of them: [x_1, Z_1, E_1] = L_1([x_0, P, E_0]) (eq. 4 and 5).

    Args:
        num_prompts: p >= 1. Learnable: p * dim.
    """

    name = "vpt-shallow"

    def __init__(self, dim: int, depth: int, patch_size: tuple[int, int], *, num_prompts: int = 10) -> None:
        super().__init__(dim, depth, patch_size)
        self.num_prompts = num_prompts
        self.prompts = prompt_parameter(num_prompts, dim, bound=init_bound(dim, patch_size))

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return self.prompts.expand(rows_of(patches, noise), -1, -1)

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        return prompts


class VPTDeep(PromptMethod):
    """Every block has prompts P_{i-1} of its own: [x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}]) (eq. 6).

    Args:
        num_prompts: p >= 1. Learnable: depth * p * dim.
    """

    name = "vpt-deep"
    carries = False

    def __init__(self, dim: int, depth: int, patch_size: tuple[int, int], *, num_prompts: int = 10) -> None:
        super().__init__(dim, depth, patch_size)
        self.num_prompts = num_prompts
        self.prompts = prompt_parameter(depth, num_prompts, dim, bound=init_bound(dim, patch_size))

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return self.prompts[0].expand(rows_of(patches, noise), -1, -1)

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        return self.prompts[layer].expand(prompts.shape[0], -1, -1)
