"""From an embedded image to the distribution of its instance prompts: two convolutions on the token grid."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class InstanceGenerator(nn.Module):
    """E_0 -> (mean, std) of the instance prompts: two convolutions on the token grid, averaged, projected.

    The tokens are normalised first (no parameters): E_0 differs in scale by orders of magnitude between backbones.

    Args:
        dim: d.
        num_prompts: how many (mean, std) pairs.
        width: c, channels.
        kernels: sizes of the two convolutions.
        depthwise: second convolution per channel.
        bound: the projection starts in [-bound, bound], as other prompts do.
        initial_std: the std about which it starts; None: there is no std, the mean alone is made.
        spatial: the convolutions also see where a token is (CoordConv, arXiv 1807.03247), and each (mean, std) is that
            of a cell of the grid, by one projection for all of them, instead of that of the whole image.
    """

    log_std_range = (-12.0, 2.0)

    def __init__(
        self,
        dim: int,
        *,
        num_prompts: int,
        width: int,
        kernels: tuple[int, int],
        depthwise: bool,
        bound: float,
        initial_std: float | None,
        spatial: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.num_prompts, self.spatial = dim, num_prompts, spatial
        first, second = kernels
        self.encoder = nn.Sequential(
            nn.Conv2d(dim + 2 if spatial else dim, width, first, padding=first // 2),
            nn.GELU(),
            nn.Conv2d(width, width, second, padding=second // 2, groups=width if depthwise else 1),
            nn.GELU(),
        )
        # No bias: a shift that all images share is what dataset-level prompts and W_1 are for.
        self.kinds, self.projected = 1 if initial_std is None else 2, 1 if spatial else num_prompts
        self.project = nn.Linear(width, self.kinds * self.projected * dim, bias=False)
        nn.init.uniform_(self.project.weight, -bound, bound)
        self.initial_log_std = None if initial_std is None else math.log(initial_std)

    def forward(
        self, patches: Float[Tensor, "batch n dim"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "batch k dim"], Float[Tensor, "batch k dim"] | None]:
        """Mean and std (None, if there is none), k = `num_prompts`."""
        x = F.layer_norm(patches, (self.dim,)).mT.unflatten(-1, grid)
        if self.spatial:
            x = torch.cat([x, coordinates(grid, x).expand(x.shape[0], -1, -1, -1)], dim=1)
            x = self.project(cell_means(self.encoder(x), self.num_prompts))
            kinds = x.unflatten(-1, (self.kinds, self.dim)).unbind(2)
        else:
            x = self.project(self.encoder(x).mean((-2, -1)))
            kinds = x.unflatten(-1, (self.kinds, self.num_prompts, self.dim)).unbind(1)
        if self.initial_log_std is None:
            return kinds[0], None
        mean, log_std = kinds
        return mean, (self.initial_log_std + log_std).clamp(*self.log_std_range).exp()


def coordinates(grid: tuple[int, int], like: Tensor) -> Float[Tensor, "1 2 h w"]:
    """Where the centre of each token lies, x (to the right) and y (downwards) in (-1, 1)."""
    h, w = grid
    x, y = ([(2 * i + 1) / size - 1 for i in range(size)] for size in (w, h))
    return torch.stack([like.new_tensor(x).expand(h, w), like.new_tensor(y).unsqueeze(-1).expand(h, w)]).unsqueeze(0)


def cell_means(features: Float[Tensor, "batch c h w"], count: int) -> Float[Tensor, "batch k c"]:
    """Averages over `count` rectangles that cover the grid, row by row; where it is smaller than they, they overlap.

    Products with two matrices that follow from the sizes alone, which any runtime of exported files can compute.
    """
    rows, columns = cells(count, (features.shape[-2], features.shape[-1]))
    down = features.new_tensor(averages(rows, features.shape[-2]))
    across = features.new_tensor(averages(columns, features.shape[-1]))
    return (down @ features @ across.mT).flatten(-2).mT


def cells(count: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns, rows * columns = count, whose cells are as square as can be; of two alike, more columns."""
    divisors = [rows for rows in range(1, count + 1) if count % rows == 0]

    def stretch(rows: int) -> float:
        return abs(math.log(grid[0] / rows) - math.log(grid[1] * rows / count))

    rows = min(divisors, key=lambda rows: (round(stretch(rows), 9), rows))
    return rows, count // rows


def averages(count: int, size: int) -> list[list[float]]:
    """The matrix (count, size) of the averages over `count` stretches that cover `size` places."""
    ends = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return [[1 / (end - start) if start <= place < end else 0.0 for place in range(size)] for start, end in ends]


class WarmUp(nn.Module):
    """Lets instance prompts grow from 0 to their size over the first training steps, in equal steps.

    Args:
        steps: 0: they have it from the start.
    """

    seen: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        if steps:
            self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def restart(self) -> None:
        """As if no step had been taken."""
        if self.steps:
            self.seen.zero_()

    def forward(self, prompts: Float[Tensor, "rows lambda_ dim"]) -> Float[Tensor, "rows lambda_ dim"]:
        """Some share of the prompts; in training a larger one each time."""
        if not self.steps:
            return prompts
        if self.training:
            self.seen += 1
        return prompts * (self.seen / self.steps).clamp_max(1)
