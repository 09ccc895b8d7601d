"""Gradient through the kept subspace: in the training steps that take a basis, it is a function of their prompts.

A subspace that is spanned by the m leading eigenvectors of a symmetric matrix M is differentiable wherever the
eigenvalues l_i inside and l_j outside differ; its projector P = V V^T moves by

    dP = sum over i inside, j outside of  (q_j^T dM q_i) / (l_i - l_j) * (q_j q_i^T + q_i q_j^T)

Pairs on one side are in no term: equal eigenvalues inside, which make the backward pass of an eigensolver unstable,
only turn V within its span. So V may follow M by dV = sum of (q_j^T dM q_i) / (l_i - l_j) * q_j (q_i^T V), which is the
derivative of whatever depends on the span alone. Where inside and outside meet there is no subspace to speak of, and
1 / gap is damped: `gaps_inverted`.

What enters a block is Z P + U, where U = lift(W) lies in the complement. That it does must not change: U (I - P). That
is all by which P moves it. The coordinates of the complement also turn within it, by the reflector's convention; this
says nothing, is hundreds of times as large, and is left out: fresh parameters are transported in parallel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from viapt.distributed import process_index, whole
from viapt.reduction import RunningPCA, lift

CLOSEST = 1e-4  # of an eigenvalue: gaps below are damped
EMPTY = 1e-6  # of the largest eigenvalue: no energy, which is what rounding in float32 leaves


def gaps_inverted(inside: Float[Tensor, " m"], outside: Float[Tensor, " rest"]) -> Float[Tensor, "rest m"]:
    """1 / (l_i - l_j), safely: with c = 1e-4 l_i, gap / (gap^2 + c^2), which is 1 / (2 c) at most, and 0 for no gap.

    An axis inside with less than 1e-6 of the largest eigenvalue is one of many without energy, and stays: 0.
    """
    largest = torch.cat([inside, outside]).max()
    scale = torch.where(largest > 0, largest, 1)
    kept, gap = inside / scale, (inside - outside[:, None]) / scale
    inverse = gap / (gap.square() + (CLOSEST * kept.clamp_min(EMPTY)).square()) / scale
    return torch.where(kept > EMPTY, inverse, 0)


class LeadingSubspace(torch.autograd.Function):
    """A basis of the leading eigenspace of a symmetric matrix, which follows that space and does not turn within it."""

    @staticmethod
    def forward(ctx: Any, moment: Float[Tensor, "d d"], basis: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
        """`basis` as it is.

        Args:
            moment: what the subspace is leading in.
            basis: orthonormal, of its m leading eigenvectors, but for rounding.
        """
        ctx.save_for_backward(moment, basis)
        return basis.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "d m"]) -> tuple[Float[Tensor, "d d"], None]:
        moment, basis = (tensor.double() for tensor in ctx.saved_tensors)
        d, m = basis.shape
        values, q = torch.linalg.eigh(moment)
        outside, inside = q[:, : d - m], q[:, d - m :]
        pairs = outside.mT @ gradients[0].double() @ (basis.mT @ inside)
        pairs = pairs * gaps_inverted(values[d - m :], values[: d - m])
        found = outside @ pairs @ inside.mT
        return ((found + found.mT) / 2).to(gradients[0].dtype), None


class WholeBatch(torch.autograd.Function):
    """What `viapt.distributed.whole` gives, with gradient: each process gets what the losses of all say of its rows."""

    @staticmethod
    def forward(
        ctx: Any, rows: Float[Tensor, "share p d"], batch: Float[Tensor, "batch p d"]
    ) -> Float[Tensor, "batch p d"]:
        """`batch` as it is."""
        ctx.share = rows.shape[0]
        ctx.mine = whole(torch.full(rows.shape[:1], process_index(), device=rows.device)) == process_index()
        return batch.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "batch p d"]) -> tuple[Float[Tensor, "share p d"], None]:
        total = gradients[0].clone()
        dist.all_reduce(total)
        mine = total[ctx.mine]
        stand_ins = mine.new_zeros(ctx.share - len(mine), *mine.shape[1:])
        return torch.cat([mine, stand_ins]), None


class FollowedPCA(RunningPCA):
    """`running`, where gradient flows through the subspace, in each step in which its basis is taken: Z P + U (I - P).

    The basis is that of `RunningPCA`, bit for bit, and so is what enters. What earlier batches contributed is constant,
    what the present batch contributes is not, to the slots' means neither; rounding to float16 lets gradient pass. In
    other steps, and in evaluation, the basis is constant. No subspace may be shared by blocks.
    """

    def reduce(
        self, layer: int, prompts: Float[Tensor, "batch p d"], fresh: Float[Tensor, "p r"]
    ) -> Float[Tensor, "batch p d"]:
        if not (self.training and self.estimating and prompts.requires_grad):
            return super().reduce(layer, prompts, fresh)
        index, own, before = self.index(layer), prompts.detach(), self.basis
        earlier = self.moment[index].clone(), self.common[index].clone()
        batch = whole(own)
        self.observe(layer, batch)
        v, laid = self.v[index], lift(fresh, self.v[index], self.a[index])
        if self.basis is before:
            return (prompts @ v) @ v.mT + laid
        rows = prompts if batch is own else WholeBatch.apply(prompts, batch)
        v = LeadingSubspace.apply(self.followed(layer, rows, *earlier), v)
        inside = (laid @ v) @ v.mT  # nothing, and stays so
        return (prompts @ v) @ v.mT + (laid - (inside - inside.detach()))

    def followed(
        self,
        layer: int,
        prompts: Float[Tensor, "batch p d"],
        moment: Float[Tensor, "d d"],
        common: Float[Tensor, "d _"],
    ) -> Float[Tensor, "d d"]:
        """What the basis was taken from, as a function of the batch: `observe` and `varying` of `RunningPCA`.

        Args:
            prompts: of the whole batch.
            moment, common: the sums before it came.
        """
        if self.center and layer > 0:
            mean = prompts.mean(0)
            common = common + mean.mT @ mean
            prompts = prompts - mean
        x = prompts.flatten(0, 1)
        moment = moment + x.mT @ x / x.shape[0]
        if not self.center:
            return moment
        values, axes = torch.linalg.eigh(common.detach())
        shared = values > 1e-6 * values[-1]
        shared[: self.kept_dim] = False
        means = LeadingSubspace.apply(common, axes[:, shared])
        rest = torch.eye(self.dim, device=axes.device, dtype=axes.dtype) - means @ means.mT
        return rest @ moment @ rest
