"""Visual Fourier Prompt Tuning (Zeng et al., NeurIPS 2024, arXiv 2411.01327)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.errors import check_rules
from viapt.methods.base import PromptMethod, init_bound, rows_of
from viapt.widths import Stage, Widths, at, by_stage, stage_prompts


class VFPT(PromptMethod):
    """VPT-Deep, with the real part of the Fourier transform of a share of the prompts in their place (section 3.2).

        enters block i = [Re F_s(F_h(P_i,1..f)), P_i,f+1..p],   f = floor(share * p)

    F_h along the d numbers of a prompt, F_s along the f prompts, neither normalised. With C + iS = the matrix of F,

        Re F_s(F_h(P)) = C_s P C_h - S_s P S_h

    which is how it is computed: runtimes of exported files know matrices, and not all of them complex numbers.

    Args:
        num_prompts: p >= 1. Learnable: depth * p * dim.
        fourier_share: of the prompts that are transformed, in [0, 1].
        fourier_axes: along which they are: "both", "hidden" (F_h alone) or "sequence" (F_s alone).
    """

    name = "vfpt"
    learning_rate = 1.5e-3
    carries = False
    staged = True

    def __init__(
        self,
        dim: Widths,
        depth: int,
        patch_size: tuple[int, int],
        *,
        num_prompts: int = 10,
        fourier_share: float = 0.5,
        fourier_axes: Literal["both", "hidden", "sequence"] = "both",
    ) -> None:
        super().__init__(dim, depth, patch_size)
        self.num_prompts, self.fourier_share, self.fourier_axes = num_prompts, fourier_share, fourier_axes
        rules = [
            ("num_prompts", num_prompts >= 1, "at least 1"),
            ("fourier_share", 0 <= fourier_share <= 1, "0 to 1"),
        ]
        check_rules(vars(self), rules)
        self.transformed = math.floor(fourier_share * num_prompts)
        self.prompts = stage_prompts(self.stages, num_prompts, bound=init_bound(self.dim, patch_size))
        self.transform = by_stage(self.stages, self.build_transform)

    def build_transform(self, stage: Stage) -> RealFourier:
        """For prompts of a stage."""
        return RealFourier(self.transformed, stage.dim, self.fourier_axes)

    def without_effect(self) -> dict[str, str]:
        return {} if self.transformed else {"fourier_axes": "no prompt is transformed"}

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return self.entering(0).expand(rows_of(patches, noise), -1, -1)

    def carry(self, layer: int, prompts: Float[Tensor, "rows p _"]) -> Float[Tensor, "rows p dim"]:
        return self.entering(layer).expand(prompts.shape[0], -1, -1)

    def entering(self, layer: int) -> Float[Tensor, "p dim"]:
        """The prompts of a block."""
        prompts, f = self.prompts[layer], self.transformed
        return torch.cat([at(self.transform, layer)(prompts[:f]), prompts[f:]]) if f else prompts


class RealFourier(nn.Module):
    """Re F_s(F_h(P)) of f prompts of d numbers, along both axes or one."""

    cos_hidden: Tensor
    sin_hidden: Tensor
    cos_sequence: Tensor
    sin_sequence: Tensor

    def __init__(self, f: int, dim: int, axes: str) -> None:
        super().__init__()
        for axis, size in (("hidden", dim), ("sequence", f)):
            along = axes in ("both", axis)
            for kind, table in zip(("cos", "sin"), fourier(size) if along else identity(size), strict=True):
                self.register_buffer(f"{kind}_{axis}", table, persistent=False)

    def forward(self, prompts: Float[Tensor, "f dim"]) -> Float[Tensor, "f dim"]:
        """The same as two products of matrices."""
        return self.cos_sequence @ prompts @ self.cos_hidden - self.sin_sequence @ prompts @ self.sin_hidden


def fourier(size: int) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Cosines and sines of 2 pi j k / n: real part and negative imaginary part of the transform's matrix."""
    numbers = torch.arange(size, dtype=torch.float64)
    angles = torch.outer(numbers, numbers).remainder(max(size, 1)) * (2 * math.pi / max(size, 1))
    return angles.cos().float(), angles.sin().float()


def identity(size: int) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """The same for no transform."""
    return torch.eye(size), torch.zeros(size, size)
