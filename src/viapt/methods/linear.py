"""Linear probing: the prompt method without prompts. Only the head learns."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from viapt.methods.base import PromptMethod, rows_of


class Linear(PromptMethod):
    """No prompts: a linear classifier on the frozen feature."""

    name = "linear"
    carries = False

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return patches.new_zeros(rows_of(patches, noise), 0, self.dim)

    def carry(self, layer: int, prompts: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        return prompts
