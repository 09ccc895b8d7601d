"""Visual Instance-aware Prompt Tuning (arXiv 2507.07796): the paper in one file, top-down.

    symbol    code                    meaning
    d         dim                     embedding dimension
    N         depth                   transformer blocks
    p         num_prompts             prompt tokens in the sequence
    lambda    num_instance_prompts    of these, sampled from the image
    m         kept_dim                dimensions kept from what left the block before
    E_0       patches                 embedded image, (batch, n, d), on a grid (h, w)
    mu, sigma mean, std               parameters of the instance distribution
    Z_i       prompts                 prompts that left block i, (batch, p, d)
    W_i       fresh[i]                learnable parameters that enter before block i, (p, d - m)

    P_ins,k = mu(E_0) + sigma(E_0) * eps_k, eps_k ~ N(0, I)     k = 1..lambda       (generate, sample)
    Z_0     = [P_ins, P_data]                                                       (fuse)
    enters block i = s_i * PCA_m(Z_{i-1}) + W_i laid into the other d - m dimensions      (compress, pad)

m = 0 is VPT-Deep, m = d (with s = 1) VPT-Shallow. What the paper leaves open, and how we chose, is in docs/method.md,
and so are our variants of it. `instance_generator` makes (mu, sigma), `carry` s_i, `viapt.reduction` PCA_m.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from viapt.gated_reduction import GatedPCA
from viapt.methods.base import InitialPrompts, PromptMethod, init_bound, rows_of
from viapt.methods.basis_gradient import FollowedPCA
from viapt.methods.carry import CarryScale
from viapt.methods.instance_generator import InstanceGenerator, WarmUp
from viapt.methods.viapt_arguments import check, without_effect
from viapt.reduction import REDUCTIONS, Reduction
from viapt.widths import Stage, Widths, at, by_stage, prompt_parameter, stage_prompts

ReductionName = Literal["running", "batch", "instance", "linear", "random", "select"]


class ViaPT(PromptMethod):
    """Instance-aware prompts, and a kept subspace between blocks.

    Args:
        num_prompts: p >= 1.
        num_instance_prompts: lambda, 0 <= lambda <= p.
        kept_dim: m, 0 <= m <= d; None: d / 12; "adaptive": gates on `max_kept_dim` axes, see `GatedPCA` (`running`).
            Where blocks are wider than the first, theirs is larger in proportion, and so is `max_kept_dim`.
        explained: share of the variance that the axes kept in a layer explain, in (0, 1] (`adaptive`).
        max_kept_dim: axes with a gate, 1 to d - 1; None: d / 6 (`adaptive`).
        image_gate: let gates also depend on the image (`adaptive`).
        fresh_dim: "complement": fresh parameters live where nothing is kept; "full": W_i has d numbers a prompt, to
            which what is kept is added. Where it has (`adaptive` too), [P_ins, 0] + W_1 enters the first block.
        fresh_rows: prompts, the last ones, that have fresh parameters, p - lambda to p; None: all, or all but one where
            W_i has d numbers a prompt and there is a generator, which this pays for.
        reduction: how the m dimensions are found; see `viapt.reduction`.
        shared_basis: one kept subspace for all blocks instead of one each (a smaller adapter).
        center_basis: choose the subspace by what differs between images, not by all that the prompts hold (`running`).
        basis_gradient: let gradient flow through the subspace in the steps that take it, see `FollowedPCA` (`running`).
        basis_seed: of the fixed subspace (`random`, `select`).
        calibration_steps: training steps that estimate subspace (`running`) and scales (`calibrate_carry`).
        carry_scale: s, the factor on what is carried into blocks 2..N.
        calibrate_carry: measure s in units that make what differs between images as large as a prompt starts; see
            `CarryScale`. False with `carry_scale` 1 is the paper.
        learn_carry_scale: learn s for each block, starting from `carry_scale`.
        carried: "all", or only the "variation": Z less the mean of each prompt slot, estimated in the calibration.
        carry_norm: bring each carried token to the size at which a prompt starts, before it is scaled.
        detach_carried: let no gradient flow back through what is carried.
        generator_width: c, channels of the generator.
        generator_kernels: sizes of its two convolutions, odd.
        generator_depthwise: second convolution per channel instead of full.
        per_prompt: a (mean, std) for each instance prompt instead of one for all.
        initial_std: std of the instance distribution at the start, > 0.
        kl_weight: weight of KL(N(mean, std^2) || N(0, I)), averaged over the dimensions; the paper has none.
        spatial: the generator sees where tokens lie, and each instance prompt is made from a cell of the grid.
        instance_noise: sample; False: the mean alone is made and used.
        instance_every: add t_i * P_ins to what enters blocks 2..N, with a learned t_i, 1 at first.
        instance_warmup: training steps in which P_ins grows from 0 to its size.
        generator_lr: factor on the learning rate of the generator, > 0.
        initial_prompts: W_i and P_data start "uniform", as VPT's prompts do, or as "tokens" of training images that
            enter the block without prompts (as in SPT, arXiv 2402.02382), in subspaces that are estimated before.
    """

    name = "viapt"
    staged = True

    def __init__(
        self,
        dim: Widths,
        depth: int,
        patch_size: tuple[int, int],
        *,
        num_prompts: int = 10,
        num_instance_prompts: int = 7,
        kept_dim: int | Literal["adaptive"] | None = None,
        explained: float = 0.9,
        max_kept_dim: int | None = None,
        image_gate: bool = False,
        fresh_dim: Literal["complement", "full"] = "complement",
        fresh_rows: int | None = None,
        reduction: ReductionName = "running",
        shared_basis: bool = False,
        center_basis: bool = True,
        basis_gradient: bool = False,
        basis_seed: int = 0,
        calibration_steps: int = 8,
        carry_scale: float = 0.1,
        calibrate_carry: bool = True,
        learn_carry_scale: bool = False,
        carried: Literal["all", "variation"] = "all",
        carry_norm: bool = False,
        detach_carried: bool = False,
        generator_width: int = 2,
        generator_kernels: tuple[int, int] = (1, 3),
        generator_depthwise: bool = False,
        per_prompt: bool = False,
        initial_std: float = 0.01,
        kl_weight: float = 0.0,
        spatial: bool = False,
        instance_noise: bool = True,
        instance_every: bool = False,
        instance_warmup: int = 0,
        generator_lr: float = 1.0,
        initial_prompts: InitialPrompts = "uniform",
    ) -> None:
        super().__init__(dim, depth, patch_size)
        dim = self.dim
        self.num_prompts, self.num_instance_prompts = num_prompts, num_instance_prompts
        self.kept_dim = dim // 12 if kept_dim is None else kept_dim
        self.explained, self.image_gate = explained, image_gate
        self.max_kept_dim = dim // 6 if max_kept_dim is None and kept_dim == "adaptive" else max_kept_dim
        self.wide = self.kept_dim != 0 and (fresh_dim == "full" or kept_dim == "adaptive")  # W_i has d numbers a prompt
        default_rows = num_prompts - 1 if self.wide and num_instance_prompts and num_prompts > 1 else num_prompts
        self.fresh_dim, self.fresh_rows = fresh_dim, default_rows if fresh_rows is None else fresh_rows
        self.reduction, self.shared_basis, self.center_basis = reduction, shared_basis, center_basis
        self.basis_gradient, self.basis_seed, self.calibration_steps = basis_gradient, basis_seed, calibration_steps
        self.carry_scale, self.calibrate_carry, self.learn_carry_scale = carry_scale, calibrate_carry, learn_carry_scale
        self.carried, self.carry_norm, self.detach_carried = carried, carry_norm, detach_carried
        self.generator_width, self.generator_kernels = generator_width, generator_kernels
        self.generator_depthwise, self.per_prompt, self.initial_std = generator_depthwise, per_prompt, initial_std
        self.kl_weight, self.spatial, self.instance_noise = kl_weight, spatial, instance_noise
        self.instance_every, self.instance_warmup, self.generator_lr = instance_every, instance_warmup, generator_lr
        self.initial_prompts = initial_prompts
        check(self)
        if self.kept_dim == 0:  # nothing of Z_0 would be kept, so nothing is made, and W_i is all that there is
            self.num_instance_prompts, self.fresh_rows = 0, num_prompts

        bound = init_bound(dim, patch_size)
        self.kept = by_stage(self.stages, self.build_reduction)
        subspaces: list[Reduction] = [at(self.kept, stage.first) for stage in self.stages]
        keeps = self.kept_dim != 0
        self.carries = keeps and (carry_scale != 0 or learn_carry_scale)
        self.batch_dependent = subspaces[0].batch_dependent and keeps
        self.exact_gradient = subspaces[0].exact_gradient or not keeps
        widths = [subspace.dim if self.wide else subspace.fresh_dim for subspace in subspaces]
        if widths[0] > 0:
            self.fresh = stage_prompts(self.stages, self.fresh_rows, bound=bound, widths=widths)
        else:
            self.register_buffer("fresh", torch.empty(depth, self.fresh_rows, 0), persistent=False)
        if keeps and not self.wide and num_instance_prompts < num_prompts:
            self.dataset_prompts = prompt_parameter(num_prompts - num_instance_prompts, dim, bound=bound)
        if self.num_instance_prompts:
            self.generator = InstanceGenerator(
                dim,
                num_prompts=num_instance_prompts if per_prompt or spatial else 1,
                width=generator_width,
                kernels=generator_kernels,
                depthwise=generator_depthwise,
                bound=bound,
                initial_std=initial_std if instance_noise else None,
                spatial=spatial,
            )
            self.warmup = WarmUp(instance_warmup)
            if instance_every:
                self.instance_scale = nn.Parameter(torch.ones(depth - 1))
        self.instance: Tensor | None = None  # of this pass
        self.scale = by_stage(self.stages, self.build_scale)

    def build_scale(self, stage: Stage) -> CarryScale:
        """s_i, for the blocks of a stage; nothing is carried into the first block."""
        return CarryScale(
            stage.end,
            self.carry_scale,
            learn=self.learn_carry_scale and self.kept_dim != 0,
            measure=self.calibrate_carry and self.carries,
            unit=init_bound(self.dim, self.patch_size) / math.sqrt(3),
            steps=self.calibration_steps,
            mean_of=(self.num_prompts, stage.dim) if self.carried == "variation" and self.carries else None,
            normalise=self.carry_norm,
            first=max(1, stage.first),
        )

    def build_reduction(self, stage: Stage) -> Reduction:
        """PCA_m, for the blocks of a stage, m in proportion to their width.

        Where W_1 has d numbers a prompt, Z_0 is added to it and nothing of Z_0 is left out.
        """
        options: dict[str, Any] = {
            "shared": self.shared_basis,
            "seed": self.basis_seed,
            "steps": self.calibration_steps,
            "center": self.center_basis,
            "first": max(stage.first, 1 if self.wide else 0),
        }
        growth = stage.dim // self.dim
        if isinstance(self.kept_dim, int):
            kind = FollowedPCA if self.basis_gradient and self.reduction == "running" else REDUCTIONS[self.reduction]
            return kind(stage.dim, growth * self.kept_dim, stage.end, **options)
        assert self.max_kept_dim is not None
        gates = {"explained": self.explained, "image_gate": self.image_gate}
        return GatedPCA(stage.dim, growth * self.max_kept_dim, stage.end, **options, **gates)

    @property
    def sampled_prompts(self) -> int:
        return self.num_instance_prompts if self.instance_noise else 0

    def learning_rates(self) -> dict[str, float]:
        return {name: self.generator_lr for name, _ in self.named_parameters() if name.startswith("generator.")}

    @torch.no_grad()
    def begin(self, tokens: Float[Tensor, "depth p dim"]) -> None:
        first = self.num_prompts - self.fresh_rows
        for layer, token in enumerate(tokens[:, first:]):
            self.fresh[layer].copy_(token if self.wide else at(self.kept, layer).coordinates(layer, token))
        if hasattr(self, "dataset_prompts"):
            self.dataset_prompts.copy_(tokens[0, self.num_instance_prompts :])
        if self.num_instance_prompts:
            self.warmup.restart()

    def start(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        return self.entering(0, self.fuse(patches, grid, noise))

    def carry(self, layer: int, prompts: Float[Tensor, "rows p _"]) -> Float[Tensor, "rows p dim"]:
        if prompts.shape[-1] != self.widths[layer]:  # those that entered the stage before: nothing is carried
            prompts = prompts.new_zeros(*prompts.shape[:2], self.widths[layer])
        if self.detach_carried:
            prompts = prompts.detach()
        entering = self.entering(layer, at(self.scale, layer)(layer, prompts))
        if self.instance is not None:
            entering = entering + self.instance_scale[layer - 1] * self.instance
            if layer == self.depth - 1:
                self.instance = None
        return entering

    def entering(self, layer: int, carried: Float[Tensor, "rows p dim"]) -> Float[Tensor, "rows p dim"]:
        """What is kept of `carried`, and W_i: the prompts that enter block `layer`."""
        fresh = self.fresh[layer]
        if self.fresh_rows < self.num_prompts:
            fresh = F.pad(fresh, (0, 0, self.num_prompts - self.fresh_rows, 0))
        kept = at(self.kept, layer)
        if layer < kept.first:
            return carried + fresh
        if self.wide and self.fresh_dim == "full":
            return kept(layer, carried, fresh.new_zeros(self.num_prompts, kept.fresh_dim)) + fresh
        return kept(layer, carried, fresh)

    def fuse(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows lambda_ dim"] | None,
    ) -> Float[Tensor, "rows p dim"]:
        """Z_0: instance prompts, then dataset-level prompts (zeros, where W_1 says what these would)."""
        rows, others = rows_of(patches, noise), self.num_prompts - self.num_instance_prompts
        if self.num_instance_prompts == 0 and (self.wide or self.kept_dim == 0):
            return patches.new_zeros(rows, self.num_prompts, self.dim)
        kinds = []
        if self.num_instance_prompts:
            kinds.append(self.sample(patches, grid, noise))
            if self.instance_every and self.depth > 1:
                self.instance = F.pad(kinds[0], (0, 0, 0, others))
        if others:
            kinds.append(
                patches.new_zeros(rows, others, self.dim) if self.wide else self.dataset_prompts.expand(rows, -1, -1)
            )
        return torch.cat(kinds, dim=1)

    def sample(
        self,
        patches: Float[Tensor, "batch n dim"],
        grid: tuple[int, int],
        noise: Float[Tensor, "rows sampled dim"] | None,
    ) -> Float[Tensor, "rows lambda_ dim"]:
        """P_ins = mean + std * eps; without noise the mean."""
        mean, std = self.generator(patches, grid)
        draws = 1 if noise is None else noise.shape[0] // patches.shape[0]
        if noise is None or std is None:
            sampled = mean.expand(-1, self.num_instance_prompts, -1).repeat(draws, 1, 1)
        else:
            sampled = mean.repeat(draws, 1, 1) + std.repeat(draws, 1, 1) * noise
        return self.warmup(sampled)

    def penalty(self, patches: Float[Tensor, "batch n dim"], grid: tuple[int, int]) -> Float[Tensor, ""] | None:
        if not self.kl_weight or not self.sampled_prompts:
            return None
        mean, std = self.generator(patches, grid)
        return self.kl_weight * (mean.square() + std.square() - 1 - 2 * std.log()).mean() / 2

    def without_effect(self) -> dict[str, str]:
        return without_effect(self)
