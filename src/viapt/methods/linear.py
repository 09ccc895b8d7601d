"""Linear probing: the prompt method without prompts. Only the head learns."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from viapt.methods.base import PromptMethod


class Linear(PromptMethod):
    """No prompts: a linear classifier on the frozen feature."""

    name = "linear"

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "batch lambda_ dim"] | None,
    ) -> Float[Tensor, "batch p dim"]:
        return patches[:, :0]

    def carry(self, layer: int, prompts: Float[Tensor, "batch p dim"]) -> Float[Tensor, "batch p dim"]:
        return prompts
