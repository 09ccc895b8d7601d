"""Gradient through the kept subspace: in the training steps that take a basis, it is a function of their prompts.

A subspace that is spanned by the m leading eigenvectors of a symmetric matrix M is differentiable wherever the
eigenvalues l_i inside and l_j outside differ; its projector P = V V^T moves by

    dP = sum over i inside, j outside of  (q_j^T dM q_i) / (l_i - l_j) * (q_j q_i^T + q_i q_j^T)

Pairs on one side are in no term: equal eigenvalues inside, which make the backward pass of an eigensolver unstable,
only turn V within its span. So V may follow M by dV = sum of (q_j^T dM q_i) / (l_i - l_j) * q_j (q_i^T V), which is the
derivative of whatever depends on the span alone; and what enters a block does. Where inside and outside meet there is
no subspace to speak of, and 1 / gap is damped: `safe_inverse`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from viapt.distributed import process_index, whole
from viapt.reduction import RunningPCA, lift

CLOSEST = 1e-6


def safe_inverse(gap: Float[Tensor, "*s"], scale: Float[Tensor, ""]) -> Float[Tensor, "*s"]:
    """1 / gap as gap / (gap^2 + c^2), c = 1e-6 of `scale`: at most 1 / (2 c), and 0 for no gap."""
    scale = torch.where(scale > 0, scale, 1)
    share = gap / scale
    return share / (share.square() + CLOSEST**2) / scale


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
        inverse = safe_inverse(values[d - m :] - values[: d - m, None], values.abs().max())
        pairs = (outside.mT @ gradients[0].double() @ (basis.mT @ inside)) * inverse
        found = outside @ pairs @ inside.mT
        return ((found + found.mT) / 2).to(gradients[0].dtype), None


class PolarFactor(torch.autograd.Function):
    """The orthogonal factor P of a square matrix; unlike that of an SVD, its derivative divides by s_i + s_j alone."""

    @staticmethod
    def forward(ctx: Any, matrix: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
        """P of matrix = P (matrix^T matrix)^(1/2)."""
        left, values, right = torch.linalg.svd(matrix)
        ctx.save_for_backward(left, values, right)
        return left @ right

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
        left, values, right = ctx.saved_tensors
        inner = left.mT @ gradients[0] @ right.mT
        inner = inner * safe_inverse(values + values[:, None], values.new_ones(()))
        return left @ (inner - inner.mT) @ right


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


def following_reflector(v: Float[Tensor, "d m"], a: Float[Tensor, "d m"]) -> Float[Tensor, "d m"]:
    """A of `viapt.reduction.reflector`, which has the value `a`, as a function of V."""
    v64, m = v.double(), v.shape[-1]
    first = v64[:m]
    polar = PolarFactor.apply(first)
    # Y^T Y / 2 = I + P^T V_1.
    inverse = torch.linalg.inv(torch.eye(m, dtype=v64.dtype, device=v.device) + polar.mT @ first)
    smooth = (torch.cat([first + polar, v64[m:]]) @ inverse).to(v.dtype)
    return a + (smooth - smooth.detach())


class FollowedPCA(RunningPCA):
    """`running`, where gradient flows through the basis, in each step in which it is taken.

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
        v, a = self.v[index], self.a[index]
        if self.basis is not before:
            rows = prompts if batch is own else WholeBatch.apply(prompts, batch)
            v = LeadingSubspace.apply(self.followed(layer, rows, *earlier), v)
            a = following_reflector(v, a)
        return (prompts @ v) @ v.mT + lift(fresh, v, a)

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
