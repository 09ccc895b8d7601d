"""Kept subspaces: which m of the d prompt dimensions survive between blocks, and where the d - m fresh ones go.

Every reduction answers one question before block i (paper, section "PCA between layers"): given the prompts Z (batch,
p, d) that left the block before and the fresh learnable parameters W_i (p, d - m), what enters?

Most keep the projection where it was, in the original coordinates, and lay the fresh parameters into the orthogonal
complement:

    Z V V^T + lift(W_i)        V: (d, m), orthonormal

At m = d this is the identity (VPT-Shallow); at m = 0 it is W_i alone (VPT-Deep); neither is a special case. The
complement needs a basis, and an eigensolver's would be arbitrary. `reflector` takes the one that the block Householder
reflection of V gives: it depends on the subspace alone (not on signs, order or rotation of V), moves smoothly with it,
and needs no (d, d) matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the name that everybody uses)

from viapt.device import without_autocast
from viapt.distributed import whole


def orthonormalise(basis: Float[Tensor, "*l d m"]) -> Float[Tensor, "*l d m"]:
    """The closest matrix with orthonormal columns (the polar factor), computed in float64."""
    b = basis.double()
    values, vectors = torch.linalg.eigh(b.mT @ b)
    return (b @ (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT).to(basis.dtype)


def reflector(v: Float[Tensor, "*l d m"]) -> Float[Tensor, "*l d m"]:
    """A with H = I - A (V + [P; 0])^T, the symmetric orthogonal matrix that maps [-P; 0] to V.

    P is the polar factor of V's first m rows. The last d - m columns of H are an orthonormal basis of V's complement. V
    -> V R for orthogonal R leaves H as it is.
    """
    v64, m = v.double(), v.shape[-1]
    left, cosines, right = torch.linalg.svd(v64[..., :m, :])
    polar = left @ right
    y = torch.cat([v64[..., :m, :] + polar, v64[..., m:, :]], dim=-2)
    # Y^T Y / 2 = I + right^T diag(cosines) right: eigenvalues between 1 and 2, whatever V.
    inverse = right.mT @ ((1 + cosines).reciprocal().unsqueeze(-1) * right)
    return (y @ inverse).to(v.dtype)


def lift(
    fresh: Float[Tensor, "p r"], v: Float[Tensor, "*l d m"], a: Float[Tensor, "*l d m"]
) -> Float[Tensor, "*l p d"]:
    """Fresh parameters as vectors in the complement of V: H [0; w] for each row w, without forming H."""
    m = v.shape[-1]
    return F.pad(fresh, (m, 0)) - (fresh @ v[..., m:, :]) @ a.mT


def principal_axes(moment: Float[Tensor, "*l d d"], m: int) -> tuple[Float[Tensor, "*l d m"], Float[Tensor, "*l"]]:
    """The m leading eigenvectors of a symmetric matrix, and the share of its trace that they explain."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(0)
    total = values.sum(-1).clamp_min(torch.finfo(values.dtype).tiny)
    return vectors.flip(-1)[..., :m], values.flip(-1)[..., :m].sum(-1) / total


class Reduction(nn.Module, ABC):
    """What is kept of the prompts before each block, and how the fresh parameters are added.

    Args:
        dim: d.
        kept_dim: m, 0 <= m <= d.
        layers: number of blocks, each with a subspace of its own ...
        shared: ... or one subspace for all of them.
        seed: of the private generator, where something is drawn.
        steps: how many training steps estimate the subspace, where it is estimated.
        center: estimate it from what differs between images, instead of from all that there is.
        first: the first layer that has a subspace.
    """

    transient: frozenset[str] = frozenset()  # buffers that only training needs
    batch_dependent: bool = False  # does an image's answer depend on the other images of its batch?
    exact_gradient: bool = True  # or is the gradient stopped on purpose, on its way through the basis?

    def __init__(
        self,
        dim: int,
        kept_dim: int,
        layers: int,
        *,
        shared: bool,
        seed: int,
        steps: int,
        center: bool = False,
        first: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.kept_dim, self.layers, self.first = dim, kept_dim, layers, first
        self.shared, self.seed, self.steps, self.center = shared, seed, steps, center

    @abstractmethod
    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        """What `forward` computes, outside autocast."""

    def forward(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        """Prompts that left block `layer - 1` (or the fused Z_0) -> prompts that enter block `layer`."""
        if self.kept_dim == 0:
            return fresh.expand(prompts.shape[0], -1, -1)
        # Autocast would turn even products of float32 into bfloat16.
        with without_autocast(prompts):
            return self.reduce(layer, prompts, fresh)

    def coordinates(self, layer: int, vectors: Float[Tensor, "p d"]) -> Float[Tensor, "p r"]:
        """The fresh parameters that come closest to vectors, where nothing is carried."""
        return vectors[:, self.kept_dim :]

    def index(self, layer: int) -> int:
        """Which of the stored subspaces serves `layer`."""
        return 0 if self.shared else layer - self.first

    @property
    def count(self) -> int:
        """How many subspaces are stored."""
        return 1 if self.shared else self.layers - self.first

    @property
    def fresh_dim(self) -> int:
        """How many fresh parameters a prompt has."""
        return self.dim - self.kept_dim


class FixedSubspace(Reduction):
    """Keeps Z V V^T for a V held in a buffer; the base of `running` and `random`.

    `basis` holds V rounded to what float16 can represent, so that a saved adapter needs two bytes a number and loses
    nothing; the V in use is its orthonormalisation, computed from it alone.
    """

    basis: Tensor
    v: Tensor
    a: Tensor

    def __init__(self, dim: int, kept_dim: int, layers: int, **options: Any) -> None:
        super().__init__(dim, kept_dim, layers, **options)
        first = torch.eye(dim, kept_dim).repeat(self.count, 1, 1)  # coordinates: their own V and A
        self.register_buffer("basis", first)
        self.register_buffer("v", first.clone(), persistent=False)
        self.register_buffer("a", first.clone(), persistent=False)
        self.register_load_state_dict_post_hook(derive_after_loading)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedSubspace:
        before = self.basis
        super()._apply(fn, recurse)
        if self.basis is not before:
            self.derive()  # in the new precision, not cast to it
        return self

    def derive(self, *indices: int) -> None:
        """V and its reflector from `basis`, for these subspaces or all.

        New tensors, so that a graph that holds the old ones stays valid; one subspace at a time, so that the bits do
        not depend on how many are derived together.
        """
        v, a = self.v.clone(), self.a.clone()
        for index in indices or range(self.count):
            v[index] = orthonormalise(self.basis[index])
            a[index] = reflector(v[index])
        self.v, self.a = v, a

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        v, a = self.v[self.index(layer)], self.a[self.index(layer)]
        return (prompts @ v) @ v.mT + lift(fresh, v, a)

    def coordinates(self, layer: int, vectors: Float[Tensor, "p d"]) -> Float[Tensor, "p r"]:
        v, a = self.v[self.index(layer)], self.a[self.index(layer)]
        # The last d - m of H z; H is symmetric, so it is I - (V + [P; 0]) A^T as well.
        return vectors[:, self.kept_dim :] - (vectors @ a) @ v[self.kept_dim :].mT


def derive_after_loading(module: FixedSubspace, _: object) -> None:
    """A hook with a name, so that a model pickles."""
    module.derive()


class RunningPCA(FixedSubspace):
    """`running`: leading axes of the prompts, estimated in the first training steps, then frozen.

    The basis is taken at training steps 1, 2, 4, ..., up to `steps`, each time from the prompts since the time before,
    and then stays: a basis that keeps moving changes the meaning of what was learned in its complement. Evaluation
    never touches it: the same answer for an image whatever its batch, and no eigensolver in an exported model.

    Uncentred, the axes are those of the second moment. Most of its energy is what all images have in common, which the
    fresh parameters say better. Centred, they are those of the covariance within each prompt slot, that is of what
    differs between images, and orthogonal to the slots' means as long as m leaves room for them. Z_0, which is learned
    and not carried, is never centred. A batch of one image has no covariance and does not count as a step.
    """

    transient = frozenset({"moment", "common"})
    moment: Tensor
    common: Tensor
    seen: Tensor
    explained: Tensor

    def __init__(self, dim: int, kept_dim: int, layers: int, **options: Any) -> None:
        super().__init__(dim, kept_dim, layers, **options)
        self.register_buffer("moment", torch.zeros(self.count, dim, dim))
        self.register_buffer("common", torch.zeros(self.count, dim, dim if self.center else 0))
        self.register_buffer("seen", torch.zeros(self.count, dtype=torch.long))
        self.register_buffer("explained", torch.zeros(self.count))
        self.estimating = self.steps > 0 and 0 < kept_dim < dim

    def derive(self, *indices: int) -> None:
        super().derive(*indices)
        if "seen" in self._buffers:  # after loading: go on estimating only where training had not finished it
            self.estimating = 0 < self.kept_dim < self.dim and bool((self.seen < self.last).any())

    @property
    def visits(self) -> int:
        """How often one subspace sees prompts in one training step."""
        return self.layers - self.first if self.shared else 1

    @property
    def last(self) -> int:
        """The visit after which a subspace is frozen."""
        return self.steps * self.visits

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        if self.training and self.estimating:
            self.observe(layer, whole(prompts.detach()))
        return super().reduce(layer, prompts, fresh)

    @torch.no_grad()
    def observe(self, layer: int, prompts: Float[Tensor, "batch p d"]) -> None:
        """Add a training batch to the moment, and take a new basis when its time has come."""
        if self.center and prompts.shape[0] == 1:
            return
        index = self.index(layer)
        if self.center and layer > 0:
            mean = prompts.mean(0)
            self.common[index] += mean.mT @ mean
            prompts = prompts - mean
        x = prompts.flatten(0, 1)
        self.moment[index] += x.mT @ x / x.shape[0]
        self.seen[index] += 1
        step, rest = divmod(int(self.seen[index]), self.visits)
        if rest == 0 and (step & (step - 1) == 0 or step == self.steps):
            self.refresh(index)

    @torch.no_grad()
    def refresh(self, index: int) -> None:
        """Take the basis of one subspace from the moments since the last time."""
        self.take(index, self.varying(index))
        self.moment[index] = 0
        self.common[index] = 0

    @torch.no_grad()
    def take(self, index: int, moment: Float[Tensor, "d d"]) -> None:
        """The basis of one subspace from the moment that it is to explain."""
        axes, explained = principal_axes(moment, self.kept_dim)
        basis, share = self.basis.clone(), self.explained.clone()
        basis[index], share[index] = axes.half().to(axes.dtype), explained
        self.basis, self.explained = basis, share
        self.derive(index)

    def varying(self, index: int) -> Float[Tensor, "d d"]:
        """The moment, with the axes of the slots' means projected out, m axes left to choose from at least."""
        moment = self.moment[index]
        if not self.center:
            return moment
        values, axes = torch.linalg.eigh(self.common[index])
        axes = axes[:, self.kept_dim :]  # the d - m of most energy, in ascending order
        axes = axes * (values[self.kept_dim :] > 1e-6 * values[-1])
        rest = torch.eye(self.dim, device=axes.device, dtype=axes.dtype) - axes @ axes.mT
        return rest @ moment @ rest


class RandomSubspace(FixedSubspace):
    """`random`: a fixed random orthonormal basis, the paper's random-projection baseline."""

    def __init__(self, dim: int, kept_dim: int, layers: int, **options: Any) -> None:
        super().__init__(dim, kept_dim, layers, **options)
        generator = torch.Generator().manual_seed(self.seed)
        gaussian = torch.randn(self.count, dim, kept_dim, generator=generator)
        self.basis = torch.linalg.qr(gaussian).Q.half().float()
        self.derive()


class SelectCoordinates(Reduction):
    """`select`: m random coordinates are kept, the others are fresh: the paper's random-selection baseline."""

    order: Tensor

    def __init__(self, dim: int, kept_dim: int, layers: int, **options: Any) -> None:
        super().__init__(dim, kept_dim, layers, **options)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = [torch.randperm(dim, generator=generator)[:kept_dim].sort().values for _ in range(self.count)]
        mask = torch.zeros(self.count, dim, dtype=torch.bool)
        for row, kept in zip(mask, drawn, strict=True):
            row[kept] = True
        # Where coordinate j of the output comes from in [kept coordinates | fresh parameters].
        order = torch.where(mask, mask.cumsum(-1) - 1, kept_dim + (~mask).cumsum(-1) - 1)
        self.register_buffer("mask", mask)
        self.register_buffer("order", order)

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        order = self.order[self.index(layer)]
        laid = F.pad(fresh, (self.kept_dim, 0))[:, order]
        return torch.where(order < self.kept_dim, prompts, laid)

    def coordinates(self, layer: int, vectors: Float[Tensor, "p d"]) -> Float[Tensor, "p r"]:
        return vectors[:, self.order[self.index(layer)] >= self.kept_dim]


class LinearProjection(Reduction):
    """`linear`: a learnable (d, m) projection writes the first m features; it starts as the first m coordinates."""

    def __init__(self, dim: int, kept_dim: int, layers: int, **options: Any) -> None:
        super().__init__(dim, kept_dim, layers, **options)
        self.projection = nn.Parameter(torch.eye(dim, kept_dim).repeat(self.count, 1, 1))

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        kept = prompts @ self.projection[self.index(layer)]
        return torch.cat([kept, fresh.expand(prompts.shape[0], -1, -1)], dim=-1)


class BatchPCA(Reduction):
    """`batch`: the literal reading: PCA over all tokens of the batch, coordinates written into the first m features.

    Kept for comparison. The answer for an image depends on its batch, and m = d rotates instead of being the identity.
    Gradient flows through the projection, not through the basis. The sign of each axis is fixed (largest loading
    positive) to spare it at least that.
    """

    batch_dependent = True
    exact_gradient = False

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        rows = whole(prompts.detach()).flatten(0, 1)
        axes = leading_row_axes(rows - rows.mean(0), self.kept_dim)
        largest = axes.gather(-2, axes.abs().argmax(-2, keepdim=True))
        coordinates = prompts @ (axes * torch.where(largest < 0, -1.0, 1.0).to(axes.dtype))
        coordinates = F.pad(coordinates, (0, self.kept_dim - axes.shape[-1]))  # fewer rows than m span fewer axes
        return torch.cat([coordinates, fresh.expand(prompts.shape[0], -1, -1)], dim=-1)


class InstancePCA(Reduction):
    """`instance`: a basis per image, of the span of its own p prompts.

    Its rank is at most p, so m >= p keeps the prompts as they are. The fresh parameters go into the complement of each
    image's own subspace. Gradient flows through the projection, not through the basis.
    """

    exact_gradient = False

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        v = leading_row_axes(prompts.detach(), self.kept_dim)
        kept = prompts if self.kept_dim >= prompts.shape[1] else (prompts @ v) @ v.mT
        laid = F.pad(fresh, (self.kept_dim - v.shape[-1], 0))  # the m - rank kept dimensions that hold nothing
        return kept + lift(laid, v, reflector(v))


def leading_row_axes(rows: Float[Tensor, "*b n d"], m: int) -> Float[Tensor, "*b d k"]:
    """The k = min(m, n, d) leading right singular vectors of `rows`, from the smaller of the two Gram matrices."""
    n, d = rows.shape[-2:]
    k = min(m, n, d)
    if n >= d:
        return principal_axes(rows.mT @ rows, k)[0]
    # The eigenvectors u of rows rows^T give rows^T u; a QR keeps them orthonormal where singular values vanish.
    left = principal_axes(rows @ rows.mT, k)[0]
    return torch.linalg.qr(rows.mT @ left).Q


REDUCTIONS: dict[str, type[Reduction]] = {
    "running": RunningPCA,
    "batch": BatchPCA,
    "instance": InstancePCA,
    "linear": LinearProjection,
    "random": RandomSubspace,
    "select": SelectCoordinates,
}
