"""Partial-k: the last blocks learn (Yosinski et al., NeurIPS 2014, arXiv 1411.1792; in VPT's comparison Partial-1)."""

from __future__ import annotations

from viapt.errors import ConfigError
from viapt.methods.fine_tuning import FineTuning
from viapt.widths import Widths


class Partial(FineTuning):
    """The last k blocks and what follows them learn, all others stay (in arXiv 2203.12119 "Partial-k").

        theta_i = theta_i,0   for blocks i = 1..N - k and the embedding

    Args:
        blocks: k, 1 to depth.
    """

    name = "partial"
    learning_rate = 3e-4

    def __init__(self, dim: Widths, depth: int, patch_size: tuple[int, int], *, blocks: int = 1) -> None:
        super().__init__(dim, depth, patch_size)
        self.blocks = blocks
        if not 1 <= blocks <= depth:
            raise ConfigError(f"blocks = {blocks} is not possible", expected=f"1 to the depth {depth}")

    def learns(self, name: str, stage: int) -> bool:
        return stage >= self.depth - self.blocks
