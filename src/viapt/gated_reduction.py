"""A kept subspace of a size of its own in each layer, and for each image: gates on principal axes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from viapt.distributed import whole
from viapt.reduction import RunningPCA


class GatedPCA(RunningPCA):
    """`running` with gates g in [0, 1] on its m axes: where one is open the axis is kept, where it is closed, fresh.

        W + (Z - W) V diag(g) V^T        V (d, m), W (p, d)

    Along each axis this lies between VPT-Deep's prompt W (g = 0) and what is carried (g = 1); outside the axes there is
    W alone. With all gates open it is Z V V^T and W in the complement of V, as in the other reductions.

    In each layer the first m_i gates can open: m_i is the smallest number of axes that explain the share `explained` of
    the prompts' variance (of what the axes are chosen by), at most m. With `image_gate`, they open for each image as
    far as its prompts stand out along an axis, compared with others, against the average image of the calibration:

        g_j = sigmoid(a_j + b log(share of axis j in the image's energy / share of axis j in the variance))

    with energy = sum over prompts of (Z v_j)^2, and a and b learned, 2 and 1 at first. With a fixed, b = 1 it is the
    gain of a Wiener filter, energy / (energy + noise). Shares do not depend on the size of what is carried.

    Args:
        explained: in (0, 1].
        image_gate: let gates depend on the image.
    """

    opened: Tensor
    typical: Tensor
    smallest = 1e-4  # a share that is as good as none, in units of 1 / m

    def __init__(
        self, dim: int, kept_dim: int, layers: int, *, explained: float, image_gate: bool, **options: Any
    ) -> None:
        super().__init__(dim, kept_dim, layers, **options)
        self.enough, self.image_gate = explained, image_gate
        self.register_buffer("opened", torch.ones(self.count, kept_dim))
        if image_gate:
            self.register_buffer("typical", torch.full((self.count, kept_dim), 1 / kept_dim))
            self.openness = nn.Parameter(torch.full((self.count, kept_dim), 2.0))
            self.slope = nn.Parameter(torch.ones(self.count))

    @property
    def fresh_dim(self) -> int:
        return self.dim

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        if self.training and self.estimating:
            self.observe(layer, whole(prompts.detach()))
        v = self.v[self.index(layer)]
        coordinates = prompts @ v
        return fresh + (self.gates(layer, coordinates) * (coordinates - fresh @ v)) @ v.mT

    def gates(self, layer: int, coordinates: Float[Tensor, "batch p m"]) -> Float[Tensor, "*batch m"]:
        """g, (m) or for each image (batch, 1, m)."""
        index = self.index(layer)
        opened = self.opened[index]
        if not self.image_gate:
            return opened
        energy = coordinates.square().sum(1, keepdim=True) * opened
        share = energy / (energy.sum(-1, keepdim=True) + 1e-12)
        least = self.smallest / self.kept_dim
        standing_out = ((share + least) / (self.typical[index] + least)).log()
        return opened * (self.openness[index] + self.slope[index] * standing_out).sigmoid()

    @torch.no_grad()
    def take(self, index: int, moment: Float[Tensor, "d d"]) -> None:
        """Axes, how many of them open, and the shares of the variance along these."""
        super().take(index, moment)
        v = self.v[index]
        variance = (v * (moment @ v)).sum(0).clamp_min(0)
        reached = (variance / moment.trace().clamp_min(torch.finfo(moment.dtype).tiny)).cumsum(0)
        number = int((reached < self.enough).sum().clamp_max(self.kept_dim - 1)) + 1
        opened, explained = self.opened.clone(), self.explained.clone()
        opened[index] = (torch.arange(self.kept_dim, device=v.device) < number).to(v.dtype)
        explained[index] = reached[number - 1]
        self.opened, self.explained = opened, explained
        if self.image_gate:
            typical = self.typical.clone()
            variance = variance * opened[index]
            typical[index] = variance / variance.sum().clamp_min(torch.finfo(v.dtype).tiny)
            self.typical = typical
